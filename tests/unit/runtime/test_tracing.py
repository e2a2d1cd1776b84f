"""Traces: who is the parent of whom, what a batch links to, and what nothing costs while tracing is off."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
from grpc import aio
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, ParentBased

from countinghouse.order.v1 import order_pb2 as pb
from services.kernel.clock import CallDeadline, SystemClock
from services.kernel.errors import Aborted, FailedPrecondition
from services.kernel.principal import Principal, Role
from services.runtime import tracing
from services.runtime.database.database import Database
from services.runtime.database.group_commit import GroupCommit
from services.runtime.grpc import status
from services.runtime.grpc.batching import LIMIT, BatchedCalls, serve_each
from services.runtime.grpc.context import Call, current_call, current_ids, serving
from services.runtime.grpc.interceptors import StoredRefusal
from services.runtime.opentelemetry_tracer import BATCH_HEADER
from tests.spans import Spans, path_of, recorded

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRACEPARENT = f"00-{TRACE}-{SPAN}-01"
METHOD = "/countinghouse.order.v1.OrderService/ClaimOrder"
CLAIM, CLAIMS = "countinghouse.order.v1.OrderService/ClaimOrder", "countinghouse.order.v1.OrderService/ClaimOrders"


@pytest.fixture
def spans() -> Iterator[Spans]:
    with recorded() as kept:
        yield kept


def call() -> Call:
    return Call(METHOD, Principal("payment", Role.SERVICE), CallDeadline.after(30, SystemClock()))


class TestParents:
    """A trace begins with a call that comes in, or with a recovery."""

    def test_span_without_a_parent_is_not_made(self, spans: Spans) -> None:
        """Health checks and the worker's looks leave no traces."""
        with tracing.span("lock"), tracing.sql("read", "sqlite"), tracing.called(METHOD):
            assert tracing.outgoing() == ()
        assert spans.all == []

    def test_call_continues_the_trace_of_its_caller(self, spans: Spans) -> None:
        metadata = (("authorization", "Bearer x"), ("traceparent", TRACEPARENT), ("tracestate", "vendor=1"))
        with tracing.served(METHOD, lambda: metadata), tracing.called(METHOD):
            sent = dict(tracing.outgoing())
        called, served = spans.all
        assert (served.trace_id, served.parent_id, served.kind) == (TRACE, SPAN, "SERVER")
        assert (called.trace_id, called.parent_id, called.kind) == (TRACE, served.span_id, "CLIENT")
        assert sent == {"traceparent": f"00-{TRACE}-{called.span_id}-01", "tracestate": "vendor=1"}

    @pytest.mark.parametrize(
        "headers",
        [
            (),
            (("traceparent", "rubbish"),),
            (("traceparent", TRACEPARENT), ("traceparent", TRACEPARENT)),
            (("traceparent", f"ff-{TRACE}-{SPAN}-01"),),
            (("traceparent", TRACEPARENT.encode()),),
        ],
        ids=["none", "rubbish", "twice", "version", "bytes"],
    )
    def test_headers_that_name_no_trace_begin_one(self, spans: Spans, headers: tuple[tuple[str, Any], ...]) -> None:
        with tracing.served(METHOD, lambda: headers):
            pass
        (served,) = spans.all
        assert served.parent_id == ""
        assert served.trace_id != TRACE

    def test_caller_without_metadata_begins_a_trace(self, spans: Spans) -> None:
        with tracing.served(METHOD, lambda: None):
            pass
        assert len(spans.all) == 1

    def test_trace_that_is_not_sampled_goes_on_unsampled(self, spans: Spans) -> None:
        """Or each process below would decide anew, and half of a trace would be sent."""
        with tracing.served(METHOD, lambda: (("traceparent", f"00-{TRACE}-{SPAN}-00"),)), tracing.span("lock"):
            (sent,) = tracing.outgoing()
        assert re.fullmatch(rf"00-{TRACE}-[0-9a-f]{{16}}-00", sent[1])
        assert spans.all == []

    async def test_span_is_the_current_one_of_its_task_only(self, spans: Spans) -> None:
        async def one(name: str) -> None:
            with tracing.span(name):
                await asyncio.sleep(0)
                with tracing.span(f"{name} inside"):
                    await asyncio.sleep(0)

        with tracing.root("all"):
            await asyncio.gather(one("a"), one("b"))
        assert [path_of(span, spans.all) for span in spans.all if "inside" in span.name] == [
            ["all", "a", "a inside"],
            ["all", "b", "b inside"],
        ]


