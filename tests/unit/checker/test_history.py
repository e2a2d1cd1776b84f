"""The history's file: what the recorder writes is what is read, and what it cannot have written is refused."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from services.checker import history as module
from services.checker.history import (
    NO_ANSWER,
    Answer,
    Arguments,
    History,
    HistoryWriter,
    MalformedHistory,
    Nemesis,
    Outcome,
    Phase,
    RecordedCall,
    is_stored,
    outcome_of,
    read_history,
)
from services.kernel.clock import SystemClock
from tests.fakes.clock import ManualClock

_SETTLE = Arguments(order_id="o1", key="s1", clerk="li", role="cashier", source="DRAWER")
_NO_ORDER = Answer("NOT_FOUND", "ORDER_NOT_FOUND")
_PAID = Answer(state="SUCCEEDED", payment_id="p1", round=1, version=3, sha256="ab", replayed=True)
_INVOKE = {"type": "invoke", "at_ns": 5, "op": 1, "process": "p", "kind": "Settle", "arguments": {"key": "s1"}}
_OK = {"type": "ok", "at_ns": 6, "op": 1, "process": "p", "kind": "Settle", "answer": {"state": "SUCCEEDED"}}
_RUN = {"type": "run", "at_ns": 1, "format": 1, "seed": 7, "facts": {}}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "history.jsonl"


def write(path: Path, *events: Any, end: str = "\n") -> None:
    """Lines as they are; the last one ends as is said."""
    lines = [event if isinstance(event, str) else json.dumps(event) for event in events]
    path.write_text("\n".join(lines) + end)


class TestRecording:
    """What is written comes back."""

    def test_everything_recorded_is_read(self, path: Path) -> None:
        clock = ManualClock(1_000)
        with HistoryWriter(path, clock, seed=7, facts={"replicas": 2}) as writer:
            writer.nemesis("kill", Phase.PLANNED, "payment-1", after_s=3)
            call = writer.invoke("c1", "Settle", _SETTLE)
            clock.advance(2)
            writer.nemesis("kill", Phase.BEGUN, "payment-1")
            lost = writer.invoke("c2", "GetOrder", Arguments(order_id="茶"))
            assert writer.complete(call, _PAID) is Outcome.OK
            clock.advance(1)
            assert writer.complete(lost, NO_ANSWER) is Outcome.INFO
            writer.invoke("c2", "GetOrder", Arguments(order_id="o1"))
            writer.nemesis("freeze", Phase.ENDED)
        assert read_history(path) == History(
            calls=(
                RecordedCall(1, "c1", "Settle", _SETTLE, 1_000_000_000, Outcome.OK, _PAID, 1_002_000_000),
                RecordedCall(
                    2, "c2", "GetOrder", Arguments(order_id="茶"), 1_002_000_000, Outcome.INFO, NO_ANSWER, 1_003_000_000
                ),
                RecordedCall(3, "c2", "GetOrder", Arguments(order_id="o1"), 1_003_000_000),
            ),
            nemesis=(
                Nemesis("kill", Phase.PLANNED, 1_000_000_000, "payment-1", {"after_s": 3}),
                Nemesis("kill", Phase.BEGUN, 1_002_000_000, "payment-1"),
                Nemesis("freeze", Phase.ENDED, 1_003_000_000, ""),
            ),
            seed=7,
            facts={"replicas": 2},
            whole=True,
        )

    def test_line_is_short(self, path: Path) -> None:
        """What differs from the defaults is written, and nothing else."""
        with HistoryWriter(path, ManualClock(2)) as writer:
            writer.complete(writer.invoke("c1", "GetOrder", Arguments(order_id="o1")), Answer(state="PAID"))
        assert path.read_text().splitlines() == [
            '{"type":"run","at_ns":2000000,"format":1,"seed":0,"facts":{}}',
            '{"type":"invoke","at_ns":2000000,"op":1,"process":"c1","kind":"GetOrder","arguments":{"order_id":"o1"}}',
            '{"type":"ok","at_ns":2000000,"op":1,"process":"c1","kind":"GetOrder","answer":{"state":"PAID"}}',
            '{"type":"end","at_ns":2000000,"events":3}',
        ]

    def test_fault_is_a_line(self, path: Path) -> None:
        """In words that people read as they stand."""
        with HistoryWriter(path, ManualClock(2)) as writer:
            for phase in Phase:
                writer.nemesis("停电", phase, "茶")
        assert path.read_text(encoding="utf-8").splitlines()[1:-1] == [
            f'{{"type":"nemesis","at_ns":2000000,"fault":"停电","phase":"{phase}","target":"茶","facts":{{}}}}'
            for phase in ("planned", "begun", "ended")
        ]

    def test_outcome_may_be_given(self, path: Path) -> None:
        """Whoever knows better than the table."""
        with HistoryWriter(path, SystemClock()) as writer:
            assert writer.complete(writer.invoke("c", "Settle", _SETTLE), NO_ANSWER, Outcome.FAIL) is Outcome.FAIL
        assert read_history(path).calls[0].outcome is Outcome.FAIL

    def test_nothing_is_written_over(self, path: Path) -> None:
        """Times of two runs do not compare."""
        path.write_text("kept")
        with pytest.raises(FileExistsError):
            HistoryWriter(path, SystemClock())
        assert path.read_text() == "kept"

    def test_lines_wait_in_memory_until_there_are_enough(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Nobody waits for the disk call by call; `flush` hands over what there is."""
        monkeypatch.setattr(module, "_BUFFER_BYTES", 400)
        writer = HistoryWriter(path, ManualClock(2))
        writer.invoke("c", "Settle", _SETTLE)
        assert path.read_bytes() == b""
        writer.invoke("c", "Settle", _SETTLE)
        writer.invoke("c", "Settle", _SETTLE)
        written = path.read_bytes()
        assert written.count(b"\n") == 4
        writer.invoke("c", "Settle", _SETTLE)
        assert path.read_bytes() == written
        writer.flush()
        assert path.read_bytes().count(b"\n") == 5
        writer.flush()
        writer.close()
        assert len(read_history(path).calls) == 4
        writer.close()
        assert path.read_bytes().count(b"end") == 1

    def test_lines_are_written_once_they_fill_the_buffer(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """To the byte, at first and again after each time."""
        clock = ManualClock(2)
        with HistoryWriter(path, clock) as measured:
            measured.invoke("c", "Settle", _SETTLE)
        run, invoked, _end = path.read_bytes().splitlines(keepends=True)
        path.unlink()

        monkeypatch.setattr(module, "_BUFFER_BYTES", len(run + invoked))
        writer = HistoryWriter(path, clock)
        writer.invoke("c", "Settle", _SETTLE)
        assert path.read_bytes() == run + invoked
        monkeypatch.setattr(module, "_BUFFER_BYTES", len(invoked) + 1)
        writer.invoke("c", "Settle", _SETTLE)
        assert path.read_bytes() == run + invoked
        writer.close()

        path.unlink()
        monkeypatch.setattr(module, "_BUFFER_BYTES", len(run + invoked) + 1)
        writer = HistoryWriter(path, clock)
        writer.invoke("c", "Settle", _SETTLE)
        assert path.read_bytes() == b""
        writer.close()


class TestReading:
    """What no recorder of ours has written is refused, with the number of its line."""

    def test_last_line_that_was_cut_off_is_left_out(self, path: Path) -> None:
        """The recorder was killed while it wrote; what it had written before counts."""
        write(path, _RUN, _INVOKE, json.dumps(_OK)[:-7], end="")
        history = read_history(path)
        assert not history.whole
        assert [call.outcome for call in history.calls] == [Outcome.INFO]
        assert history.calls[0].answered_ns is None

    def test_last_line_that_was_cut_off_within_a_character_is_left_out(self, path: Path) -> None:
        whole = json.dumps(_INVOKE | {"process": "茶"}, ensure_ascii=False).encode()
        path.write_bytes(json.dumps(_RUN).encode() + b"\n" + whole[: whole.index("茶".encode()) + 1])
        assert read_history(path).calls == ()

    def test_missing_field_has_its_default(self, path: Path) -> None:
        """The defaults are part of the format: what one version leaves out, another fills in."""
        write(path, _RUN, _INVOKE | {"arguments": {}}, _OK | {"answer": {}})
        (call,) = read_history(path).calls
        texts = ("order_id", "payment_id", "key", "clerk", "role", "source", "currency", "payee_account_id")
        assert asdict(call.arguments) == dict.fromkeys(texts, "") | {"amount_minor": 0, "expected_version": 0}
        texts = ("reason", "state", "order_id", "payment_id", "currency", "clerk", "ticket", "sha256")
        numbers = dict.fromkeys(("round", "version", "amount_minor"), 0)
        assert asdict(call.answer) == dict.fromkeys(texts, "") | numbers | {"code": "OK", "replayed": False}
        assert Nemesis("kill", Phase.BEGUN, 1).target == ""
        assert History(()).seed == 0

    def test_history_without_its_end_is_not_whole(self, path: Path) -> None:
        write(path, _RUN, _INVOKE, _OK)
        history = read_history(path)
        assert not history.whole
        assert history.calls[0].outcome is Outcome.OK

    def test_last_line_without_its_line_feed_counts(self, path: Path) -> None:
        write(path, _RUN, _INVOKE, _OK, end="")
        assert read_history(path).calls[0].outcome is Outcome.OK

    def test_operations_are_in_the_order_of_their_beginnings(self, path: Path) -> None:
        write(path, _RUN, _INVOKE, _INVOKE | {"op": 3, "at_ns": 2}, _INVOKE | {"op": 2, "at_ns": 2})
        assert [call.op for call in read_history(path).calls] == [2, 3, 1]

    @pytest.mark.parametrize(
        ("events", "words"),
        [
            ([_RUN, "[]"], "line 2: no JSON object"),
            ([_INVOKE], "line 1: a history begins with its one `run`"),
            ([_RUN, _RUN], "line 2: a history begins with its one `run`"),
            ([_RUN | {"format": 2}], "line 1: its format is 2, and only 1 is known"),
            ([_RUN | {"seed": "7"}], "line 1: seed is no int: '7'"),
            ([_RUN | {"facts": 7}], "line 1: facts is no dict: 7"),
            ([_RUN, _INVOKE | {"type": "call"}], "line 2: its type is 'call'"),
            ([_RUN, _INVOKE | {"at_ns": 1.5}], "line 2: at_ns is no int: 1.5"),
            ([_RUN, _INVOKE | {"at_ns": True}], "line 2: at_ns is no int: True"),
            ([_RUN, {"type": "invoke", "at_ns": 1}], "line 2: op is no int: None"),
            ([_RUN, _INVOKE | {"process": 3}], "line 2: process is no str: 3"),
            ([_RUN, _INVOKE | {"speed": 3}], "line 2: invoke has no speed"),
            ([_RUN, _INVOKE | {"speed": 3, "colour": "red"}], "line 2: invoke has no speed, colour"),
            ([_RUN, _INVOKE | {"arguments": {"colour": "red"}}], "line 2: arguments have no colour like 'red'"),
            ([_RUN, _INVOKE | {"arguments": {"key": 3}}], "line 2: arguments have no key like 3"),
            ([_RUN, _INVOKE, _INVOKE], "line 3: operation 1 is invoked twice"),
            ([_RUN, _OK], "line 2: operation 1 is answered and was not invoked"),
            ([_RUN, _INVOKE, _OK, _OK], "line 4: operation 1 is answered twice"),
            ([_RUN, _INVOKE, _OK | {"at_ns": 4}], "line 3: operation 1 is answered before it was invoked"),
            ([_RUN, _INVOKE, _OK | {"process": "q"}], "line 3: operation 1 is Settle of p"),
            ([_RUN, _INVOKE, _OK | {"kind": "Pay"}], "line 3: operation 1 is Settle of p"),
            ([_RUN, _INVOKE, _OK | {"answer": {"replayed": 1}}], "line 3: answer have no replayed like 1"),
            ([_RUN, {"type": "end", "at_ns": 9, "events": 2}], "line 2: 2 events should have come before, and 1 did"),
            ([_RUN, {"type": "end", "at_ns": 9, "events": 1}, _INVOKE], "line 3: it comes after the end"),
            (
                [_RUN, {"type": "nemesis", "at_ns": 9, "fault": "kill", "phase": "soon", "target": "", "facts": {}}],
                "line 2: its phase is 'soon'",
            ),
        ],
    )
    def test_malformed_line_is_named(self, path: Path, events: list[Any], words: str) -> None:
        write(path, *events)
        with pytest.raises(MalformedHistory) as refused:
            read_history(path)
        assert str(refused.value) == f"{path}, {words}"

    @pytest.mark.parametrize("line", ["{", "", pytest.param("[" * 20_000, id="deep")])
    def test_line_that_is_no_json_is_named(self, path: Path, line: str) -> None:
        write(path, _RUN, line, _INVOKE)
        with pytest.raises(MalformedHistory) as refused:
            read_history(path)
        assert str(refused.value).startswith(f"{path}, line 2: no JSON: ")

    def test_answer_may_come_in_the_same_nanosecond(self, path: Path) -> None:
        write(path, _RUN, _INVOKE, _OK | {"at_ns": 5})
        assert read_history(path).calls[0].answered_ns == 5

    def test_empty_file_is_no_history(self, path: Path) -> None:
        path.write_bytes(b"")
        with pytest.raises(MalformedHistory, match=rf"^{re.escape(str(path))}: the file is empty$"):
            read_history(path)


class TestOutcomes:
    """What a caller knows by an answer."""

    @pytest.mark.parametrize(
        ("kind", "answer", "outcome"),
        [
            ("Settle", Answer(state="SUCCEEDED"), Outcome.OK),
            ("Pay", Answer(state="SUCCEEDED"), Outcome.OK),
            ("Reverse", Answer(state="REVERSED"), Outcome.OK),
            ("Park", Answer(state="PARKED"), Outcome.OK),
            ("GetPayment", Answer(state="UNKNOWN"), Outcome.OK),
            ("GetOrder", Answer(state="PAYING"), Outcome.OK),
            ("CreateOrder", Answer(state="UNPAID"), Outcome.OK),
            ("Settle", Answer(state="UNKNOWN"), Outcome.INFO),
            ("Settle", Answer(state="CREATED"), Outcome.INFO),
            ("Pay", Answer(state="SUBMITTED"), Outcome.INFO),
            ("Reverse", Answer(state="REVERSING"), Outcome.INFO),
            ("Park", Answer(state="UNKNOWN"), Outcome.INFO),
            ("Reverse", Answer(state="SUCCEEDED"), Outcome.INFO),
            ("Settle", Answer("ALREADY_EXISTS", "ORDER_ALREADY_PAID"), Outcome.FAIL),
            ("Settle", Answer("FAILED_PRECONDITION", "INSUFFICIENT_FUNDS"), Outcome.FAIL),
            ("Settle", Answer("INVALID_ARGUMENT", "IDEMPOTENCY_KEY_MISMATCH"), Outcome.FAIL),
            ("GetOrder", Answer("NOT_FOUND", "ORDER_NOT_FOUND"), Outcome.FAIL),
            ("Settle", Answer("PERMISSION_DENIED", "SOURCE_NOT_ALLOWED"), Outcome.FAIL),
            ("Settle", Answer("UNAUTHENTICATED", "TOKEN_REQUIRED"), Outcome.FAIL),
            ("Settle", Answer("ABORTED", "REQUEST_IN_PROGRESS"), Outcome.FAIL),
            ("Settle", Answer("ABORTED", "ORDER_LOCKED"), Outcome.FAIL),
            ("CancelOrder", Answer("ABORTED", "STALE_VERSION"), Outcome.FAIL),
            ("Settle", Answer("ABORTED", "STALE_FENCE"), Outcome.INFO),
            ("Settle", Answer("ABORTED", "ORDER_LOCK_LOST"), Outcome.INFO),
            ("Settle", Answer("UNAVAILABLE", "DATABASE_UNAVAILABLE"), Outcome.INFO),
            ("Settle", Answer("UNAVAILABLE", "ORDER_LOCKED"), Outcome.INFO),
            ("Settle", Answer("NOT_FOUND", ""), Outcome.INFO),
            ("Settle", Answer("DEADLINE_EXCEEDED", ""), Outcome.INFO),
            ("Settle", Answer("INTERNAL", ""), Outcome.INFO),
            ("Settle", NO_ANSWER, Outcome.INFO),
        ],
    )
    def test_answer_decides_on_the_outcome(self, kind: str, answer: Answer, outcome: Outcome) -> None:
        """Whatever may have come after the effect is not known; what the transport says is not believed."""
        assert outcome_of(kind, answer) is outcome

    @pytest.mark.parametrize(
        ("kind", "role", "answer", "stored"),
        [
            ("CreateOrder", "cashier", Answer("ALREADY_EXISTS", "ORDER_EXISTS"), True),
            ("Reverse", "accountant", Answer("FAILED_PRECONDITION", "ILLEGAL_STATE"), True),
            ("Pay", "cashier", Answer("FAILED_PRECONDITION", "TICKET_EXPIRED"), False),
            ("Settle", "cashier", Answer("ABORTED", "ORDER_LOCKED"), False),
            ("Settle", "cashier", Answer("INVALID_ARGUMENT", "IDEMPOTENCY_KEY_MISMATCH"), False),
            ("Settle", "cashier", Answer("NOT_FOUND", "ACCOUNT_NOT_FOUND"), False),
            ("Settle", "cashier", _NO_ORDER, True),
            ("Settle", "accountant", _NO_ORDER, True),
            ("Settle", "customer", _NO_ORDER, False),
            ("Pay", "cashier", _NO_ORDER, False),
            ("CancelOrder", "cashier", _NO_ORDER, False),
        ],
    )
    def test_some_refusals_are_the_answer_for_ever(self, kind: str, role: str, answer: Answer, stored: bool) -> None:
        call = RecordedCall(1, "li-1", kind, replace(_SETTLE, role=role), 1, Outcome.FAIL, answer, 2)
        assert is_stored(call) is stored
