"""What commands say of payments and books: what happened, and what can be done next."""

from __future__ import annotations

import inspect
import json
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import typer

from countinghouse.ledger.v1 import ledger_pb2
from countinghouse.payment.v1 import payment_pb2 as pb
from services.cli import exit_codes, ledger, payments
from services.cli.reconcile import reconcile
from services.kernel.errors import Aborted
from services.payment.execution import half_settled
from services.payment.model import PaymentState, Source
from services.reconcile.matching import Action
from tests.unit.payment.test_model import PAYMENT


def _client(**parts: Any) -> Any:
    """As much of a client as a command needs."""
    return SimpleNamespace(as_json=False, **parts)


def shown(capsys: pytest.CaptureFixture[str], **fields: Any) -> str:
    """What `payment get` says of the money of a card."""
    state = pb.PaymentState.Value(f"PAYMENT_STATE_{fields.pop('state')}")
    payment = pb.Payment(
        payment_id="p1", state=state, source=pb.SOURCE_CARD, card="tok-mei", acquirer_key="p1:1", **fields
    )
    payments._show(_client(), payment, {})
    (said,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("card was")]
    return said.removeprefix("card was").strip()


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"state": "CREATED"}, "not charged so far"),
        ({"state": "SUBMITTED"}, "not known yet"),
        ({"state": "UNKNOWN"}, "not known yet"),
        ({"state": "SUCCEEDED", "journal_id": "j1"}, "charged"),
        ({"state": "DECLINED"}, "not charged, or charged and given back"),
        ({"state": "REVERSING", "journal_id": "j1"}, "being given back, if it was charged"),
        ({"state": "REVERSED", "journal_id": "j1", "reversal_journal_id": "j2"}, "charged, and given back"),
        ({"state": "PARKED"}, "not known yet; whatever was charged is given back when the acquirer answers"),
    ],
)
def test_card_payment_shows_the_state_of_the_card(
    capsys: pytest.CaptureFixture[str], fields: dict[str, Any], says: str
) -> None:
    """As far as the payment tells."""
    assert shown(capsys, **fields) == says


def test_parked_and_reversed_payment_shows_no_charge_and_names_the_acquirer_log(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """It has no journal, so the payment does not tell whether there was a charge to give back; the acquirer does."""
    assert shown(capsys, state="REVERSED") == (
        "never charged, or charged and given back; `countinghouse acquirer log --key p1:1` says which"
    )


def test_every_state_of_a_card_payment_shows_the_state_of_the_card() -> None:
    """None is forgotten."""
    assert payments._CARD_MONEY.keys() == {*map(str, PaymentState)} - {"REVERSED"}


def test_payment_that_is_not_by_card_shows_no_card(capsys: pytest.CaptureFixture[str]) -> None:
    payments._show(_client(), pb.Payment(payment_id="p1", source=pb.SOURCE_DRAWER), {})
    assert "card" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        (
            {"state": pb.PAYMENT_STATE_UNKNOWN, "source": pb.SOURCE_CARD, "order_id": "o1"},
            "or repeat the same settle with its --request-id, or the same pay with its ticket, "
            "or free the order with `countinghouse payment park p1 --reason …`",
        ),
        (
            {"state": pb.PAYMENT_STATE_UNKNOWN, "source": pb.SOURCE_CARD, "ticket_id": "tkt_1"},
            "or repeat the same pay with ticket tkt_1",
        ),
        (
            {"state": pb.PAYMENT_STATE_UNKNOWN, "source": pb.SOURCE_DRAWER, "order_id": "o1"},
            "or repeat the same settle with its --request-id, or the same pay with its ticket",
        ),
        (
            {"state": pb.PAYMENT_STATE_REVERSING, "source": pb.SOURCE_CARD, "order_id": "o1", "journal_id": "j1"},
            "or repeat the same reverse with its --request-id",
        ),
    ],
)
def test_payment_get_of_an_unknown_outcome_names_the_remedies(
    capsys: pytest.CaptureFixture[str], fields: dict[str, Any], says: str
) -> None:
    """And does not name the command that was just run."""
    payments._show(_client(), pb.Payment(payment_id="p1", **fields), {})
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == f"not known yet: wait, as the payment service goes on by itself, {says}"


