"""LedgerService on the wire: messages to the types of `model.py` and back; refuses malformed fields."""

from __future__ import annotations

from typing import Any

from grpc import aio

from countinghouse.ledger.v1 import ledger_pb2 as pb
from countinghouse.ledger.v1 import ledger_pb2_grpc
from countinghouse.type.v1 import money_pb2
from services.kernel.card_numbers import refuse_card_number
from services.kernel.errors import CountinghouseError, InvalidArgument
from services.kernel.idempotency import StoredResponse
from services.kernel.ids import check_account, check_business_key, check_name, check_reason, check_text_form
from services.kernel.money import check_currency, check_currency_form
from services.ledger.model import Account, AccountKind, Journal, JournalDraft, Leg, TrialRow, TrialTotal
from services.ledger.operations import LedgerOperations
from services.ledger.ports import JournalFilter
from services.runtime.grpc import pagination, status
from services.runtime.grpc.batching import serve_each
from services.runtime.grpc.context import current_call
from services.runtime.grpc.interceptors import reply
from services.runtime.grpc.translate import clerk_in, clerk_out, enum_in, fence_in, fingerprint_without, stored_message

_Context = aio.ServicerContext[Any, Any]

_KINDS: dict[AccountKind, pb.AccountKind.ValueType] = {
    AccountKind.ASSET: pb.ACCOUNT_KIND_ASSET,
    AccountKind.LIABILITY: pb.ACCOUNT_KIND_LIABILITY,
    AccountKind.EQUITY: pb.ACCOUNT_KIND_EQUITY,
    AccountKind.REVENUE: pb.ACCOUNT_KIND_REVENUE,
    AccountKind.EXPENSE: pb.ACCOUNT_KIND_EXPENSE,
}
#: Of a page of the trial balance: the newest journal in it, and the last account of the page before.
_TRIAL_KEY = (int, str)
_KINDS_BY_NUMBER: dict[int, AccountKind] = {int(number): kind for kind, number in _KINDS.items()}


