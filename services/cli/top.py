"""`countinghouse top`: a running stack at a glance, again and again.

A screen that follows on a terminal, blocks of text elsewhere, with --json one document a line for each look.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Annotated, Any, Final

import grpc
import typer
from rich.console import Group, RenderableType
from rich.live import Live
from rich.text import Text

from coordination.locks import Place, QueueWatch
from coordination.session import Session, SessionState
from countinghouse.payment.v1 import payment_pb2 as pb
from countinghouse.payment.v1 import payment_pb2_grpc
from services.cli import locks, output, streams
from services.cli.activity import OPEN_STATES, Activity, ActivityLook, ActivityWatch, CountedSource, Listing, Payment
from services.cli.arguments import calling
from services.cli.call_rates import CallRates
from services.cli.client import Client
from services.cli.connection import parse_principal, user_name
from services.cli.instance_looks import InstanceLook, InstanceLooks
from services.cli.metrics import read_page
from services.devstack.keys import mint
from services.devstack.readiness import health
from services.devstack.state import INTERFACES
from services.gateway.sources import ORDERS, PAYMENTS, StubSource
from services.kernel.clock import Clock, SystemClock
from services.kernel.principal import Principal, Role
from services.kernel.printable import escape
from services.runtime.grpc import status
from services.runtime.zookeeper_paths import LOCKS_ROOT

#: A token that is made for one look.
_SIGNED_S = 600
#: What is asked of one instance, and the lists of payments, at a look.
_ANSWER_S: Final = 2.0
_LIST_S: Final = 10.0
#: Open payments of one state that are listed at most; one page.
_MOST_LISTED: Final = 1000
#: Places in queues on a screen or in a block; with --json all are there.
_MOST_PLACES: Final = 12
_COLUMNS: Final = ("instance", "health", "calls/s", "in flight", "p50", "p99", "not OK", "callers refused")
_AWAY: Final = "ZooKeeper is away: instances and locks are as they were last seen; this goes on when it is back"


@dataclass(frozen=True, slots=True)
class Look:
    """A running stack at one moment.

    Args:
        since_s: Seconds since the look before; None: this is the first.
        zookeeper_live: Whether instances and locks are up to date.
        locks_problem: Why the locks are not shown; empty: they are.
    """

    at_ms: int
    since_s: float | None
    zookeeper_live: bool
    instances: Sequence[InstanceLook]
    queues: Mapping[str, Sequence[Place]]
    locks_problem: str
    activity: ActivityLook

    @property
    def notes(self) -> list[str]:
        """What people should know of it."""
        notes = [] if self.zookeeper_live else [_AWAY]
        notes += [each.note for each in self.instances if each.note]
        notes += [f"some changes of {topic} were missed" for topic in self.activity.lost]
        return [*notes, *(problem for problem in (self.locks_problem, self.activity.problem) if problem)]

    def per_second(self, topic: str) -> dict[str, float] | None:
        """Return how many orders or payments came into each state in a second; None: this is the first look."""
        if self.since_s is None:
            return None
        return {state: number / self.since_s for state, number in self.activity.changes[topic].items()}


@calling(Role.AUDITOR)
async def top(
    client: Client,
    context: typer.Context,
    interval: Annotated[float, typer.Option("--interval", help="Seconds between two looks.", min=1, max=3600)] = 2.0,
) -> None:
    """Show a running stack until interrupted: instances, calls, locks, orders and payments.

    It goes on while ZooKeeper or an instance is away. --timeout is for connecting only. With --json each line is a
    document, of one look. Rates are those since the look before.

    Example: countinghouse top --interval 5
    """
    clock = SystemClock()
    async with _open_stack(client, _token_source(client, context), clock) as stack:
        if client.as_json:
            await _follow(stack, interval, clock, lambda look: output.print_json_line(document(look)))
        elif sys.stdout.isatty():
            with Live(auto_refresh=False) as screen:
                await _follow(stack, interval, clock, lambda look: screen.update(_drawn(look), refresh=True))
        else:
            await _follow(stack, interval, clock, _print_block)


class RunningLooks:
    """What a look needs, kept up to date in the background.

    Args:
        background: Keep `activity` and `queues` up to date; one that ends has failed.
    """

    def __init__(
        self,
        session: Session,
        instances: InstanceLooks,
        queues: QueueWatch,
        activity: Activity,
        background: Sequence[asyncio.Task[None]],
    ) -> None:
        self._session = session
        self._instances = instances
        self._queues = queues
        self._activity = activity
        self._background = background

    async def look(self, at_ms: int, since_s: float | None) -> Look:
        """Look at everything.

        Raises:
            CountinghouseError: The caller may not watch.
            CoordinationError: ZooKeeper is older than 3.6.
        """
        for task in self._background:
            if task.done():
                task.result()
        instances = await self._instances.look()
        live = self._session.state is SessionState.CONNECTED
        hidden = live and since_s is not None and not self._queues.live  # at the first look they may not be read yet
        problem = "the locks are not known: ZooKeeper does not show them to this caller" if hidden else ""
        queues = self._queues.queues()
        return Look(at_ms, since_s, live, instances, queues, problem, self._activity.look())


async def _follow(stack: RunningLooks, interval_s: float, clock: Clock, show: Callable[[Look], None]) -> None:
    """Show a look at every interval, until the reader has gone."""
    before_s: float | None = None
    while not streams.unread():
        began_s = clock.monotonic_s()
        show(await stack.look(clock.now_ms(), None if before_s is None else began_s - before_s))
        before_s = began_s
        await asyncio.sleep(max(0.0, interval_s - (clock.monotonic_s() - began_s)))


@asynccontextmanager
async def _open_stack(client: Client, token: Callable[[], str], clock: Clock) -> AsyncIterator[RunningLooks]:
    session, dialer = await client.session(), client.dialer()
    channels = {service: await client.channel(service) for service in INTERFACES}
    directories = {service: channel.directory for service, channel in channels.items()}
    watched = [StubSource(ORDERS, directories["order"], dialer), StubSource(PAYMENTS, directories["payment"], dialer)]
    sources = [CountedSource(source) for source in watched]
    activity = Activity()

    async def list_open() -> Listing:
        return await listed(payment_pb2_grpc.PaymentServiceStub(channels["payment"]), token())

    async def ask_health(service: str, address: str) -> str:
        return await health(dialer, address, service, _ANSWER_S, interface=INTERFACES[service])

    async def read(address: str) -> str:
        return await asyncio.to_thread(read_page, address, _ANSWER_S)

    def watches(address: str) -> int:
        return sum(source.open[address] for source in sources)

    instances = InstanceLooks(directories, clock, health=ask_health, page=read, watches=watches)
    async with QueueWatch(session, root=LOCKS_ROOT) as queues:
        watch = ActivityWatch(activity, sources, token, list_open)
        background = [asyncio.create_task(watch.run()), asyncio.create_task(_keep_up(queues))]
        try:
            yield RunningLooks(session, instances, queues, activity, background)
        finally:
            for task in background:
                task.cancel()
            await asyncio.gather(*background, return_exceptions=True)
            for source in watched:
                await source.close()


async def _keep_up(queues: QueueWatch) -> None:
    async for _ in queues.changes():
        pass


def _token_source(client: Client, context: typer.Context) -> Callable[[], str]:
    """Return what gives a token that is good now: the one that was given, or a new one each time.

    Raises:
        SigningKeyMissing: There is no key here.
    """
    if given := str(context.params["token"]):
        return lambda: given
    named = str(context.params["acting_as"])
    principal = parse_principal(named) if named else Principal(user_name(), Role.AUDITOR)

    def signed() -> str:
        return mint(client.connection.data, principal, _SIGNED_S, SystemClock())

    signed()
    return signed


async def listed(stub: Any, token: str) -> Listing:
    """List the open payments, a page of each state.

    Raises:
        CountinghouseError: What the service answered, or that it did not.
    """
    payments: list[Payment] = []
    whole = True
    for state in OPEN_STATES:
        request = pb.ListPaymentsRequest(page_size=_MOST_LISTED, state=pb.PaymentState.Value(f"PAYMENT_STATE_{state}"))
        try:
            page = await stub.ListPayments(request, timeout=_LIST_S, metadata=(("authorization", f"Bearer {token}"),))
        except grpc.aio.AioRpcError as error:
            raise status.from_rpc_error(error) from error
        payments += [Payment(each.payment_id, each.version, state, each.attention) for each in page.payments]
        whole = whole and not page.next_page_token
    return Listing(payments, whole)


# ---- showing ---------------------------------------------------------------------------------------------


def document(look: Look) -> dict[str, Any]:
    """Return a look as JSON has it."""
    activity = look.activity
    return {
        "at_ms": look.at_ms,
        "since_s": None if look.since_s is None else round(look.since_s, 3),
        "zookeeper": "live" if look.zookeeper_live else "away",
        "instances": [_instance_document(each) for each in look.instances],
        "locks": [locks.queue_document(order_id, queue) for order_id, queue in look.queues.items()],
        "orders": {"per_s": _rounded(look.per_second(ORDERS))},
        "payments": {
            "per_s": _rounded(look.per_second(PAYMENTS)),
            "open": None if activity.open is None else dict(activity.open),
            "open_is_whole": activity.whole,
            "attention": activity.attention,
        },
        "notes": look.notes,
    }


def _instance_document(look: InstanceLook) -> dict[str, Any]:
    calls = look.calls or CallRates(None, 0)
    return {
        "instance": look.name,
        "service": look.service,
        "address": look.address,
        "health": look.health,
        "calls_per_s": None if calls.calls_per_s is None else round(calls.calls_per_s, 2),
        "in_flight": None if look.calls is None else calls.in_flight,
        "p50_ms": _ms(calls.p50_s),
        "p99_ms": _ms(calls.p99_s),
        "not_ok": dict(calls.not_ok),
        "refused": dict(calls.refused),
    }


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 2)


def _rounded(rates: Mapping[str, float] | None) -> dict[str, float] | None:
    return None if rates is None else {state: round(rate, 2) for state, rate in sorted(rates.items())}


@dataclass(frozen=True, slots=True)
class _Part:
    """A table, or a line in its place where it has no rows."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    otherwise: str = ""