@pytest.mark.parametrize("state", ["CREATED", "SUBMITTED", "UNKNOWN", "REVERSING"])
def test_command_that_leaves_a_payment_under_way_says_so_and_how_to_ask_again(
    capsys: pytest.CaptureFixture[str], state: str
) -> None:
    """The ledger may be away: its exit code is 3, and it names the request id. Such a payment cannot be parked."""
    payment = pb.Payment(payment_id="p1", state=pb.PaymentState.Value(f"PAYMENT_STATE_{state}"))
    payments._show(_client(), payment, {"request_id": "req_1"})
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("not known yet: ")
    assert "--request-id req_1" in last
    assert exit_codes.of_payment(state, "SUCCEEDED") == 3


class ReconciledClient:
    """Services that have these payments, an acquirer that is asked for its charges, and nothing else."""

    def __init__(self, *states: pb.PaymentState.ValueType, as_json: bool = False, attention: str = "") -> None:
        self.as_json = as_json
        self._payments = [
            pb.Payment(
                payment_id=f"p{number}",
                state=state,
                source=pb.SOURCE_CARD,
                acquirer_key=f"p{number}:1",
                attention=attention,
            )
            for number, state in enumerate(states, start=1)
        ]

    def new_id(self, given: str) -> str:
        return given or "run"

    async def read(self, _: str, method: str, __: object) -> Any:
        if method == "ListPayments":
            return pb.ListPaymentsResponse(payments=self._payments)
        return SimpleNamespace(accounts=[], charges=[], journals=[], orders=[], next_page_token="")


async def reconciled(*states: pb.PaymentState.ValueType, **settings: Any) -> int:
    """The exit code of `reconcile`."""
    command: Any = inspect.unwrap(reconcile)
    try:
        await command(ReconciledClient(*states, **settings), repair=False, refund=None, from_="", to="", settle_s=0.0)
    except typer.Exit as end:
        return end.exit_code
    return 0