class TestOutcomes:
    """A span has the reason of an error, and nothing of its text."""

    def test_error_of_ours_is_named_by_its_reason(self, spans: Spans) -> None:
        with tracing.root("all"), pytest.raises(Aborted), tracing.span("lock"):
            raise Aborted("ORDER_LOCKED", "wang has it")
        lock = spans.one("lock")
        assert (lock.failed, lock.attributes["error.type"]) == (True, "ORDER_LOCKED")
        assert "wang" not in repr(lock)

    def test_other_error_is_named_by_its_type(self, spans: Spans) -> None:
        with pytest.raises(ZeroDivisionError), tracing.root("all"):
            raise ZeroDivisionError("secret")
        assert spans.one("all").attributes["error.type"] == "ZeroDivisionError"
        assert "secret" not in repr(spans.all)

    @pytest.mark.parametrize(
        ("code", "server_failed"), [("OK", False), ("ABORTED", False), ("INTERNAL", True), ("UNAVAILABLE", True)]
    )
    def test_status_of_a_call_is_an_error_as_gRPC_counts_it(  # noqa: N802
        self, spans: Spans, code: str, server_failed: bool
    ) -> None:
        """To its caller every status but OK; to its server only what is its own fault."""
        with tracing.served(METHOD, lambda: ()), tracing.called(METHOD) as made:
            made.answered(code, "" if code == "OK" else "REASON")
        with tracing.served(METHOD, lambda: ()):
            tracing.answered(code, "" if code == "OK" else "REASON")
        client, _, server = spans.all
        assert [span.attributes["rpc.response.status_code"] for span in (client, server)] == [code, code]
        assert (client.failed, server.failed) == (code != "OK", server_failed)
        assert client.attributes.get("error.type") == (None if code == "OK" else "REASON")


