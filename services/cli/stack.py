"""`countinghouse up, down, status`: the embedded stack."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import subprocess
import sys
import webbrowser
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import IO, Annotated, Any

import typer

from services.cli import output
from services.cli.arguments import (
    DEFAULT_DATA,
    AsJson,
    Data,
    Database,
    GuardsOff,
    ZooKeeper,
    ZooKeeperPlaintext,
    parse_guards_off,
    parse_pairs,
    run,
)
from services.cli.exit_codes import ExitCode
from services.devstack import dialers, revocations, state
from services.devstack.keys import revoked_file
from services.devstack.stack import Stack, StackOptions
from services.devstack.state import StackState
from services.kernel.errors import InvalidArgument
from services.kernel.printable import escape

#: A stack drains for some seconds; what takes longer is ended by force.
_DOWN_TIMEOUT_S = 30.0
_KILL_TIMEOUT_S = 3.0


_Replicas = Annotated[
    list[str] | None,
    typer.Option(
        "--replicas", help="Number of instances of a service, like payment=2; repeatable.", show_default=False
    ),
]
_Port = Annotated[
    list[str] | None,
    typer.Option(
        "--port",
        help="Port of a service or the gateway, like payment=50051; repeatable. [default: free ones]",
        show_default=False,
    ),
]
_SessionTimeout = Annotated[
    float, typer.Option("--session-timeout", help="Seconds for which a dead instance keeps its locks.", min=1, max=10)
]
_StartTimeout = Annotated[
    float, typer.Option("--start-timeout", help="Seconds to wait until all are ready.", min=1, max=600)
]
_Failpoints = Annotated[
    bool, typer.Option("--failpoints", help="Serve the failpoints, so that tests can inject faults.")
]
_Plaintext = Annotated[
    bool,
    typer.Option(
        "--plaintext",
        envvar="COUNTINGHOUSE_PLAINTEXT",
        help="Serve without TLS, for development: others can read and change every call.",
    ),
]
_Gateway = Annotated[
    bool, typer.Option("--gateway/--no-gateway", help="Start the gateway with its console, for browsers.")
]


def up(
    data: Data = DEFAULT_DATA,
    zookeeper: ZooKeeper = "",
    database: Database = "sqlite",
    replicas: _Replicas = None,
    port: _Port = None,
    session_timeout: _SessionTimeout = 4.0,
    start_timeout: _StartTimeout = 60.0,
    guards_off: GuardsOff = None,
    failpoints: _Failpoints = False,
    plaintext: _Plaintext = False,
    zookeeper_plaintext: ZooKeeperPlaintext = False,
    gateway: _Gateway = True,
    open_console: Annotated[bool, typer.Option("--open", help="Open the console in a browser.")] = False,
    detach: Annotated[bool, typer.Option("--detach", help="Return when it is ready, and leave it running.")] = False,
    as_json: AsJson = False,
) -> None:
    """Start ZooKeeper and the services, and show their addresses once all are ready. Ctrl-C stops them.

    Example: countinghouse up --replicas payment=2
    """
    try:
        options = StackOptions(
            data=data,
            zookeeper=zookeeper,
            database=database,
            replicas=parse_pairs(replicas or [], "payment=2"),
            ports=parse_pairs(port or [], "payment=50051"),
            guards_off=parse_guards_off(guards_off),
            failpoints=failpoints,
            plaintext=plaintext,
            zookeeper_plaintext=zookeeper_plaintext,
            session_timeout_s=session_timeout,
            gateway=gateway or open_console,
            start_timeout_s=start_timeout,
            detachable=True,
        )
    except InvalidArgument as error:
        raise typer.BadParameter(error.message) from error
    if detach:
        _start_detached(options, as_json=as_json)
        if open_console:
            _open(state.require(data).gateway)
    else:
        run(supervise(options, as_json=as_json, detached=False, open_console=open_console))


def down(data: Data = DEFAULT_DATA, as_json: AsJson = False) -> None:
    """Stop the stack, and return when no process of it is left.

    Example: countinghouse down
    """
    found = state.read(data)
    if found is None:
        _say_down(data, stopped=False, as_json=as_json)
        return
    if not found.detachable:
        raise state.StackRefused(
            "STACK_EMBEDDED", f"the stack on {data} belongs to process {found.supervisor}; stop that one instead"
        )
    with suppress(ProcessLookupError):
        os.kill(found.supervisor, signal.SIGTERM)
    run(_until_gone(data, found.supervisor))
    _say_down(data, stopped=True, as_json=as_json)


def status(data: Data = DEFAULT_DATA, as_json: AsJson = False) -> None:
    """Show every process of the stack and its readiness.

    Exits with 0 if all services are SERVING, 1 if not, 2 without a stack.

    Example: countinghouse status --json
    """
    try:
        found = state.require(data)
    except state.StackRefused:
        if as_json:
            output.print_json({"zookeeper": "", "acquirer": "", "gateway": "", "services": []})
        raise
    document, acquirer_state = run(_look(data, found))
    if as_json:
        output.print_json(document)
    else:
        _print_addresses(document, found, acquirer_state)
    if any(service["state"] != "SERVING" for service in document["services"]):
        raise typer.Exit(1)


async def supervise(options: StackOptions, *, as_json: bool, detached: bool, open_console: bool = False) -> None:
    """Run a stack until SIGINT or SIGTERM.

    Args:
        detached: Whether standard output ends once the stack is ready, for the process that waits for that.
        open_console: Whether a browser is opened then.
    """
    clock = asyncio.get_running_loop().time
    started_s = clock()
    stop = asyncio.Event()
    stack = Stack(options, tell=lambda sentence: print(sentence, file=sys.stderr, flush=True))

    def asked_to_stop() -> None:
        if stop.is_set():
            stack.kill_all()  # asked twice
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, asked_to_stop)
    if options.guards_off:
        guards = ", ".join(options.guards_off)
        print(f"GUARDS ARE OFF ({guards}): orders may be settled twice", file=sys.stderr, flush=True)
    _warn_of_plain_text(options)
    try:
        if not await _unless(stop, stack.start()):
            raise typer.Exit(ExitCode.INTERRUPTED)
        _log_to(stack.data / "logs" / "stack.log")
        document = _ready_document(stack)
        if as_json:
            output.print_json(document)
        else:
            print(f"ready in {clock() - started_s:.1f} s on {options.data}")
            _print_addresses(document, stack.describe())
            print("Ctrl-C or `countinghouse down` stops it")
        sys.stdout.flush()
        if open_console:
            _open(stack.describe().gateway)
        if detached:
            _close_output()
        await _unless(stop, stack.wait_until(lambda: False, None))
    finally:
        await stack.stop()


def _open(address: str) -> None:
    if not webbrowser.open(f"http://{address}/"):
        print(f"there is no browser to open; the console is at http://{address}/", file=sys.stderr, flush=True)


async def _unless(stop: asyncio.Event, work: Any) -> bool:
    """Do `work` to its end and return True; or leave it and return False if `stop` comes first."""
    task = asyncio.ensure_future(work)
    stopped = asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait({task, stopped}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            task.cancel()
            await asyncio.wait({task})
            return False
        task.result()
        return True
    finally:
        stopped.cancel()


def _start_detached(options: StackOptions, *, as_json: bool) -> None:
    """Run `up` in a process of its own, and wait until that one reports that it is ready."""
    options.data.mkdir(mode=0o700, parents=True, exist_ok=True)
    words = options.data / "up.log"
    with os.fdopen(os.open(words, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as log:
        supervisor = _start_supervisor(options, log)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)  # whatever ends the wait
    try:
        answer = supervisor.stdout.read() if supervisor.stdout is not None else b""
    except KeyboardInterrupt:
        supervisor.send_signal(signal.SIGTERM)
        supervisor.wait()
        raise
    if not answer:
        code = supervisor.wait()
        print(words.read_text(errors="replace").strip() or "the stack did not start", file=sys.stderr)
        raise typer.Exit(code or 1)
    document = json.loads(answer)
    if as_json:
        output.print_json(document)
    else:
        _print_addresses(document, state.read(options.data))
        print(f"running on {options.data}; `countinghouse down` stops it")
    _warn_of_plain_text(options)


def _warn_of_plain_text(options: StackOptions) -> None:
    if options.plaintext:
        print("PLAIN TEXT: others on the network can read and change every call", file=sys.stderr, flush=True)
    elif options.zookeeper_plaintext:
        print("PLAIN TEXT to ZooKeeper: others on the network can change it", file=sys.stderr, flush=True)


def _start_supervisor(options: StackOptions, log: IO[bytes]) -> subprocess.Popen[bytes]:
    """Start the process of services/cli/detached.py.

    Args:
        log: Where its messages go.

    Returns:
        The process; its standard output is one JSON document when the stack is ready, and ends there or with it.
    """
    supervisor = subprocess.Popen(  # noqa: S603  ourselves
        [sys.executable, "-P", "-m", "services.cli.detached", str(options.data.absolute())],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log,
        start_new_session=True,
    )
    assert supervisor.stdin is not None  # noqa: S101  it is a pipe
    with suppress(BrokenPipeError), supervisor.stdin:  # it ended: its messages give the reason
        supervisor.stdin.write(json.dumps(asdict(options), default=str).encode())
    return supervisor


def _close_output() -> None:
    """End standard output for its reader."""
    with open(os.devnull, "wb") as nothing:
        os.dup2(nothing.fileno(), sys.stdout.fileno())


async def _until_gone(data: Path, supervisor: int) -> None:
    if await state.wait_gone(data, supervisor, _DOWN_TIMEOUT_S):
        return
    with suppress(ProcessLookupError):
        os.kill(supervisor, signal.SIGKILL)  # the kernel ends its processes with it
    if not await state.wait_gone(data, supervisor, _KILL_TIMEOUT_S):
        raise state.StackRefused("STACK_STUCK", f"process {supervisor} does not end; see what it waits for")


def _say_down(data: Path, *, stopped: bool, as_json: bool) -> None:
    if as_json:
        output.print_json({"stopped": stopped})
    else:
        print(f"stopped the stack on {data}" if stopped else f"no stack is running on {data}")


async def _look(data: Path, found: StackState) -> tuple[dict[str, Any], str]:
    """Return the stack as it is now, and the state of its acquirer; empty: it has none."""
    from services.devstack.readiness import health  # noqa: PLC0415

    house = dialers.of_stack(data, plaintext=found.plaintext)
    outside = dialers.of_stack(data, plaintext=found.plaintext, outside=True)
    alive = [instance for instance in found.instances if instance.pid and instance.address]
    acquirer = [health(outside, found.acquirer, state.ACQUIRER)] if found.acquirer else []
    answers = await asyncio.gather(
        *(health(house, each.address, each.service, interface=each.interface) for each in alive), *acquirer
    )
    states = dict(zip((instance.name for instance in alive), answers, strict=False))
    revoked = revocations.read(revoked_file(data)).instances
    return _document(found, states, revoked), answers[-1] if acquirer else ""


def _ready_document(stack: Stack) -> dict[str, Any]:
    return _document(stack.describe(), {})


def _document(found: StackState, states: dict[str, str], revoked: frozenset[str] = frozenset()) -> dict[str, Any]:
    return {
        "zookeeper": found.zookeeper,
        "acquirer": found.acquirer,
        "gateway": found.gateway,
        "services": [
            {
                "name": instance.name,
                "interface": instance.interface,
                "address": instance.address,
                "pid": instance.pid,
                "state": states.get(instance.name, str(instance.state)),
                "revoked": instance.name in revoked,
            }
            for instance in found.instances
        ],
    }


def _print_addresses(document: dict[str, Any], found: StackState | None, acquirer_state: str = "SERVING") -> None:
    """Print every process of a stack.

    Args:
        found: Has the processes that are not in the document; None: it has ended meanwhile.
        acquirer_state: A stack that is ready has waited for it.
    """
    output.print_table(
        "stack",
        ("name", "interface", "address", "pid", "state"),
        [
            *(
                (
                    *(part["name"], part["interface"], part["address"], str(part["pid"])),
                    part["state"] + (", revoked" if part["revoked"] else ""),
                )
                for part in document["services"]
            ),
            *(
                ("acquirer", "", document["acquirer"], str((found and found.acquirer_pid) or ""), acquirer_state)
                for _ in range(bool(document["acquirer"]))
            ),
            ("zookeeper", "", document["zookeeper"], str((found and found.zookeeper_pid) or ""), ""),
        ],
    )
    if document["gateway"]:
        print(f"the console is at http://{document['gateway']}/")


class _EscapingFormatter(logging.Formatter):
    """Escape text of others; the further lines of a record are indented, so that none looks like a record."""

    def format(self, record: logging.LogRecord) -> str:
        return "\n    ".join(escape(line) for line in super().format(record).split("\n"))


def _log_to(file: Path) -> None:
    """Send what libraries log in the supervisor to the folder of the services' logs."""
    handler = logging.FileHandler(file, encoding="utf-8", errors="backslashreplace")
    handler.setFormatter(_EscapingFormatter("%(asctime)s %(name)s %(message)s"))
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
