"""The exit codes. The one table: `--help` is made from it, and README is compared with it."""

from __future__ import annotations

from enum import IntEnum

from services.kernel.errors import FailedPrecondition, InvalidArgument, OutcomeUnknown


class ExitCode(IntEnum):
    """An exit code and its meaning."""

    meaning: str

    def __new__(cls, code: int, meaning: str) -> ExitCode:
        member = int.__new__(cls, code)
        member._value_ = code
        member.meaning = meaning
        return member

    DONE = 0, "done: the payment SUCCEEDED, the reversal is REVERSED, the verdict is ok"
    FAILED = 1, "refused or failed, and nothing was done; or what was examined is not as it should be"
    NOT_RUN = 2, "wrong usage, or no stack to ask; of a verdict (check, chaos, demo): unknown"
    OUTCOME_UNKNOWN = 3, "not known yet whether it was done: ask again with the same --request-id"
    NOT_PAID = 4, "answered, and the money did not move as asked: declined, or not reversed"
    ANSWER_LOST = 5, "done, and the answer could not be written"
    DEFECT = 70, "a defect of this program, with a traceback; what it had asked for may have been done"
    INTERRUPTED = 130, "interrupted"


#: States of a payment whose end is known. Any other, such as one that only a newer service knows, may end either way.
_ENDED = ("SUCCEEDED", "DECLINED", "REVERSED")
_VERDICTS = {"ok": ExitCode.DONE, "violated": ExitCode.FAILED, "unknown": ExitCode.NOT_RUN}


class NotPaid(FailedPrecondition):
    """The answer is that the money did not move as asked: declined, or not reversed. No refusal by state."""

    @classmethod
    def of(cls, refusal: FailedPrecondition) -> NotPaid:
        """Return the refusal of a service as one of this kind."""
        return cls(refusal.reason, refusal.message, metadata=refusal.metadata)


class WrongUsage(InvalidArgument):
    """A server refused what was typed: the message names the flag."""


class Interrupted(OutcomeUnknown):
    """A signal ended the command while it was changing something."""


def of_payment(state: str, wanted: str) -> ExitCode:
    """Return the code of a command that wanted a payment in one state and got another.

    Args:
        state: As the enum has it, with its prefix or without: PAYMENT_STATE_SUCCEEDED, SUCCEEDED; or a number that this
            version does not know.
        wanted: Likewise.
    """
    told = state.removeprefix("PAYMENT_STATE_")
    if told == wanted.removeprefix("PAYMENT_STATE_"):
        return ExitCode.DONE
    return ExitCode.NOT_PAID if told in _ENDED else ExitCode.OUTCOME_UNKNOWN


def of_verdict(verdict: str) -> ExitCode:
    """Return the code of a verdict: ok, violated or unknown."""
    return _VERDICTS[verdict]


def table() -> str:
    """Return every code and its meaning, one a line, as `--help` shows them."""
    return "\n\n".join(f"{code.value}: {code.meaning}" for code in ExitCode)
