"""`countinghouse ledger …`: accounts, journals, the trial balance and the check of the chain."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

import typer

from countinghouse.ledger.v1 import ledger_pb2 as pb
from services.cli import output
from services.cli.arguments import MAX_INT64, Currency, Limit, Page, RequestId, amount_of, calling
from services.cli.client import Client
from services.kernel.currency import format_amount
from services.kernel.principal import Role

app = typer.Typer(no_args_is_help=True, help="Show the books, and open and close accounts.")


class AccountKind(StrEnum):
    """What an account is."""

    ASSET = "asset"
    LIABILITY = "liability"
    EQUITY = "equity"
    REVENUE = "revenue"
    EXPENSE = "expense"


#: What an account is whose name begins so. The ledger refuses any other kind for these names.
_KIND_OF_NAME = {
    "wallet": AccountKind.LIABILITY,
    "drawer": AccountKind.ASSET,
    "bank": AccountKind.ASSET,
    "acquirer": AccountKind.ASSET,
    "sales": AccountKind.REVENUE,
}


@app.command("accounts")
@calling(Role.AUDITOR)
async def accounts(
    client: Client,
    prefix: Annotated[
        str, typer.Option("--prefix", help="Show only accounts whose id begins so.", show_default=False)
    ] = "",
    limit: Limit = 50,
    page: Page = "",
) -> None:
    """List accounts with their balances.

    Example: countinghouse ledger accounts --prefix wallet:mei
    """
    request = pb.ListAccountsRequest(page_size=limit, page_token=page, prefix=prefix)
    response = output.as_dict(await client.read_list("ledger", "ListAccounts", request, "accounts"))
    columns = ("account", "kind", "currency", "balance", "overdraft", "version", "closed")
    rows = [_account_row(account) for account in response["accounts"]]
    output.print_page(client.as_json, response, "accounts", columns, rows)


@app.command("open")
@calling(Role.OPERATOR)
async def open_account(
    client: Client,
    account_id: Annotated[str, typer.Argument(metavar="ACCOUNT", help="Id of the new account, like wallet:mei:CNY.")],
    currency: Currency,
    kind: Annotated[
        AccountKind | None,
        typer.Option(
            "--kind",
            help=f"Kind. Required unless the id implies it: {', '.join(f'{name}:…' for name in _KIND_OF_NAME)}.",
            show_default=False,
        ),
    ] = None,
    overdraft: Annotated[
        str | None,
        typer.Option(
            "--overdraft", help="How far the balance may fall below zero, like 100.00. [default: 0]", show_default=False
        ),
    ] = None,
    overdraft_minor: Annotated[
        int | None, typer.Option("--overdraft-minor", help="The same in minor units.", show_default=False)
    ] = None,
    request_id: RequestId = "",
) -> None:
    """Open an account.

    Example: countinghouse ledger open wallet:mei:CNY --currency CNY
    """
    limit = amount_of(overdraft, overdraft_minor, currency, option="--overdraft", least=0)
    kind = kind or _KIND_OF_NAME.get(account_id.partition(":")[0])
    if kind is None:
        raise typer.BadParameter(f"the id {account_id} does not imply a kind; name it", param_hint="--kind")
    key = client.new_id(request_id)
    request = pb.OpenAccountRequest(
        request_id=key,
        account_id=account_id,
        kind=pb.AccountKind.Value(f"ACCOUNT_KIND_{kind.name}"),
        currency_code=currency,
        overdraft_limit=limit or 0,
    )
    reply = await client.change("ledger", "OpenAccount", request, key)
    account = output.as_dict(reply.message.account)
    if client.as_json:
        output.print_json({"account": account, "replayed": reply.replayed, "request_id": key})
        return
    output.print_facts(
        [
            ("account", account["account_id"] + (" (replayed)" if reply.replayed else "")),
            ("kind", output.short(account["kind"], "ACCOUNT_KIND_").lower()),
            ("balance", format_amount(account["balance"], account["currency_code"])),
            ("overdraft", format_amount(account["overdraft_limit"], account["currency_code"])),
            ("opened by", output.clerk(account["opened_by"])),
        ]
    )


@app.command("close-account")
@calling(Role.OPERATOR)
async def close_account(
    client: Client,
    account_id: Annotated[str, typer.Argument(metavar="ACCOUNT", help="An account with a balance of zero.")],
    reason: Annotated[str, typer.Option("--reason", help="Why.", show_default=False)],
    request_id: RequestId = "",
) -> None:
    """Close an account that was opened by mistake. It stays listed, takes no postings, and is never opened again.

    Example: countinghouse ledger close-account wallet:mei:RMB --reason "no such currency"
    """
    key = client.new_id(request_id)
    request = pb.CloseAccountRequest(request_id=key, account_id=account_id, reason=reason)
    reply = await client.change("ledger", "CloseAccount", request, key)
    account = output.as_dict(reply.message.account)
    if client.as_json:
        output.print_json({"account": account, "replayed": reply.replayed, "request_id": key})
        return
    output.print_facts(
        [
            ("account", account["account_id"] + (" (replayed)" if reply.replayed else "")),
            ("closed by", output.clerk(account["closed_by"])),
            ("closed", output.moment(account["closed_at_ms"])),
            ("reason", account["close_reason"]),
        ]
    )


@app.command("journals")
@calling(Role.AUDITOR)
async def journals(
    client: Client,
    account: Annotated[
        str, typer.Option("--account", help="Show only journals with a posting to this account.", show_default=False)
    ] = "",
    order: Annotated[str, typer.Option("--order", help="Show only journals of this order.", show_default=False)] = "",
    limit: Limit = 50,
    page: Page = "",
) -> None:
    """List journals, newest first.

    Example: countinghouse ledger journals --order ord_7d0q
    """
    request = pb.ListJournalsRequest(page_size=limit, page_token=page, account_id=account, order_id=order)
    response = output.as_dict(await client.read_list("ledger", "ListJournals", request, "journals"))
    output.print_page(
        client.as_json,
        response,
        "journals",
        ("seq", "journal", "business key", "postings", "by", "posted"),
        [
            (
                str(journal["sequence"]),
                journal["journal_id"],
                journal["business_key"],
                _postings(journal),
                output.clerk(journal["posted_by"]),
                output.moment(journal["posted_at_ms"]),
            )
            for journal in response["journals"]
        ],
    )


@app.command("trial-balance")
@calling(Role.AUDITOR)
async def trial_balance(
    client: Client,
    currency: Annotated[str, typer.Option("--currency", help="Only this one.", show_default=False)] = "",
    all_: Annotated[
        bool, typer.Option("--all", help="Show accounts without postings as well. --json always does.")
    ] = False,
) -> None:
    """Sum the books from their postings. Exits with 1 if they do not balance.

    Example: countinghouse ledger trial-balance --currency CNY
    """
    request = pb.TrialBalanceRequest(currency_code=currency)
    message = await client.read("ledger", "TrialBalance", request)
    while message.next_page_token:
        request.page_token = message.next_page_token
        page = await client.read("ledger", "TrialBalance", request)
        message.rows.extend(page.rows)
        message.balanced &= page.balanced
        message.next_page_token = page.next_page_token
    response = output.as_dict(message)
    if client.as_json:
        output.print_json(response)
    else:
        rows = [row for row in response["rows"] if all_ or _is_used(row)]
        output.print_table(
            "trial balance",
            ("account", "kind", "currency", "debits", "credits", "balance"),
            [
                (
                    row["account_id"],
                    output.short(row["kind"], "ACCOUNT_KIND_").lower(),
                    row["currency_code"],
                    format_amount(int(row["exact_debits"]), row["currency_code"]),
                    format_amount(int(row["exact_credits"]), row["currency_code"]),
                    format_amount(row["balance"], row["currency_code"]),
                )
                for row in rows
            ],
        )
        if left_out := len(response["rows"]) - len(rows):
            print(f"not shown: {left_out} accounts without postings; --all shows them")
        for total in response["totals"]:
            if not (all_ or int(total["debits"]) or int(total["credits"])):
                continue
            debits, credits = (
                format_amount(int(total[side]), total["currency_code"]) for side in ("debits", "credits")
            )
            print(f"{total['currency_code']}, {total['accounts']} accounts: debits {debits}, credits {credits}")
        differences = ", ".join(output.money(difference) for difference in response["differences"])
        output.print_line(
            "balanced" if response["balanced"] else f"NOT BALANCED: debits less credits are {differences}"
        )
    if not response["balanced"]:
        raise typer.Exit(1)


@app.command("verify")
@calling(Role.AUDITOR)
async def verify(
    client: Client,
    first: Annotated[int, typer.Option("--from", help="First sequence.", min=0, max=MAX_INT64, show_default=False)] = 0,
    last: Annotated[int, typer.Option("--to", help="Last sequence.", min=0, max=MAX_INT64, show_default=False)] = 0,
) -> None:
    """Recompute the journals' hash chain. Exits with 1 where it breaks.

    Example: countinghouse ledger verify
    """
    request = pb.VerifyJournalRequest(from_sequence=first, to_sequence=last)
    response = output.as_dict(await client.read("ledger", "VerifyJournal", request))
    if client.as_json:
        output.print_json(response)
    elif response["intact"]:
        output.print_line(f"{response['examined']} journals, all as they were written; head {response['head_hash']}")
    else:
        output.print_line(f"BROKEN at journal {response['first_broken_sequence']}: {response['problem']}")
    if not response["intact"]:
        raise typer.Exit(1)


def _is_used(row: dict[str, Any]) -> bool:
    """Return whether an account has postings, or a balance all the same."""
    return bool(int(row["exact_debits"]) or int(row["exact_credits"]) or row["balance"])


def _account_row(account: dict[str, Any]) -> tuple[str, ...]:
    return (
        account["account_id"],
        output.short(account["kind"], "ACCOUNT_KIND_").lower(),
        account["currency_code"],
        format_amount(account["balance"], account["currency_code"]),
        format_amount(account["overdraft_limit"], account["currency_code"]),
        str(account["version"]),
        output.moment(account["closed_at_ms"]) if account["closed_at_ms"] else "",
    )


def _postings(journal: dict[str, Any]) -> str:
    return "  ".join(
        f"{leg['account_id']} {format_amount(leg['amount'], journal['currency_code'], sign='+')}"
        for leg in journal["postings"]
    )