class TestGroupCommit:
    """What is committed for several callers."""

    async def test_single_item_is_committed_in_its_callers_trace(self, spans: Spans) -> None:
        async with Database("sqlite://") as database:

            async def commit(items: Sequence[str]) -> Sequence[str]:
                return await database.run(lambda _tx: _done(items))

            with tracing.root("Settle"):
                assert await GroupCommit(commit).run("a") == "a"
        assert path_of(spans.one("SQL write"), spans.all) == ["Settle", "commit", "SQL write"]
        assert spans.one("SQL write").attributes["db.system.name"] == "sqlite"

    async def test_batch_links_to_the_trace_of_each_item(self, spans: Spans) -> None:
        may_commit, begun = asyncio.Event(), asyncio.Semaphore(0)

        async def commit(items: Sequence[str]) -> Sequence[str]:
            begun.release()
            await may_commit.wait()
            with tracing.sql("write", "sqlite"):
                return items

        commits = GroupCommit(commit)

        async def settle(name: str) -> None:
            with tracing.root(name):
                await commits.run(name)

        first = asyncio.create_task(settle("a"))
        await begun.acquire()
        others = [asyncio.create_task(settle(name)) for name in "bcd"]
        await asyncio.sleep(0)
        may_commit.set()
        await asyncio.gather(first, *others)
        batch = spans.one("commit batch")
        items = [span for span in spans.named("commit") if span.trace_id != spans.one("a").trace_id]
        assert {span.trace_id for span in items} == {spans.one(name).trace_id for name in "bcd"}
        assert batch.links == {span.span_id for span in items}
        assert all(span.links == {batch.span_id} for span in items)
        assert batch.parent_id in {span.span_id for span in items}
        assert batch.attributes["countinghouse.batch.size"] == 3
        alone, together = spans.named("SQL write")
        assert path_of(alone, spans.all) == ["a", "commit", "SQL write"]
        assert together.parent_id == batch.span_id

    async def test_several_items_of_one_caller_are_no_batch(self, spans: Spans) -> None:
        async def commit(items: Sequence[str]) -> Sequence[str]:
            return items

        with tracing.root("PostBatch"):
            await GroupCommit(commit).run_all("abc")
        assert [span.name for span in spans.all] == ["commit", "PostBatch"]

    async def test_batch_of_callers_without_a_trace_makes_no_span(self, spans: Spans) -> None:
        async def commit(items: Sequence[str]) -> Sequence[str]:
            with tracing.sql("write", "sqlite"):
                return items

        commits = GroupCommit(commit)
        await asyncio.gather(*(commits.run(name) for name in "abc"))
        assert spans.all == []

    async def test_writer_is_no_task_of_the_caller_that_began_it(self, spans: Spans) -> None:
        """Its log lines and spans would have that caller's ids, also for the items of others."""
        contexts: list[tuple[str, tracing.Span | None]] = []

        async def commit(items: Sequence[str]) -> Sequence[str]:
            contexts.append((current_order(), tracing.current()))
            return items

        commits = GroupCommit(commit)
        mine = call()
        mine.concerns(order_id="o1")
        serving(mine)
        await commits.run("a")
        assert contexts == [("", None)]