class LedgerServicer(ledger_pb2_grpc.LedgerServiceServicer):
    """See the proto for what each method promises."""

    def __init__(self, operations: LedgerOperations) -> None:
        self._operations = operations

    async def OpenAccount(self, request: pb.OpenAccountRequest, _context: _Context) -> Any:
        call = current_call()
        answer = await self._operations.open_account(
            call,
            check_name(request.request_id, "request_id"),
            fingerprint_without(request, "request_id"),
            account_id=refuse_card_number(check_account(request.account_id, "account_id"), "account_id"),
            kind=enum_in(_KINDS_BY_NUMBER, request.kind, "kind"),
            currency=check_currency(request.currency_code),
            overdraft_limit=request.overdraft_limit,
        )
        return reply(call, answer)

    async def CloseAccount(self, request: pb.CloseAccountRequest, _context: _Context) -> Any:
        call = current_call()
        answer = await self._operations.close_account(
            call,
            check_name(request.request_id, "request_id"),
            fingerprint_without(request, "request_id"),
            account_id=check_account(request.account_id, "account_id"),
            reason=refuse_card_number(check_reason(request.reason, "reason"), "reason"),
        )
        return reply(call, answer)

    async def GetAccount(self, request: pb.GetAccountRequest, _context: _Context) -> pb.GetAccountResponse:
        account = await self._operations.account(current_call(), check_account(request.account_id, "account_id"))
        return pb.GetAccountResponse(account=account_out(account))

    async def ListAccounts(self, request: pb.ListAccountsRequest, _context: _Context) -> pb.ListAccountsResponse:
        prefix = request.prefix and check_account(request.prefix, "prefix")
        page = await pagination.read_page(
            request,
            key_types=(str,),
            fetch=lambda key, limit: self._operations.accounts(prefix=prefix, after=key[0] if key else "", limit=limit),
            key_of=lambda account: (account.account_id,),
            out=account_out,
        )
        return pb.ListAccountsResponse(accounts=page.rows, next_page_token=page.next_page_token)

    async def Post(self, request: pb.PostRequest, _context: _Context) -> pb.PostResponse:
        call = current_call()
        draft = JournalDraft(
            business_key=check_business_key(request.business_key, "business_key"),
            legs=tuple(
                Leg(check_account(posting.account_id, f"postings[{place}].account_id"), posting.amount)
                for place, posting in enumerate(request.postings)
            ),
            currency=check_currency_form(request.currency_code),
            memo=check_text_form(request.memo, "memo"),
            order_id=check_name(request.order_id, "order_id") if request.order_id else "",
            payment_id=check_name(request.payment_id, "payment_id"),
            clerk=call.on_behalf_of(clerk_in(request.clerk)),
        )
        fence = fence_in(request.fence, required=bool(draft.order_id))
        attempt = check_name(request.request_id, "request_id")
        journal = await self._operations.post(call, attempt, draft, fence)
        return pb.PostResponse(journal=journal_out(journal))

    async def PostBatch(self, request: pb.PostBatchRequest, _context: _Context) -> pb.PostBatchResponse:
        return pb.PostBatchResponse(outcomes=await serve_each(request.requests, self.Post, pb.PostOutcome))

    async def VoidPost(self, request: pb.VoidPostRequest, _context: _Context) -> pb.VoidPostResponse:
        draft = JournalDraft(
            business_key=check_business_key(request.business_key, "business_key"),
            legs=(),
            currency="",
            memo="",
            order_id=check_name(request.order_id, "order_id") if request.order_id else "",
            payment_id=check_name(request.payment_id, "payment_id"),
            clerk=current_call().principal,
        )
        fence = fence_in(request.fence, required=bool(draft.order_id))
        attempt = check_name(request.request_id, "request_id")
        journal = await self._operations.void(current_call(), attempt, draft, fence)
        return pb.VoidPostResponse(journal=None if journal is None else journal_out(journal))

    async def GetJournal(self, request: pb.GetJournalRequest, _context: _Context) -> pb.GetJournalResponse:
        if bool(request.journal_id) == bool(request.business_key):
            raise InvalidArgument.of_field(
                "FIELD_REQUIRED", "journal_id", "send either journal_id or business_key, and not both"
            )
        journal = await self._operations.journal(
            journal_id=check_name(request.journal_id, "journal_id") if request.journal_id else "",
            business_key=check_business_key(request.business_key, "business_key") if request.business_key else "",
        )
        return pb.GetJournalResponse(journal=journal_out(journal))

    async def ListJournals(self, request: pb.ListJournalsRequest, _context: _Context) -> pb.ListJournalsResponse:
        which = JournalFilter(
            account_id=check_account(request.account_id, "account_id") if request.account_id else "",
            order_id=check_name(request.order_id, "order_id") if request.order_id else "",
        )
        page = await pagination.read_page(
            request,
            key_types=(int,),
            fetch=lambda key, limit: self._operations.journals(which, before=key and key[0], limit=limit),
            key_of=lambda journal: (journal.sequence,),
            out=journal_out,
        )
        return pb.ListJournalsResponse(journals=page.rows, next_page_token=page.next_page_token)

    async def ReverseJournal(self, request: pb.ReverseJournalRequest, _context: _Context) -> pb.ReverseJournalResponse:
        call = current_call()
        journal = await self._operations.reverse(
            call,
            check_name(request.request_id, "request_id"),
            journal_id=check_name(request.journal_id, "journal_id"),
            reason=check_text_form(request.reason, "reason", required=True),
            payment_id=check_name(request.payment_id, "payment_id"),
            fence=fence_in(request.fence, required=False),
            clerk=call.on_behalf_of(clerk_in(request.clerk)),
        )
        return pb.ReverseJournalResponse(journal=journal_out(journal))

    async def TrialBalance(self, request: pb.TrialBalanceRequest, _context: _Context) -> pb.TrialBalanceResponse:
        currency = request.currency_code and check_currency_form(request.currency_code)
        key = pagination.key_in(request, _TRIAL_KEY)
        trial = None if key else await self._operations.trial_balance(currency)
        last = trial.last if trial else key[0] if key else 0
        rows: list[TrialRow] = []

        async def fetch(key: tuple[int, str] | None, limit: int) -> list[TrialRow]:
            return await self._operations.trial_rows(currency, last=last, after=key[1] if key else "", limit=limit)

        def out(row: TrialRow) -> pb.TrialBalanceRow:
            rows.append(row)
            return _row_out(row)

        page = await pagination.read_page(
            request,
            key_types=_TRIAL_KEY,
            fetch=fetch,
            key_of=lambda row: (last, row.account.account_id),
            out=out,
            default_rows=pagination.AS_MANY_AS_FIT,
        )
        return pb.TrialBalanceResponse(
            rows=page.rows,
            differences=[
                money_pb2.Money(minor_units=_int64(total.difference), currency_code=total.currency)
                for total in (trial.totals if trial else ())
            ],
            balanced=trial.balanced if trial else all(row.right for row in rows[: len(page.rows)]),
            totals=map(_total_out, trial.totals if trial else ()),
            next_page_token=page.next_page_token,
        )

    async def VerifyJournal(self, request: pb.VerifyJournalRequest, _context: _Context) -> pb.VerifyJournalResponse:
        verdict = await self._operations.verify(request.from_sequence, request.to_sequence)
        return pb.VerifyJournalResponse(
            examined=verdict.examined,
            intact=not verdict.broken_at,
            first_broken_sequence=verdict.broken_at,
            problem=verdict.problem,
            head_hash=verdict.head_hash,
        )


