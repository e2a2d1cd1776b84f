"""All checks by name, and what must be true after any run. No I/O.

A check counts what it examined, and reports each violation in a sentence. One without its evidence is skipped, with
the reason.

| must be true | check |
|---|---|
| postings sum to zero per journal, currency and overall; a journal has two legs or more | postings balance |
| journals are unaltered | journals unaltered |
| settle journals less reversals per order are 0 or 1 | settled, reversed at most once; business keys unique |
| PAID ⇔ one SUCCEEDED payment ⇔ one settle journal, same amount | paid means charged, payments match journals |
| acquirer = ledger = order | cards agree, acquirer log whole, charged once per key, acquirer agrees with ledger |
| every acknowledged success is in the ledger | answers are true, acknowledged is kept |
| every definitive refusal had no effect | answers are true, refused without effect, refusals kept |
| replays are byte-identical, mismatches were refused | replays identical, mismatches refused, one charge per key |
| fences never fall | fences never fall |
| versions have no gap, states only legal moves | moves are legal, reads were written, reads go forward |
| every change names its actor, and a reversal its reason | changes are signed |
| no request DONE without a response, none IN_PROGRESS past its lease | requests are whole, leases are kept |
| nothing SUBMITTED, UNKNOWN, REVERSING, PARKED beyond the recovery bound | nothing left over |
| balances are true, no limit was broken at any prefix | balances true |
| every outbox row was delivered once | outbox delivered once, nothing left over |
| each order's history is linearizable | orders linearizable |
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from services.checker.acquirer_log import AcquirerLog
from services.checker.checks import acquirer as acquirer_checks
from services.checker.checks import answers as answer_checks
from services.checker.checks import ledger, settlement, trail
from services.checker.checks.cards import cards_agree
from services.checker.checks.orders import orders_linearizable
from services.checker.evidence import Answered, Evidence
from services.checker.findings import Check, Findings
from services.checker.history import History
from services.checker.snapshot import Snapshot
from services.kernel.clock import Clock, SystemClock

_DEFAULT_LIMIT_S = 10.0
_NO_HISTORY = "no history was given"
_NO_LOG = "the acquirer's log was not read"

#: Called with the check that runs, how many things it has examined, and of how many.
OnProgress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Options:
    """How the checks are run.

    Args:
        clock: For the limits on time.
        order_limit_s: How long the search for a linearization of one order may take.
        on_progress: Called with how far it is.
    """

    clock: Clock
    order_limit_s: float = _DEFAULT_LIMIT_S
    on_progress: OnProgress = lambda _name, _done, _of: None


def run_checks(
    snapshot: Snapshot,
    answers: Iterable[Answered] = (),
    *,
    history: History | None = None,
    acquirer: AcquirerLog | None = None,
    now_ms: int = 0,
    ended: bool = True,
    restored: bool = False,
    options: Options | None = None,
) -> list[Check]:
    """Run all checks, in the order in which a reader wants them.

    Args:
        answers: Definitive answers, beside those in the history.
        history: Recorded before the books were read; None: none was.
        acquirer: The acquirer's log; None: there is none.
        now_ms: When the books were read, in Unix milliseconds; 0: not known.
        ended: Whether all work is over, as after a run: what is left then is a violation. False: the stack may go on
            with it, and what recovery will finish is undecided.
        restored: Whether the books are those of a backup. What the acquirer has for a payment that they do not hold is
            then no violation: reconciliation names it.
        options: None: as they are by default.
    """
    chosen = options or Options(SystemClock())
    evidence = Evidence(snapshot, tuple(answers), history, acquirer, now_ms, ended, restored)
    results = []
    for name, examine in _CHECKS.items():
        chosen.on_progress(name, 0, 0)
        results.append(examine(evidence, chosen).check(name))
    return results


_Examine = Callable[[Evidence, Options], Findings]


def _of(examine: Callable[[Evidence], Findings]) -> _Examine:
    return lambda evidence, _options: examine(evidence)


def _of_history(examine: Callable[[Evidence], Findings]) -> _Examine:
    return lambda evidence, _: Findings(0, skipped=_NO_HISTORY) if evidence.history is None else examine(evidence)


def _of_acquirer_log(examine: Callable[[Evidence], Findings]) -> _Examine:
    return lambda evidence, _: Findings(0, skipped=_NO_LOG) if evidence.acquirer is None else examine(evidence)


def _orders_linearizable(evidence: Evidence, options: Options) -> Findings:
    if evidence.history is None:
        return Findings(0, skipped=_NO_HISTORY)
    name = "orders linearizable"
    return orders_linearizable(
        evidence.history,
        evidence.snapshot,
        options.clock,
        limit_s=options.order_limit_s,
        on_progress=lambda done, of: options.on_progress(name, done, of),
    )


_CHECKS: dict[str, _Examine] = {
    "postings balance": _of(ledger.postings_balance),
    "journals unaltered": _of(ledger.journals_unaltered),
    "business keys unique": _of(ledger.business_keys_unique),
    "settled at most once": _of(settlement.settled_once),
    "reversed at most once": _of(ledger.reversed_once),
    "paid means charged": _of(settlement.paid_means_charged),
    "payments match journals": _of(settlement.payments_match_journals),
    "one charge per key": _of(settlement.one_charge_per_key),
    "acquirer log whole": _of_acquirer_log(acquirer_checks.acquirer_log_whole),
    "charged once per key": _of_acquirer_log(acquirer_checks.charged_once_per_key),
    "acquirer agrees with ledger": _of_acquirer_log(acquirer_checks.acquirer_agrees_with_ledger),
    "cards agree": _of(cards_agree),
    "answers are true": _of(settlement.answers_true),
    "acknowledged is kept": _of_history(answer_checks.acknowledged_kept),
    "refused without effect": _of_history(answer_checks.refused_without_effect),
    "refusals kept": _of(ledger.refusals_kept),
    "replays identical": _of(answer_checks.replays_identical),
    "mismatches refused": _of_history(answer_checks.mismatches_refused),
    "fences never fall": _of(trail.fences_never_fall),
    "moves are legal": _of(trail.moves_legal),
    "changes are signed": _of(trail.changes_signed),
    "reads were written": _of_history(answer_checks.reads_were_written),
    "reads go forward": _of_history(answer_checks.reads_go_forward),
    "requests are whole": _of(trail.requests_whole),
    "leases are kept": _of(trail.leases_kept),
    "nothing left over": _of(trail.nothing_left_over),
    "outbox delivered once": _of(trail.outbox_delivered_once),
    "balances true": _of(ledger.balances_true),
    "orders linearizable": _orders_linearizable,
}