async def test_reconcile_with_payments_without_an_outcome_names_them_and_ends_with_1(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Nothing differs, but something is open."""
    assert await reconciled(pb.PAYMENT_STATE_UNKNOWN, pb.PAYMENT_STATE_DECLINED) == 1
    said = capsys.readouterr().out
    assert "nothing differs" in said
    assert "1 payment has no outcome yet: p1\n" in said
    assert await reconciled(pb.PAYMENT_STATE_REVERSING, pb.PAYMENT_STATE_SUBMITTED) == 1
    assert "2 payments have no outcome yet: p1, p2\n" in capsys.readouterr().out
    assert await reconciled(*[pb.PAYMENT_STATE_UNKNOWN] * 25) == 1
    assert capsys.readouterr().out.endswith(", p20 and 5 more\n")
    assert await reconciled(pb.PAYMENT_STATE_DECLINED) == 0


async def test_reconcile_as_json_lists_payments_without_an_outcome_as_open(capsys: pytest.CaptureFixture[str]) -> None:
    """They are no discrepancies, and the sides do not agree before the outcome is known."""
    assert await reconciled(pb.PAYMENT_STATE_UNKNOWN, as_json=True) == 1
    told = json.loads(capsys.readouterr().out)
    assert (told["agreed"], told["discrepancies"]) == (False, [])
    assert [(row["class"], row["payment_id"], row["key"]) for row in told["open"]] == [("no outcome yet", "p1", "p1:1")]
    assert await reconciled(pb.PAYMENT_STATE_DECLINED, as_json=True) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["agreed"], told["open"]) == (True, [])


@pytest.mark.parametrize(("number", "words"), [(1, "1 payment waits for people"), (2, "2 payments wait for people")])
async def test_reconcile_counts_the_payments_that_wait_for_people(
    capsys: pytest.CaptureFixture[str], number: int, words: str
) -> None:
    await reconciled(*[pb.PAYMENT_STATE_UNKNOWN] * number, attention="ACQUIRER_SILENT")
    assert f"{words}: see" in capsys.readouterr().out


async def refused(client_says: Aborted) -> str:
    """The words of a settle that a service refused."""

    async def change(*_: object) -> None:
        raise client_says

    with pytest.raises(Aborted) as refusal:
        await payments._change(_client(change=change), "Settle", None, "s1")
    return refusal.value.message


async def test_settle_of_an_order_that_waits_for_another_payment_names_the_command_that_frees_it() -> None:
    """A sentence each: what happened, by whom, where it stands, and what to do."""
    unknown = replace(PAYMENT, state=PaymentState.UNKNOWN, source=Source.CARD, updated_at_ms=1_700_000_000_123)
    assert await refused(half_settled(unknown)) == (
        "o1 was not settled. li (cashier) is paying it from the card with payment p1. "
        "That payment is UNKNOWN since 2023-11-14T22:13:20.123Z. "
        "Run `countinghouse payment park p1 --reason …` to free the order, or wait for its outcome."
    )


async def test_settle_of_an_order_whose_payment_cannot_be_parked_names_no_command() -> None:
    """One from the drawer has an outcome as soon as the ledger answers."""
    unknown = replace(PAYMENT, state=PaymentState.UNKNOWN, source=Source.DRAWER)
    assert "park" not in (await refused(half_settled(unknown))).lower()


@pytest.mark.parametrize("action", [Action.REFUND, Action.UNDO, Action.ASK_NOW])
def test_reconciliation_names_the_command_that_repairs_a_difference(action: Action) -> None:
    """What `--repair` mends, and what goes on by itself."""
    assert "`reconcile --repair`" in action


@pytest.mark.parametrize("action", [Action.ASK_NOW, Action.WAIT])
def test_reconciliation_names_what_is_repaired_without_a_command(action: Action) -> None:
    """And that nobody has to wait long."""
    assert "by itself" in action
    assert "seconds" in action


def row(account: str, currency: str, debits: int, credits: int) -> ledger_pb2.TrialBalanceRow:
    return ledger_pb2.TrialBalanceRow(
        account_id=f"{account}:{currency}",
        currency_code=currency,
        exact_debits=str(debits),
        exact_credits=str(credits),
        balance=debits - credits,
    )


BOOKS = ledger_pb2.TrialBalanceResponse(
    rows=[
        row("drawer", "CNY", 500, 0),
        row("sales", "CNY", 0, 500),
        row("wallet:mei", "CNY", 300, 300),
        row("bank", "CNY", 0, 0),
        row("drawer", "EUR", 0, 0),
    ],
    totals=[
        ledger_pb2.TrialBalanceTotal(currency_code="CNY", accounts=4, debits="800", credits="800"),
        ledger_pb2.TrialBalanceTotal(currency_code="EUR", accounts=1, debits="0", credits="0"),
    ],
    balanced=True,
)


async def trial_balance(capsys: pytest.CaptureFixture[str], books: Any = BOOKS, *, all_: bool = False) -> list[str]:
    async def read(*_: object) -> Any:
        return books

    command: Any = ledger.trial_balance
    await command.__wrapped__(_client(read=read), currency="", all_=all_)
    return capsys.readouterr().out.splitlines()


async def test_trial_balance_leaves_out_accounts_without_postings_and_counts_them(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One whose postings add up to zero stays."""
    said = await trial_balance(capsys)
    assert [line.split()[0] for line in said[1:4]] == ["drawer:CNY", "sales:CNY", "wallet:mei:CNY"]
    assert said[4:] == [
        "not shown: 2 accounts without postings; --all shows them",
        "CNY, 4 accounts: debits 8.00 CNY, credits 8.00 CNY",
        "balanced",
    ]


async def test_trial_balance_of_all_shows_every_account(capsys: pytest.CaptureFixture[str]) -> None:
    said = await trial_balance(capsys, all_=True)
    assert len(said) == 1 + 5 + 2 + 1
    assert not any("not shown" in line for line in said)


async def test_trial_balance_hides_no_balance_that_has_no_postings(capsys: pytest.CaptureFixture[str]) -> None:
    """Books that are wrong are shown as they are."""
    books = ledger_pb2.TrialBalanceResponse(balanced=False)
    books.rows.append(row("drawer", "CNY", 0, 0))
    books.rows[0].balance = 7
    with pytest.raises(typer.Exit):
        await trial_balance(capsys, books)
    assert "drawer:CNY" in capsys.readouterr().out
