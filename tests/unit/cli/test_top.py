"""`countinghouse top`: what a look shows, and how one follows another."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import jwt
import pytest
from rich.console import Console
from typer.testing import CliRunner

from coordination.errors import CoordinationError
from coordination.locks import Holder, Place
from coordination.session import SessionState
from countinghouse.payment.v1 import payment_pb2 as pb
from services.cli import streams, top
from services.cli.activity import Activity, ActivityLook, Payment
from services.cli.call_rates import CallRates
from services.cli.commands import app
from services.cli.instance_looks import NOT_REGISTERED, InstanceLook
from services.cli.top import Look, RunningLooks, document, listed
from services.devstack import revocations
from services.devstack.keys import Keys, revoked_file
from services.devstack.revocations import Revocations
from services.devstack.state import SigningKeyMissing
from services.gateway.sources import ORDERS, PAYMENTS
from services.kernel.clock import SystemClock
from services.kernel.errors import PermissionDenied, Unavailable
from services.runtime.grpc.status import DETAILS_KEY, to_status
from tests.fakes.clock import ManualClock

PLACES = tuple(Place(n, 7 + n, Holder(f"clerk-{n}", {"role": "cashier"}, 1_700_000_000_000)) for n in range(2))
CALLS = CallRates(12.25, 2, 0.0012, 0.048, {"ALREADY_EXISTS": 3}, {"TOKEN_EXPIRED": 1})


def look(**changes: Any) -> Look:
    fields: dict[str, Any] = {
        "at_ms": 1_700_000_000_000,
        "since_s": 2.0,
        "zookeeper_live": True,
        "instances": [InstanceLook("order-1", "order", "o:1", "SERVING", CALLS)],
        "queues": {"o-1": PLACES},
        "locks_problem": "",
        "activity": activity_look(),
    }
    return Look(**(fields | changes))


def activity_look(**changes: Any) -> ActivityLook:
    fields: dict[str, Any] = {
        "changes": {ORDERS: {"PAID": 3}, PAYMENTS: {"SUCCEEDED": 3, "CREATED": 4}},
        "open": {"UNKNOWN": 2},
        "whole": True,
        "attention": 1,
        "lost": [],
        "problem": "",
    }
    return ActivityLook(**(fields | changes))


def block(capsys: pytest.CaptureFixture[str], shown: Look) -> list[str]:
    top._print_block(shown)
    return [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]


def screen(shown: Look) -> str:
    console = Console(width=300, record=True, file=open("/dev/null", "w", encoding="utf-8"))  # noqa: SIM115
    console.print(top._drawn(shown))
    return console.export_text()


class TestShowing:
    """One look."""

    def test_document_has_all_of_it(self) -> None:
        assert document(look()) == {
            "at_ms": 1_700_000_000_000,
            "since_s": 2.0,
            "zookeeper": "live",
            "instances": [
                {
                    "instance": "order-1",
                    "service": "order",
                    "address": "o:1",
                    "health": "SERVING",
                    "calls_per_s": 12.25,
                    "in_flight": 2,
                    "p50_ms": 1.2,
                    "p99_ms": 48.0,
                    "not_ok": {"ALREADY_EXISTS": 3},
                    "refused": {"TOKEN_EXPIRED": 1},
                }
            ],
            "locks": [
                {
                    "order_id": "o-1",
                    "queue": [
                        {
                            "position": n,
                            "token": 7 + n,
                            "clerk": f"clerk-{n}",
                            "role": "cashier",
                            "instance": "?",
                            "payment": "?",
                            "since_ms": 1_700_000_000_000,
                        }
                        for n in range(2)
                    ],
                }
            ],
            "orders": {"per_s": {"PAID": 1.5}},
            "payments": {
                "per_s": {"CREATED": 2.0, "SUCCEEDED": 1.5},
                "open": {"UNKNOWN": 2},
                "open_is_whole": True,
                "attention": 1,
            },
            "notes": [],
        }

    def test_first_look_has_no_rates(self) -> None:
        first = document(
            look(
                since_s=None,
                instances=[InstanceLook("order-1", "order", "o:1", "SERVING", CallRates(None, 1))],
                activity=activity_look(changes={ORDERS: {}, PAYMENTS: {}}, open=None, attention=None),
            )
        )
        assert (first["since_s"], first["orders"]["per_s"], first["payments"]["open"]) == (None, None, None)
        assert first["instances"][0]["calls_per_s"] is None
        assert first["instances"][0]["in_flight"] == 1

    def test_instance_without_metrics_has_no_numbers(self) -> None:
        gone = InstanceLook("order-1", "order", "o:1", NOT_REGISTERED, None)
        shown = document(look(instances=[gone]))
        assert {shown["instances"][0][name] for name in ("calls_per_s", "in_flight", "p50_ms")} == {None}
        assert shown["notes"] == ["order-1 is not registered any more"]

    def test_block_shows_instances_queues_and_changes(self, capsys: pytest.CaptureFixture[str]) -> None:
        lines = block(capsys, look())
        assert lines[0] == "2023-11-14T22:13:20.000Z"
        assert "order-1 SERVING 12.2 2 1.2 ms 48.0 ms 3 ALREADY_EXISTS 1 TOKEN_EXPIRED" in lines
        assert any(line.startswith("o-1 holds clerk-0 cashier") for line in lines)
        assert "orders PAID 1.5" in lines
        assert "payments CREATED 2.0, SUCCEEDED 1.5" in lines
        assert "open payments UNKNOWN 2; 1 need attention" in lines

    def test_block_says_what_is_not_there_or_not_known(self, capsys: pytest.CaptureFixture[str]) -> None:
        nothing = activity_look(changes={ORDERS: {}, PAYMENTS: {}}, open={}, attention=0)
        lines = block(capsys, look(instances=[], queues={}, activity=nothing))
        assert "no instance is registered" in lines
        assert "no order is being settled at this moment" in lines
        assert {"orders none", "open payments none"} <= set(lines)
        first = activity_look(open=None, attention=None)
        lines = block(capsys, look(since_s=None, activity=first))
        assert {"orders known at the next look", "open payments not known yet"} <= set(lines)
        more = activity_look(open={"UNKNOWN": 1000}, whole=False, attention=0)
        assert "open payments at least UNKNOWN 1000" in block(capsys, look(activity=more))

    def test_many_places_are_counted_where_people_look(self, capsys: pytest.CaptureFixture[str]) -> None:
        """JSON has all of them."""
        many = look(queues={f"o-{n:02}": PLACES[:1] for n in range(20)})
        lines = block(capsys, many)
        assert sum(" holds " in line for line in lines) == 12
        assert "and 8 more" in lines
        assert len(document(many)["locks"]) == 20

    def test_what_is_away_is_noted(self, capsys: pytest.CaptureFixture[str]) -> None:
        away = look(
            zookeeper_live=False,
            instances=[InstanceLook("order-1", "order", "o:1", "UNREACHABLE", None)],
            locks_problem="the locks are not known",
            activity=activity_look(lost=[PAYMENTS], problem="no service can be watched now; try again"),
        )
        notes = document(away)["notes"]
        assert document(away)["zookeeper"] == "away"
        assert "ZooKeeper is away" in notes[0]
        assert notes[1:] == [
            "order-1 at o:1 is UNREACHABLE",
            "some changes of payments were missed",
            "the locks are not known",
            "no service can be watched now; try again",
        ]
        assert [f"! {note}" for note in notes] == [line for line in block(capsys, away) if line.startswith("!")]
        assert all(f"! {note}" in screen(away) for note in notes)

    def test_screen_shows_what_a_block_shows(self) -> None:
        shown = screen(look())
        for words in (
            "order-1",
            "48.0 ms",
            "3 ALREADY_EXISTS",
            "clerk-1",
            "CREATED 2.0",
            "UNKNOWN 2; 1 need attention",
        ):
            assert words in shown

    def test_text_of_others_is_escaped(self, capsys: pytest.CaptureFixture[str]) -> None:
        evil = "\x1b[2J"
        shown = look(
            instances=[InstanceLook(f"order{evil}", "order", "o:1", "UNKNOWN", CALLS)],
            queues={evil: (Place(0, 1, Holder(evil, {"role": evil}, 1)),)},
            activity=activity_look(problem=evil),
        )
        assert "\x1b" not in "\n".join(block(capsys, shown))
        assert "\x1b" not in screen(shown)


class FakeStack:
    """Gives looks until the reader has gone."""

    def __init__(self, clock: ManualClock, took_ms: int = 0, *, looks: int = 3) -> None:
        self.asked: list[tuple[int, float | None]] = []
        self.left = looks
        self._clock = clock
        self._took_ms = took_ms

    async def look(self, at_ms: int, since_s: float | None) -> Look:
        self.asked.append((at_ms, since_s))
        self.left -= 1
        self._clock.advance(self._took_ms)
        return look(at_ms=at_ms, since_s=since_s)


@pytest.mark.parametrize(("took_ms", "between_s"), [(0, 2.0), (500, 2.0), (5_000, 5.0)])
async def test_looks_are_an_interval_apart_also_if_one_takes_long(
    monkeypatch: pytest.MonkeyPatch, took_ms: int, between_s: float
) -> None:
    clock = ManualClock(0)
    stack: Any = FakeStack(clock, took_ms)

    async def sleep(seconds: float) -> None:
        assert seconds >= 0
        clock.advance(round(seconds * 1000))

    monkeypatch.setattr("asyncio.sleep", sleep)
    monkeypatch.setattr(streams, "unread", lambda: stack.left == 0)
    shown: list[Look] = []
    await top._follow(stack, 2.0, clock, shown.append)
    assert stack.asked == [(0, None), *((round(n * between_s * 1000), between_s) for n in (1, 2))]
    assert len(shown) == 3


class TestRunningLooks:
    """What the background keeps up to date."""

    def looks(self, *background: asyncio.Task[None], live: bool = True, connected: bool = True) -> RunningLooks:
        session: Any = SimpleNamespace(state=SessionState.CONNECTED if connected else SessionState.SUSPENDED)
        queues: Any = SimpleNamespace(live=live, queues=lambda: {"o-1": PLACES})

        async def no_instances() -> list[InstanceLook]:
            return []

        instances: Any = SimpleNamespace(look=no_instances)
        return RunningLooks(session, instances, queues, Activity(), background)

    async def test_zookeeper_that_is_away_is_told_and_what_was_seen_last_is_shown(self) -> None:
        found = await self.looks(live=False, connected=False).look(5, 2.0)
        assert (found.zookeeper_live, found.locks_problem, found.queues) == (False, "", {"o-1": PLACES})

    async def test_locks_that_zookeeper_does_not_show_are_told(self) -> None:
        """At the first look they may not have been read yet."""
        assert (await self.looks(live=False).look(5, None)).locks_problem == ""
        assert "not known" in (await self.looks(live=False).look(5, 2.0)).locks_problem
        assert (await self.looks().look(5, 2.0)).locks_problem == ""

    @pytest.mark.parametrize(
        "error", [PermissionDenied("ROLE_NOT_ALLOWED", "no"), CoordinationError("ZooKeeper 3.6 or newer only")]
    )
    async def test_refusal_in_the_background_ends_it(self, error: Exception) -> None:
        async def refused() -> None:
            raise error

        task = asyncio.create_task(refused())
        await asyncio.wait({task})
        with pytest.raises(type(error)):
            await self.looks(task).look(5, 2.0)


class FakePayments:
    """A stub of the payment service."""

    def __init__(self, pages: Mapping[Any, pb.ListPaymentsResponse]) -> None:
        self.asked: list[pb.ListPaymentsRequest] = []
        self._pages = pages

    async def ListPayments(  # noqa: N802
        self, request: pb.ListPaymentsRequest, *, timeout: float, metadata: Any
    ) -> pb.ListPaymentsResponse:
        assert timeout > 0
        assert metadata == (("authorization", "Bearer abc"),)
        self.asked.append(request)
        return self._pages.get(request.state, pb.ListPaymentsResponse())


async def test_open_payments_are_a_page_of_each_state_that_has_not_ended() -> None:
    unknown = pb.Payment(payment_id="p1", version=4, attention="ACQUIRER_SILENT")
    pages = {
        pb.PAYMENT_STATE_UNKNOWN: pb.ListPaymentsResponse(payments=[unknown]),
        pb.PAYMENT_STATE_PARKED: pb.ListPaymentsResponse(payments=[pb.Payment(payment_id="p2", version=1)]),
    }
    stub = FakePayments(pages)
    found = await listed(stub, "abc")
    assert found.payments == [Payment("p1", 4, "UNKNOWN", "ACQUIRER_SILENT"), Payment("p2", 1, "PARKED")]
    assert found.whole
    ended = {pb.PAYMENT_STATE_SUCCEEDED, pb.PAYMENT_STATE_DECLINED, pb.PAYMENT_STATE_REVERSED}
    assert {request.state for request in stub.asked} == {*pb.PaymentState.values()} - ended - {0}


async def test_page_that_is_full_is_not_all_of_them() -> None:
    full = pb.ListPaymentsResponse(payments=[pb.Payment(payment_id="p1")], next_page_token="more")
    assert not (await listed(FakePayments({pb.PAYMENT_STATE_CREATED: full}), "abc")).whole


async def test_service_that_does_not_list_is_told_by_its_reason() -> None:
    details = to_status(Unavailable("DATABASE_UNAVAILABLE", "it is away")).SerializeToString()
    refusal = grpc.aio.AioRpcError(
        grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), grpc.aio.Metadata((DETAILS_KEY, details)), "it is away"
    )

    class Refusing(FakePayments):
        async def ListPayments(self, *_: Any, **__: Any) -> pb.ListPaymentsResponse:  # noqa: N802
            raise refusal

    with pytest.raises(Unavailable) as found:
        await listed(Refusing({}), "abc")
    assert found.value.reason == "DATABASE_UNAVAILABLE"


def token_source(data: Path, **options: str) -> Callable[[], str]:
    client: Any = SimpleNamespace(connection=SimpleNamespace(data=data))
    context: Any = SimpleNamespace(params={"token": "", "acting_as": ""} | options)
    return top._token_source(client, context)


def named_in(token: str) -> tuple[str, str]:
    claims = jwt.decode(token, options={"verify_signature": False})
    return claims["sub"], claims["role"]


def test_token_is_made_anew_each_time(tmp_path: Path) -> None:
    """A watch outlives each of them."""
    Keys(tmp_path, SystemClock())
    token = token_source(tmp_path, acting_as="accountant:wu")
    first = token()
    revocations.write(revoked_file(tmp_path), Revocations(callers=frozenset({"accountant:wu"})), 0)
    assert named_in(first) == ("wu", "accountant")
    with pytest.raises(PermissionDenied):
        token()


def test_caller_is_an_auditor_unless_another_is_named(tmp_path: Path) -> None:
    Keys(tmp_path, SystemClock())
    assert named_in(token_source(tmp_path)())[1] == "auditor"


def test_token_that_was_given_is_used_as_it_is(tmp_path: Path) -> None:
    assert token_source(tmp_path, token="given")() == "given"


def test_missing_key_is_refused_before_anything_is_shown(tmp_path: Path) -> None:
    with pytest.raises(SigningKeyMissing):
        token_source(tmp_path)


@pytest.fixture
def of_three_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stack whose reader goes after three looks; no time passes in between."""
    stack = FakeStack(ManualClock())

    @asynccontextmanager
    async def open_stack(*_: object) -> AsyncIterator[FakeStack]:
        yield stack

    async def sleep(_seconds: float) -> None:
        pass

    monkeypatch.setattr(top, "_open_stack", open_stack)
    monkeypatch.setattr(top, "_token_source", lambda *_: lambda: "token")
    monkeypatch.setattr("asyncio.sleep", sleep)
    monkeypatch.setattr(streams, "unread", lambda: stack.left == 0)