class TestBatchedCalls:
    """Requests of several callers in one message."""

    async def test_batch_links_to_its_items_and_carries_their_traces(self, spans: Spans) -> None:
        peers = Peers()
        await peers.settle(*"abc")
        (single, _), (batch, sent) = peers.sent
        assert (single, batch) == (["a"], ["b", "c"])
        made = spans.one("ClaimOrder batch")
        items = [span for span in spans.named("ClaimOrder") if span.trace_id != spans.one("a").trace_id]
        assert made.links == {span.span_id for span in items}
        assert len(made.links) == 2
        assert all(span.links == {made.span_id} for span in items)
        named = [named_in(each) for each in sent[BATCH_HEADER].split(",")]
        assert sorted(named) == sorted((span.trace_id, span.span_id, True) for span in items)

    async def test_single_request_is_sent_in_its_callers_trace(self, spans: Spans) -> None:
        peers = Peers()
        await peers.settle("a")
        ((_, sent),) = peers.sent
        called = spans.one(CLAIM)
        assert path_of(called, spans.all) == ["a", "ClaimOrder", CLAIM]
        assert set(sent) == {"traceparent"}
        assert named_in(sent["traceparent"]) == (called.trace_id, called.span_id, True)

    async def test_sender_is_no_task_of_the_caller_that_began_it(self, spans: Spans) -> None:
        """Or what it logs would have that caller's ids, also of the requests of others."""
        peers = Peers()
        mine = call()
        mine.concerns(order_id="o1")
        serving(mine)
        await peers.settle("a")
        assert peers.orders == [""]

    async def test_served_request_of_a_batch_is_in_its_callers_trace(self, spans: Spans) -> None:
        other = f"00-{'1' * 32}-{'2' * 16}-01"
        headers = (("traceparent", f"00-{'3' * 32}-{'4' * 16}-01"), (BATCH_HEADER, f"{TRACEPARENT},{other}"))
        with tracing.served(f"{METHOD}s", lambda: headers):
            await served("o1", "o2")
        one, two = spans.named(CLAIM)
        assert [(span.trace_id, span.parent_id) for span in (one, two)] == [(TRACE, SPAN), ("1" * 32, "2" * 16)]
        assert [span.attributes["countinghouse.order_id"] for span in (one, two)] == ["o1", "o2"]
        assert {span.links for span in (one, two)} == {frozenset({spans.one(CLAIMS).span_id})}

    async def test_traces_of_the_largest_batch_pass_a_server(self, spans: Spans) -> None:
        """Beside a token, in the 8 KiB of metadata that gRPC takes."""
        seen: list[str] = []

        async def serve(_request: bytes, context: aio.ServicerContext[Any, Any]) -> bytes:
            seen.append(str(dict(context.invocation_metadata() or ())[BATCH_HEADER]))
            return b""

        server = aio.server()
        handlers: dict[str, Any] = {"Claim": grpc.unary_unary_rpc_method_handler(serve)}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("a.B", handlers),))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        with tracing.root("x"):
            items = [Item(tracing.root(str(number))) for number in range(LIMIT)]
            with tracing.batch("batch", items), tracing.called("/a.B/Claim"):
                metadata = (("authorization", "Bearer " + "t" * 2_000), *tracing.outgoing())
        try:
            async with aio.insecure_channel(f"127.0.0.1:{port}") as channel:
                claim: Any = channel.unary_unary("/a.B/Claim")
                await claim(b"", metadata=metadata, timeout=60)
        finally:
            await server.stop(None)
        assert len(seen[0].split(",")) == LIMIT

    @pytest.mark.parametrize("carried", ["", TRACEPARENT, f"{TRACEPARENT}," * 3, "rubbish,"])
    async def test_served_batch_that_names_no_traces_is_one_trace(self, spans: Spans, carried: str) -> None:
        headers = (("traceparent", TRACEPARENT), (BATCH_HEADER, carried))
        with tracing.served(f"{METHOD}s", lambda: headers):
            await served("o1", "o2")
        found = spans.named(CLAIM)
        assert len(found) == 2
        assert {span.parent_id for span in found} <= {spans.one(CLAIMS).span_id, ""}

    async def test_refused_request_of_a_batch_has_its_reason(self, spans: Spans) -> None:
        with tracing.served(f"{METHOD}s", lambda: ()):
            await served("refused", "stored")
        assert [span.attributes["error.type"] for span in spans.named(CLAIM)] == ["ORDER_LOCKED", "ORDER_NOT_PAYABLE"]
        assert not any(span.failed for span in spans.all)

    async def test_batch_of_unsampled_and_sampled_callers_links_to_the_sampled(self) -> None:
        peers = Peers()
        with recorded(ParentBased(ALWAYS_OFF, remote_parent_sampled=ALWAYS_ON)) as spans:
            sampled = (("traceparent", TRACEPARENT),)
            await peers.settle("a", "b", "c", headers={"c": sampled})
        (item,) = spans.named("ClaimOrder")
        assert spans.one("ClaimOrder batch").links == {item.span_id}
        carried = peers.sent[1][1][BATCH_HEADER].split(",")
        assert [named_in(each)[2] for each in carried] == [False, True]


class TestOff:
    """Without a tracer nothing is made or read."""

    def test_every_function_returns_at_once(self) -> None:
        def read() -> Any:
            raise AssertionError

        for made in (
            tracing.served(METHOD, read),
            tracing.http_request("POST", "/v1/orders", read),
            tracing.root("recover"),
            tracing.span("lock", order_id="o1"),
            tracing.called(METHOD),
            tracing.sql("write", "sqlite"),
            tracing.batch("batch", [Unread()]),
            tracing.item(METHOD, None, 0, 1),
        ):
            assert made is tracing.NO_SPAN
        with tracing.NO_SPAN as span:
            span.set(token=1)
            assert (tracing.current(), tracing.outgoing(), tracing.ids()) == (None, (), {})
        assert tracing.attempt_observer() is None

    def test_programs_load_nothing_of_opentelemetry(self) -> None:
        """A process without tracing has none of its modules, threads and memory."""
        program = (
            "import sys, services.payment.main, services.order.main, services.ledger.main, services.acquirer.main\n"
            "import services.gateway.composition, services.cli.gateway\n"
            "from services.runtime.trace_export import exporting\n"
            "with exporting('payment', 'payment-1'): pass\n"
            "print([name for name in sys.modules if name.startswith('opentelemetry')])"
        )
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=110)
        assert done.stdout.strip() == "[]"


