"""`countinghouse key …, revoke`: the keys that sign tokens, the authorities that sign certificates, and what is no
longer believed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import jwt
import typer

from services.cli import output
from services.cli.arguments import DEFAULT_DATA, AsJson, Data, Where, refuse_deployment
from services.cli.connection import parse_principal
from services.devstack import revocations, state
from services.devstack.authority import Authority
from services.devstack.files import ca_file, signing_key
from services.devstack.keys import identity_file, revoked_file
from services.devstack.revocations import Revocations
from services.devstack.signing_keys import ListedKey, SigningKeys
from services.devstack.state import ACQUIRER, INTERFACES, SigningKeyMissing, StackRefused
from services.kernel.clock import SystemClock
from services.kernel.errors import InvalidArgument
from services.runtime.grpc.tokens import HOUSE, INSTANCE, MAX_TTL_S

app = typer.Typer(no_args_is_help=True, help="Show and rotate what signs tokens and certificates.")

_LONGEST_S = max(MAX_TTL_S.values())
_Outside = Annotated[bool, typer.Option("--acquirer", help="The acquirer's own keys, instead of those of the house.")]


_Authority = Annotated[
    bool, typer.Option("--authority", help="What signs the certificates of processes, instead of tokens.")
]


@app.callback()
def choose(context: typer.Context) -> None:
    """Refuse what changes keys of a deployment: of those only the authorities' certificates are on this machine."""
    if context.find_root().params.get("stack") is Where.COMPOSE and context.invoked_subcommand != "ca":
        refuse_deployment(f"key {context.invoked_subcommand}")


@app.command("ls")
def ls(
    data: Data = DEFAULT_DATA, outside: _Outside = False, authority: _Authority = False, as_json: AsJson = False
) -> None:
    """Show the keys that are believed: which signs, which will, and until when an old one is.

    Example: countinghouse key ls
    """
    keys = _authority(data, outside) if authority else _keys(data, outside)
    _print(keys.listed(), as_json=as_json)


@app.command("ca")
def ca(data: Data = DEFAULT_DATA, outside: _Outside = False, as_json: AsJson = False) -> None:
    """Print the certificates of the authorities that are believed, PEM: by them a program knows the services.

    Save them as a file, and name it by COUNTINGHOUSE_CA_FILE where there is no data directory. Print them again after
    `key rotate --authority`, and every half year.

    Example: countinghouse key ca > ca.pem
    """
    certificates = _present_ca_file(data, outside).read_text()
    if as_json:
        output.print_json({"certificates": certificates})
    else:
        print(certificates, end="")