def _parts(look: Look) -> Iterator[_Part]:
    yield _Part("instances", _COLUMNS, [_instance_row(each) for each in look.instances], "no instance is registered")
    places = locks.queue_rows(look.queues)
    more = len(places) - _MOST_PLACES
    rest = [(f"and {more} more", *("" for _ in locks.COLUMNS[1:]))] if more > 0 else []
    yield _Part(locks.TITLE, locks.COLUMNS, [*places[:_MOST_PLACES], *rest], locks.NO_QUEUES)
    rows = [(topic, _in_words(look.per_second(topic))) for topic in (ORDERS, PAYMENTS)]
    yield _Part("changes", ("", "a second, by the state after the change"), [*rows, ("open payments", _open(look))])


def _instance_row(look: InstanceLook) -> tuple[str, ...]:
    calls = look.calls
    if calls is None:
        return (look.name, look.health, *("?" for _ in _COLUMNS[2:]))
    return (
        look.name,
        look.health,
        "" if calls.calls_per_s is None else f"{calls.calls_per_s:.1f}",
        str(calls.in_flight),
        *("" if each is None else f"{each * 1000:.1f} ms" for each in (calls.p50_s, calls.p99_s)),
        *(
            ", ".join(f"{number} {name}" for name, number in sorted(each.items()))
            for each in (calls.not_ok, calls.refused)
        ),
    )