@dataclass(slots=True)
class Item:
    """An item of a batch."""

    span: tracing.Span | None


class Unread:
    """An item whose span is not to be asked for."""

    @property
    def span(self) -> tracing.Span | None:
        raise AssertionError

    @span.setter
    def span(self, _span: tracing.Span | None) -> None:
        raise AssertionError


class Peers:
    """The order service, which answers when the first call and those behind it have come."""

    def __init__(self) -> None:
        self.sent: list[tuple[list[str], dict[str, str]]] = []
        self.orders: list[str] = []
        self._began, self._may_answer = asyncio.Semaphore(0), asyncio.Event()
        self._calls = BatchedCalls(
            self, _Method(METHOD), _Method(f"{METHOD}s"), pb.ClaimOrdersRequest, name="ClaimOrder"
        )

    async def call(self, method: Any, request: Any, _deadline: CallDeadline) -> Any:
        with tracing.called(method):
            orders = [each.order_id for each in getattr(request, "requests", [request])]
            self.sent.append((orders, dict(tracing.outgoing())))
            self.orders.append(current_order())
            self._began.release()
            await self._may_answer.wait()
        if not hasattr(request, "requests"):
            return pb.ClaimOrderResponse()
        return pb.ClaimOrdersResponse(outcomes=[pb.ClaimOrderOutcome(response=pb.ClaimOrderResponse()) for _ in orders])

    async def settle(self, *orders: str, headers: dict[str, Any] | None = None) -> None:
        """Claim each order in a trace of its own, named after it."""

        async def claim(order_id: str) -> None:
            given = (headers or {}).get(order_id, ())
            with tracing.served(f"/{order_id}", lambda: given):
                deadline = CallDeadline.after(30, SystemClock())
                await self._calls.call(pb.ClaimOrderRequest(order_id=order_id), deadline)

        tasks = [asyncio.create_task(claim(orders[0]))]
        await self._began.acquire()
        tasks += [asyncio.create_task(claim(order_id)) for order_id in orders[1:]]
        await asyncio.sleep(0)
        self._may_answer.set()
        await asyncio.gather(*tasks)


class _Method:
    def __init__(self, method: str) -> None:
        self.method = method

    async def __call__(self, _request: Any) -> Any:
        raise AssertionError


async def served(*orders: str) -> None:
    """Serve a batch of claims; the order `refused` is refused, and `stored` was."""

    async def serve(request: pb.ClaimOrderRequest, _context: object) -> pb.ClaimOrderResponse:
        current_call().concerns(order_id=request.order_id)
        if request.order_id == "refused":
            raise Aborted("ORDER_LOCKED", "wang has it")
        if request.order_id == "stored":
            raise StoredRefusal(status.stored_refusal(FailedPrecondition("ORDER_NOT_PAYABLE", "no")).body)
        return pb.ClaimOrderResponse()

    whole = call()
    whole.method = f"{METHOD}s"
    serving(whole)
    await serve_each([pb.ClaimOrderRequest(order_id=order_id) for order_id in orders], serve, pb.ClaimOrderOutcome)


def named_in(traceparent: str) -> tuple[str, str, bool]:
    """The trace, the span, and whether it is sampled: the first of the flags."""
    _, trace_id, span_id, flags = traceparent.split("-")
    return trace_id, span_id, bool(int(flags, 16) & 1)


def current_order() -> str:
    return current_ids().get("order_id", "")


async def _done(items: Sequence[str]) -> Sequence[str]:
    return items