@pytest.mark.usefixtures("of_three_looks")
class TestCommand:
    """As it is typed."""

    def test_json_is_a_document_a_look_on_a_line_of_its_own(self, tmp_path: Path) -> None:
        result = CliRunner().invoke(app, ["top", "--json", "--data", str(tmp_path)])
        assert result.exit_code == 0, result.output
        documents = [json.loads(line) for line in result.stdout.splitlines()]
        assert [each["zookeeper"] for each in documents] == ["live"] * 3

    def test_without_a_terminal_blocks_follow_each_other(self, tmp_path: Path) -> None:
        result = CliRunner().invoke(app, ["top", "--data", str(tmp_path)])
        assert result.stdout.count("order-1") == 3

    def test_terminal_has_one_screen(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        updates: list[Any] = []

        class FakeLive:
            def __init__(self, **options: Any) -> None:
                assert options == {"auto_refresh": False}

            def __enter__(self) -> FakeLive:
                return self

            def __exit__(self, *_: object) -> None:
                pass

            def update(self, shown: Any, *, refresh: bool) -> None:
                assert refresh
                updates.append(shown)

        monkeypatch.setattr(top, "Live", FakeLive)
        monkeypatch.setattr(top, "sys", SimpleNamespace(stdout=SimpleNamespace(isatty=lambda: True)))
        result = CliRunner().invoke(app, ["top", "--data", str(tmp_path)])
        assert (result.exit_code, len(updates)) == (0, 3)
        assert result.stdout == ""

    @pytest.mark.parametrize("interval", ["0.5", "0", "never"])
    def test_interval_that_would_ask_too_often_is_refused(self, tmp_path: Path, interval: str) -> None:
        result = CliRunner().invoke(app, ["top", "--interval", interval, "--data", str(tmp_path)])
        assert result.exit_code == 2


def test_stack_that_is_not_running_is_refused(tmp_path: Path) -> None:
    (tmp_path / "keys").mkdir()
    result = CliRunner().invoke(app, ["top", "--token", "x", "--data", str(tmp_path)])
    assert "no stack is running" in str(result.exception)