def _in_words(rates: Mapping[str, float] | None) -> str:
    if rates is None:
        return "known at the next look"
    return ", ".join(f"{state} {rate:.1f}" for state, rate in sorted(rates.items())) or "none"


def _open(look: Look) -> str:
    activity = look.activity
    if activity.open is None:
        return "not known yet"
    states = ", ".join(f"{state} {number}" for state, number in sorted(activity.open.items())) or "none"
    least = "" if activity.whole else "at least "
    return f"{least}{states}" + (f"; {activity.attention} need attention" if activity.attention else "")


def _print_block(look: Look) -> None:
    output.print_line(output.moment(look.at_ms))
    for part in _parts(look):
        print()
        if part.rows:
            output.print_table(part.title, part.columns, part.rows)
        else:
            output.print_line(part.otherwise)
    for note in look.notes:
        output.print_line(f"! {note}")
    print(flush=True)


def _drawn(look: Look) -> RenderableType:
    """Return a look for a terminal."""
    return Group(
        Text(f"{output.moment(look.at_ms)}; Ctrl-C ends it"),
        *(
            output.framed(part.title, part.columns, part.rows) if part.rows else Text(part.otherwise)
            for part in _parts(look)
        ),
        *(Text(f"! {escape(note)}", style="bold") for note in look.notes),
    )