class LedgerResponses:
    """`ports.Responses` as serialized protobuf."""

    def opened(self, account: Account) -> StoredResponse:
        return stored_message(pb.OpenAccountResponse(account=account_out(account)))

    def closed(self, account: Account) -> StoredResponse:
        return stored_message(pb.CloseAccountResponse(account=account_out(account)))

    def refusal(self, error: CountinghouseError) -> StoredResponse:
        return status.stored_refusal(error)


def account_out(account: Account) -> pb.Account:
    """Return an account as a message."""
    return pb.Account(
        account_id=account.account_id,
        kind=_KINDS[account.kind],
        currency_code=account.currency,
        overdraft_limit=account.overdraft_limit,
        balance=account.balance,
        version=account.version,
        created_at_ms=account.created_at_ms,
        closed_at_ms=account.closing.at_ms if account.closing else 0,
        closed_by=clerk_out(account.closing.by) if account.closing else None,
        close_reason=account.closing.reason if account.closing else "",
        opened_by=clerk_out(account.opened_by) if account.opened_by else None,
    )


def journal_out(journal: Journal) -> pb.Journal:
    """Return a journal as a message."""
    draft = journal.draft
    return pb.Journal(
        journal_id=journal.journal_id,
        business_key=draft.business_key,
        postings=[pb.Posting(account_id=leg.account_id, amount=leg.amount) for leg in draft.legs],
        currency_code=draft.currency,
        memo=draft.memo,
        order_id=draft.order_id,
        payment_id=draft.payment_id,
        reversal_of=draft.reversal_of,
        sequence=journal.sequence,
        previous_hash=journal.previous_hash,
        hash=journal.hash,
        posted_at_ms=journal.posted_at_ms,
        posted_by=clerk_out(draft.clerk),
    )


def _row_out(row: TrialRow) -> pb.TrialBalanceRow:
    return pb.TrialBalanceRow(
        account_id=row.account.account_id,
        kind=_KINDS[row.account.kind],
        currency_code=row.account.currency,
        debits=_int64(row.debits),
        credits=_int64(row.credits),
        balance=row.account.balance,
        exact_debits=str(row.debits),
        exact_credits=str(row.credits),
    )


def _total_out(total: TrialTotal) -> pb.TrialBalanceTotal:
    return pb.TrialBalanceTotal(
        currency_code=total.currency,
        accounts=total.accounts,
        debits=str(total.debits),
        credits=str(total.credits),
        difference=str(total.difference),
        unexplained_balances=total.unexplained,
    )


def _int64(number: int) -> int:
    """Return the nearest number that an int64 holds."""
    return max(-(2**63), min(number, 2**63 - 1))
