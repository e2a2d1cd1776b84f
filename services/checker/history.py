"""The history of a run: every call as its caller saw it, and the faults beside them; JSON, one event a line.

    callers, nemesis ──▶ HistoryWriter ──▶ history.jsonl ──▶ read_history ──▶ checks

| line | when | with |
|---|---|---|
| `run` | first | `format`, `seed`, `facts` of the run |
| `invoke` | just before a call is sent | `op`, `process`, `kind`, `arguments` |
| `ok` | it succeeded | `op`, `process`, `kind`, `answer` |
| `fail` | it was refused: it had no effect, and never will have | the same |
| `info` | unknown: a lost reply, or a failure that may have come after the effect | the same |
| `nemesis` | a fault is planned, begins or ends | `fault`, `phase`, `target`, `facts` |
| `end` | last | `events`: how many lines came before |

Each has `at_ns`, nanoseconds of one monotonic clock: that of the machine that records. An invocation without a
completion is an `info`. Fields with default values are left out; fields that are not in these tables are refused.

Invariants of a history that is read
1. Every operation has one invocation and at most one completion, which is not earlier.
2. `whole` is false if the recording broke off. What was kept is then still the beginning of the whole history, for
   lines are written in the order in which things happened, so what holds for the whole holds for it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from services.kernel.clock import Clock
from services.kernel.json_input import parse_json

FORMAT = 1
_BUFFER_BYTES = 1 << 16
_T = TypeVar("_T", bound="Arguments | Answer")


class MalformedHistory(ValueError):
    """A line that `HistoryWriter` cannot have written; the message has its number."""


class Outcome(StrEnum):
    """What a caller knows of its request."""

    OK = "ok"
    FAIL = "fail"
    INFO = "info"


class Phase(StrEnum):
    """The phase of a fault."""

    PLANNED = "planned"
    BEGUN = "begun"
    ENDED = "ended"


@dataclass(frozen=True, slots=True)
class Arguments:
    """What a caller asked for. Two calls under one key with other arguments are two payloads.

    Args:
        key: Request id, or the ticket a Pay is made with; empty for what only reads.
        clerk: The caller, by the name in its token.
        role: In lower case, like `cashier`. Keys belong to clerk and role together.
        expected_version: Of CancelOrder; 0: any.
    """

    order_id: str = ""
    payment_id: str = ""
    key: str = ""
    clerk: str = ""
    role: str = ""
    source: str = ""
    amount_minor: int = 0
    currency: str = ""
    payee_account_id: str = ""
    expected_version: int = 0


@dataclass(frozen=True, slots=True)
class Answer:
    """What a caller was answered; of a refusal also its metadata.

    Args:
        code: Name of the gRPC status code.
        reason: Of our ErrorInfo; empty: the answer was not one of ours.
        state: Of the order or payment, without its prefix: PAID, SUCCEEDED.
        clerk: The clerk that settled it.
        sha256: Hexadecimal digest of the response's bytes, or of the google.rpc.Status of a refusal.
    """

    code: str = "OK"
    reason: str = ""
    state: str = ""
    order_id: str = ""
    payment_id: str = ""
    round: int = 0
    version: int = 0
    amount_minor: int = 0
    currency: str = ""
    clerk: str = ""
    ticket: str = ""
    replayed: bool = False
    sha256: str = ""


#: The answer of a call that has none.
NO_ANSWER = Answer(code="")


@dataclass(slots=True)
class RecordedCall:
    """One call.

    Args:
        op: Its number in the history.
        process: The client that made it.
        kind: The method's name, like Settle.
        answered_ns: None: no answer came while it was recorded.
    """

    op: int
    process: str
    kind: str
    arguments: Arguments
    invoked_ns: int
    outcome: Outcome = Outcome.INFO
    answer: Answer = NO_ANSWER
    answered_ns: int | None = None


@dataclass(frozen=True, slots=True)
class Nemesis:
    """One moment of a fault.

    Args:
        fault: Like `kill`.
        target: Like `payment-1`; empty: all.
    """

    fault: str
    phase: Phase
    at_ns: int
    target: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class History:
    """A recorded run.

    Args:
        calls: In the order of their invocations.
        whole: Whether the recorder closed it; otherwise something may be missing at the end.
    """

    calls: tuple[RecordedCall, ...]
    nemesis: tuple[Nemesis, ...] = ()
    seed: int = 0
    facts: Mapping[str, Any] = field(default_factory=dict)
    whole: bool = True


# What an answer shows of the effect

#: Refusals without an effect, which the same request will always get, or which never let it begin.
_DEFINITIVE_CODES = frozenset(
    {"INVALID_ARGUMENT", "NOT_FOUND", "ALREADY_EXISTS", "PERMISSION_DENIED", "FAILED_PRECONDITION", "UNAUTHENTICATED"}
)
#: Transient refusals that come before any effect. STALE_FENCE is none of them: it comes after the claim.
_BEFORE_ANYTHING = frozenset({"REQUEST_IN_PROGRESS", "ORDER_LOCKED", "STALE_VERSION"})
#: The role that gets ORDER_NOT_FOUND for orders of other customers.
CUSTOMER = "customer"
#: The state in which a payment has ended; in any other, OK means that the outcome is not known yet.
_ENDED_STATES = {"Settle": "SUCCEEDED", "Pay": "SUCCEEDED", "Reverse": "REVERSED", "Park": "PARKED"}


def outcome_of(kind: str, answer: Answer) -> Outcome:
    """Return what this answer tells the caller of `kind`. UNAVAILABLE is no failure: it may come after the effect."""
    if answer.code == "OK":
        return Outcome.OK if _ENDED_STATES.get(kind, answer.state) == answer.state else Outcome.INFO
    before_anything = answer.code == "ABORTED" and answer.reason in _BEFORE_ANYTHING
    if before_anything or (answer.reason and answer.code in _DEFINITIVE_CODES):
        return Outcome.FAIL
    return Outcome.INFO


def is_stored(call: RecordedCall) -> bool:
    """Return whether this refusal is stored, and so the answer to its request for ever.

    ORDER_NOT_FOUND is stored for a clerk's Settle. A customer gets it before the request is run. For a clerk's Pay it
    depends: with a `customer_id` the order is looked up first, and the ticket stays open; without one the answer is
    stored. The history does not show which, so it is not taken for stored.
    """
    answer = call.answer
    if answer.reason == "ORDER_NOT_FOUND":
        return call.kind == "Settle" and call.arguments.role != CUSTOMER
    return answer.code in ("ALREADY_EXISTS", "FAILED_PRECONDITION") and answer.reason != "TICKET_EXPIRED"


# Writing


@dataclass(frozen=True, slots=True)
class Invoked:
    """A call that has not been answered yet."""

    op: int
    process: str
    kind: str


class HistoryWriter:
    """Writes a new history. Not thread-safe.

    Lines are buffered and written some dozens of KiB at a time, so that no call waits for the disk. A recorder that is
    killed loses the end of its history and nothing of its beginning.

    Args:
        path: A new file: times of two runs do not compare.

    Raises:
        FileExistsError: The file exists.
    """

    def __init__(self, path: Path, clock: Clock, *, seed: int = 0, facts: Mapping[str, Any] | None = None) -> None:
        self._file = path.open("xb", buffering=0)
        self._clock = clock
        self._lines: list[bytes] = []
        self._waiting_bytes = 0
        self._events = 0
        self._ops = 0
        self._write("run", {"format": FORMAT, "seed": seed, "facts": dict(facts or {})})

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self.close()

    def invoke(self, process: str, kind: str, arguments: Arguments) -> Invoked:
        """Record that a call is about to be sent."""
        self._ops += 1
        self._write("invoke", {"op": self._ops, "process": process, "kind": kind, "arguments": _non_default(arguments)})
        return Invoked(self._ops, process, kind)

    def complete(self, invoked: Invoked, answer: Answer, outcome: Outcome | None = None) -> Outcome:
        """Record an answer, and return what its caller knows by it.

        Args:
            answer: NO_ANSWER, or one with the transport's code, if none of ours came.
            outcome: None: as `outcome_of` says.
        """
        known = outcome or outcome_of(invoked.kind, answer)
        told = {"op": invoked.op, "process": invoked.process, "kind": invoked.kind, "answer": _non_default(answer)}
        self._write(known, told)
        return known

    def nemesis(self, fault: str, phase: Phase, target: str = "", **facts: Any) -> None:
        """Record that a fault is planned, begins or ends."""
        self._write("nemesis", {"fault": fault, "phase": phase, "target": target, "facts": facts})

    def flush(self) -> None:
        """Write the buffer to the file."""
        if self._lines:
            self._file.write(b"".join(self._lines))
            self._lines.clear()
            self._waiting_bytes = 0

    def close(self) -> None:
        if not self._file.closed:
            self._write("end", {"events": self._events})
            self.flush()
            os.fsync(self._file.fileno())  # it is evidence: it must survive a crash of the machine
            self._file.close()

    def _write(self, type_: str, event: dict[str, Any]) -> None:
        at_ns = round(self._clock.monotonic_s() * 1e9)
        line = json.dumps({"type": type_, "at_ns": at_ns, **event}, ensure_ascii=False, separators=(",", ":"))
        self._lines.append(line.encode() + b"\n")
        self._events += 1
        self._waiting_bytes += len(self._lines[-1])
        if self._waiting_bytes >= _BUFFER_BYTES:
            self.flush()


def _non_default(message: Arguments | Answer) -> dict[str, Any]:
    """Return the fields that differ from their defaults."""
    parts = ((part.name, getattr(message, part.name), part.default) for part in fields(message))
    return {name: value for name, value, default in parts if value != default}


# Reading


def read_history(path: Path) -> History:
    """Read a history, without a last line that was cut off.

    Raises:
        OSError: The file cannot be read.
        MalformedHistory: A line is not as this module says.
    """
    reading = _Reading()
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                reading.take(_event(line))
            except MalformedHistory as error:
                raise MalformedHistory(f"{path}, line {number}: {error}") from None
            except ValueError as error:
                if line.endswith(b"\n"):
                    raise MalformedHistory(f"{path}, line {number}: no JSON: {error}") from None
    try:
        return reading.history()
    except MalformedHistory as error:
        raise MalformedHistory(f"{path}: {error}") from None


class _Reading:
    def __init__(self) -> None:
        self._calls: dict[int, RecordedCall] = {}
        self._nemesis: list[Nemesis] = []
        self._run: dict[str, Any] | None = None
        self._events = 0
        self._ended = False

    def take(self, event: dict[str, Any]) -> None:
        if self._ended:
            raise MalformedHistory("it comes after the end")
        type_ = event.pop("type", None)
        if (type_ == "run") != (self._run is None):
            raise MalformedHistory("a history begins with its one `run`")
        at_ns = _of(event, "at_ns", int)
        match type_:
            case "run":
                self._begin(event)
            case "invoke":
                self._invoke(event, at_ns)
            case "ok" | "fail" | "info":
                self._complete(event, at_ns, Outcome(type_))
            case "nemesis":
                self._nemesis.append(_nemesis(event, at_ns))
            case "end":
                self._end(event)
            case _:
                raise MalformedHistory(f"its type is {type_!r}")
        if event:
            raise MalformedHistory(f"{type_} has no {', '.join(event)}")
        self._events += 1

    def history(self) -> History:
        if self._run is None:
            raise MalformedHistory("the file is empty")
        calls = sorted(self._calls.values(), key=lambda call: (call.invoked_ns, call.op))
        run = self._run
        return History(tuple(calls), tuple(self._nemesis), run["seed"], run["facts"], self._ended)

    def _begin(self, event: dict[str, Any]) -> None:
        if (format_ := _of(event, "format", int)) != FORMAT:
            raise MalformedHistory(f"its format is {format_}, and only {FORMAT} is known")
        self._run = {"seed": _of(event, "seed", int), "facts": _of(event, "facts", dict)}

    def _end(self, event: dict[str, Any]) -> None:
        if (events := _of(event, "events", int)) != self._events:
            raise MalformedHistory(f"{events} events should have come before, and {self._events} did")
        self._ended = True

    def _invoke(self, event: dict[str, Any], at_ns: int) -> None:
        op, process, kind = _of(event, "op", int), _of(event, "process", str), _of(event, "kind", str)
        if op in self._calls:
            raise MalformedHistory(f"operation {op} is invoked twice")
        arguments = _message(Arguments, _of(event, "arguments", dict))
        self._calls[op] = RecordedCall(op, process, kind, arguments, at_ns)

    def _complete(self, event: dict[str, Any], at_ns: int, outcome: Outcome) -> None:
        op, process, kind = _of(event, "op", int), _of(event, "process", str), _of(event, "kind", str)
        call = self._calls.get(op)
        if call is None:
            raise MalformedHistory(f"operation {op} is answered and was not invoked")
        if (process, kind) != (call.process, call.kind):
            raise MalformedHistory(f"operation {op} is {call.kind} of {call.process}")
        if call.answered_ns is not None:
            raise MalformedHistory(f"operation {op} is answered twice")
        if at_ns < call.invoked_ns:
            raise MalformedHistory(f"operation {op} is answered before it was invoked")
        call.outcome, call.answered_ns = outcome, at_ns
        call.answer = _message(Answer, _of(event, "answer", dict))


def _event(line: bytes) -> dict[str, Any]:
    event = parse_json(line)
    if not isinstance(event, dict):
        raise MalformedHistory("no JSON object")
    return event


def _nemesis(event: dict[str, Any], at_ns: int) -> Nemesis:
    fault, phase = _of(event, "fault", str), _of(event, "phase", str)
    if phase not in list(Phase):
        raise MalformedHistory(f"its phase is {phase!r}")
    return Nemesis(fault, Phase(phase), at_ns, _of(event, "target", str), _of(event, "facts", dict))


def _of(event: dict[str, Any], name: str, kind: type) -> Any:
    """Take a field out of an event."""
    value = event.pop(name, None)
    if type(value) is not kind:
        raise MalformedHistory(f"{name} is no {kind.__name__}: {value!r}")
    return value


def _defaults(kind: type[Arguments | Answer]) -> Iterator[tuple[str, type]]:
    for part in fields(kind):
        yield part.name, type(part.default)


_KINDS: dict[type, dict[str, type]] = {kind: dict(_defaults(kind)) for kind in (Arguments, Answer)}


def _message(kind: type[_T], told: dict[str, Any]) -> _T:
    kinds = _KINDS[kind]
    for name, value in told.items():
        if type(value) is not kinds.get(name):
            raise MalformedHistory(f"{kind.__name__.lower()} have no {name} like {value!r}")
    return kind(**told)
