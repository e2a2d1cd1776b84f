"""`countinghouse key …, revoke`: the keys that sign tokens, and the tokens and callers that are no longer believed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import jwt
import typer

from services.cli import output
from services.cli.arguments import DEFAULT_DATA, AsJson, Data
from services.cli.connection import parse_principal
from services.devstack import revocations
from services.devstack.files import signing_key
from services.devstack.keys import revoked_file
from services.devstack.revocations import Revocations
from services.devstack.signing_keys import SigningKeys
from services.devstack.state import ACQUIRER, SigningKeyMissing
from services.kernel.clock import SystemClock
from services.kernel.errors import InvalidArgument
from services.runtime.grpc.tokens import MAX_TTL_S

app = typer.Typer(no_args_is_help=True, help="Show and rotate the keys that sign tokens.")

_LONGEST_S = max(MAX_TTL_S.values())
_Outside = Annotated[bool, typer.Option("--acquirer", help="The acquirer's own keys, instead of those of the house.")]


@app.command("ls")
def ls(data: Data = DEFAULT_DATA, outside: _Outside = False, as_json: AsJson = False) -> None:
    """Show the keys that are believed: which signs, which will, and until when an old one is.

    Example: countinghouse key ls
    """
    _print(_keys(data, outside), as_json=as_json)


@app.command("rotate")
def rotate(
    data: Data = DEFAULT_DATA,
    outside: _Outside = False,
    now: Annotated[
        bool,
        typer.Option("--now", help="Believe no old key any more: every token there is becomes invalid at once."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Make a new key. It signs after a minute; tokens of the old one stay good until they expire.

    The running stack lets the new key sign; a stack that does not run, at its start. With --now, for a key that others
    may have, people need new tokens, and calls between the services fail for up to half a minute.

    Example: countinghouse key rotate
    """
    keys = _keys(data, outside)
    if now:
        keys.replace_now()
    else:
        keys.rotate()
    _print(keys, as_json=as_json)


def revoke(
    caller: Annotated[
        str,
        typer.Option("--caller", metavar="ROLE:NAME", help="Whose tokens are taken no more.", show_default=False),
    ] = "",
    token: Annotated[
        str, typer.Option("--token", help="A token that is taken no more, or its id (jti).", show_default=False)
    ] = "",
    undo: Annotated[bool, typer.Option("--undo", help="Take them again.")] = False,
    data: Data = DEFAULT_DATA,
    as_json: AsJson = False,
) -> None:
    """Revoke a token, or all tokens of a caller, within half a minute; without either show what is revoked.

    Example: countinghouse revoke --caller cashier:li
    """
    if not signing_key(data).exists():
        raise _no_key(data)
    file, now_s = revoked_file(data), SystemClock().now_ms() // 1000
    revoked = revocations.read(file)
    if caller or token:
        revoked = _changed(revoked, caller, token, undo=undo, now_s=now_s)
        revocations.write(file, revoked, now_s)
    elif undo:
        raise typer.BadParameter("name a --caller or a --token", param_hint="--undo")
    if as_json:
        output.print_json({"callers": sorted(revoked.callers), "tokens": dict(revoked.tokens)})
        return
    rows = [("caller", name, "") for name in sorted(revoked.callers)]
    rows += [("token", name, output.moment(expires_s * 1000)) for name, expires_s in revoked.tokens.items()]
    output.print_table("revoked", ("what", "which", "expires"), rows)


def _changed(revoked: Revocations, caller: str, token: str, *, undo: bool, now_s: int) -> Revocations:
    callers, tokens = set(revoked.callers), dict(revoked.tokens)
    if caller:
        name = revocations.caller_of(parse_principal(caller))
        callers = callers - {name} if undo else callers | {name}
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


def _no_key(data: Path) -> SigningKeyMissing:
    return SigningKeyMissing(
        "SIGNING_KEY_MISSING", f"there is no signing key in {data}; name the --data of a stack, where its keys are"
    )


def _print(keys: SigningKeys, *, as_json: bool) -> None:
    listed: list[dict[str, Any]] = json.loads(keys.verify_file.read_bytes())["keys"]
    shown = [
        {"kid": each["kid"], "signs_from_s": each.get("nbf", 0), "believed_until_s": each.get("exp", 0)}
        for each in listed
    ]
    if as_json:
        output.print_json({"keys": shown})
        return
    output.print_table(
        "keys",
        ("key", "signs", "believed until"),
        [
            (
                each["kid"],
                f"from {output.moment(each['signs_from_s'] * 1000)}"
                if each["signs_from_s"]
                else ("no more" if each["believed_until_s"] else "now"),
                output.moment(each["believed_until_s"] * 1000),
            )
            for each in shown
        ],
    )