@app.command("rotate")
def rotate(
    data: Data = DEFAULT_DATA,
    outside: _Outside = False,
    authority: _Authority = False,
    now: Annotated[
        bool,
        typer.Option("--now", help="Believe no old key any more: what it has signed becomes invalid at once."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Make a new key. It signs after a minute; what the old one has signed stays good until it expires.

    The running stack lets the new key sign; a stack that does not run, at its start. With --now, for a key that others
    may have, calls between the services fail for up to half a minute, and people need new tokens. With --authority,
    programs elsewhere need what `key ca` prints before the new one signs: a minute later, or at once with --now.

    Example: countinghouse key rotate
    """
    keys = _authority(data, outside) if authority else _keys(data, outside)
    before = {each.kid for each in keys.listed()}
    if now:
        keys.replace_now()
    else:
        keys.rotate()
    listed = keys.listed()
    _print(listed, as_json=as_json)
    if as_json:
        return
    if not now and before >= {each.kid for each in listed}:
        print("nothing was made: the next one is on its way already")
    if authority:
        print("programs elsewhere need what `countinghouse key ca` prints now, before the new authority signs")


def revoke(
    caller: Annotated[
        str,
        typer.Option("--caller", metavar="ROLE:NAME", help="Whose tokens are taken no more.", show_default=False),
    ] = "",
    token: Annotated[
        str, typer.Option("--token", help="A token that is taken no more, or its id (jti).", show_default=False)
    ] = "",
    instance: Annotated[
        str,
        typer.Option(
            "--instance", help="A process whose certificate is taken no more, like payment-2.", show_default=False
        ),
    ] = "",
    undo: Annotated[bool, typer.Option("--undo", help="Take them again.")] = False,
    data: Data = DEFAULT_DATA,
    as_json: AsJson = False,
) -> None:
    """Revoke a token, all tokens of a caller, or the certificate of a process, within half a minute; without any of
    them show what is revoked.

    A process that is revoked calls no service any more, and gets no new certificate. What it serves is called until its
    certificate has expired, a day later at most, or until `key rotate --authority --now`.

    Example: countinghouse revoke --caller cashier:li
    """
    if not signing_key(data).exists():
        raise _no_key(data)
    file, now_s = revoked_file(data), SystemClock().now_ms() // 1000
    revoked = revocations.read(file)
    if instance:
        _check_instance(data, instance)
    if caller or token or instance:
        revoked = _changed(revoked, caller, token, instance, undo=undo, now_s=now_s)
        revocations.write(file, revoked, now_s)
    elif undo:
        raise typer.BadParameter("name a --caller, a --token or an --instance", param_hint="--undo")
    _print_revoked(revoked, as_json=as_json)
    if instance and not undo and not as_json:
        _print_what_remains(data, instance)


def _print_revoked(revoked: Revocations, *, as_json: bool) -> None:
    instances = sorted(revoked.instances)
    callers = sorted(revoked.callers - {f"{INSTANCE}:{name}" for name in instances})
    if as_json:
        output.print_json({"callers": callers, "instances": instances, "tokens": dict(revoked.tokens)})
        return
    rows = [("caller", name, "") for name in callers]
    rows += [("instance", name, "") for name in instances]
    rows += [("token", name, output.moment(expires_s * 1000)) for name, expires_s in revoked.tokens.items()]
    if rows:
        output.print_table("revoked", ("what", "which", "expires"), rows)
    else:
        print("nothing is revoked")


def _print_what_remains(data: Path, instance: str) -> None:
    """Say what a process that was just revoked still does."""
    running = state.read(data)
    if running is None:
        return
    if running.plaintext:
        print("the stack runs in plain text, where processes show no certificates: this changes nothing now")
    elif any(each.name == instance for each in running.instances):
        print(f"{instance} still answers calls: `countinghouse registry offline {instance}` sends it none")


def _check_instance(data: Path, instance: str) -> None:
    known = sorted(each.stem for each in identity_file(data / "keys", "any").parent.glob("*-*.pem"))
    known = [each for each in known if each.rpartition("-")[0] in INTERFACES]
    if instance not in known:
        raise typer.BadParameter(
            f"no instance {instance!r} has a certificate; there are {', '.join(known) or 'none'}",
            param_hint="--instance",
        )


def _changed(revoked: Revocations, caller: str, token: str, instance: str, *, undo: bool, now_s: int) -> Revocations:
    callers, tokens = set(revoked.callers), dict(revoked.tokens)
    named = {revocations.caller_of(parse_principal(caller))} if caller else set()
    if instance:
        named.add(f"{INSTANCE}:{instance}")
    callers = callers - named if undo else callers | named
    if token:
        identity, expires_s = _identity(token, now_s)
        if undo:
            tokens.pop(identity, None)
        else:
            tokens[identity] = expires_s
    return Revocations(tokens, frozenset(callers))


def _identity(token: str, now_s: int) -> tuple[str, int]:
    """Return a token's id and when it expires; of an id alone, when a token that was signed now would at the latest."""
    if "." not in token:
        return token, now_s + _LONGEST_S
    try:
        claims: dict[str, Any] = jwt.decode(token, options={"verify_signature": False, "verify_exp": False})
        return str(claims["jti"]), int(claims["exp"])
    except (jwt.InvalidTokenError, KeyError, ValueError) as error:
        raise InvalidArgument("TOKEN_INVALID", "--token is no token, and no id of one") from error


def _keys(data: Path, outside: bool) -> SigningKeys:
    """Return the keys of a data directory; none are made where there are none."""
    if not signing_key(data, outside=outside).exists():
        raise _no_key(data)
    return SigningKeys(data / "keys" / ACQUIRER if outside else data / "keys", SystemClock())


def _authority(data: Path, outside: bool) -> Authority:
    """Return the authority of a data directory; none is made where there is none."""
    return Authority(_present_ca_file(data, outside).parent, ACQUIRER if outside else HOUSE, SystemClock())


def _present_ca_file(data: Path, outside: bool) -> Path:
    """Return the file of the authorities that are believed, which must be there."""
    if not signing_key(data, outside=outside).exists():
        raise StackRefused(
            "CA_FILE_MISSING", f"there is no authority in {data}; name the --data of a stack, where its keys are"
        )
    file = ca_file(data, outside=outside)
    if not file.exists():
        raise StackRefused(
            "CA_FILE_MISSING", f"there is no authority in {data} yet; the next start of its stack makes one"
        )
    return file


def _no_key(data: Path) -> SigningKeyMissing:
    return SigningKeyMissing(
        "SIGNING_KEY_MISSING", f"there is no signing key in {data}; name the --data of a stack, where its keys are"
    )


def _print(listed: Sequence[ListedKey], *, as_json: bool) -> None:
    if as_json:  # a time that there is not is null
        output.print_json({"keys": [{name: value or None for name, value in asdict(each).items()} for each in listed]})
        return
    output.print_table(
        "keys",
        ("key", "signs", "believed until"),
        [
            (
                each.kid,
                f"from {output.moment(each.signs_from_s * 1000)}"
                if each.signs_from_s
                else ("no more" if each.believed_until_s else "now"),
                output.moment(each.believed_until_s * 1000),
            )
            for each in listed
        ],
    )
