"""What must be true of the ledger by itself: journals balance and are unaltered, accounts agree with them."""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict

from services.checker.evidence import Evidence, grouped, names
from services.checker.findings import Findings, Violations
from services.checker.snapshot import Record
from services.kernel.currency import format_amount

_NO_HASH = "0" * 64
_GROWS_BY_DEBITS = ("ASSET", "EXPENSE")
#: The largest magnitude a balance may reach, in minor units.
_MAX_BALANCE = 2**61


def postings_balance(evidence: Evidence) -> Findings:
    """Check that postings sum to zero per journal and currency, and journals have two legs or more in one currency."""

    def violations() -> Violations:
        total: defaultdict[str, int] = defaultdict(int)
        currencies = {str(row["account_id"]): str(row["currency_code"]) for row in evidence.snapshot.accounts}
        for journal_id, row in evidence.journals.items():
            legs = evidence.legs.get(journal_id, [])
            if len(legs) < 2:
                yield f"journal {journal_id} has {len(legs)} legs"
            if (difference := sum(int(leg["amount"]) for leg in legs)) != 0:
                yield f"journal {journal_id} is out of balance by {_shown(row, difference)}"
            for leg in legs:
                currency = currencies.get(str(leg["account_id"]), "nothing")
                total[currency] += int(leg["amount"])
                if currency != row["currency_code"]:
                    yield f"journal {journal_id} in {row['currency_code']} has a leg in {currency}"
        for currency, difference in total.items():
            if difference:
                yield f"all postings in {currency} sum to {format_amount(difference, currency)}"
        for journal_id in evidence.legs.keys() - evidence.journals.keys():
            yield f"postings of journal {journal_id} stand without it"

    return Findings(len(evidence.snapshot.postings), violations())


def journals_unaltered(evidence: Evidence) -> Findings:
    """Check that each journal has the hash of its content and of its predecessor, and that the head names the last."""

    def violations() -> Violations:
        previous = _NO_HASH
        for place, row in enumerate(evidence.snapshot.journals, start=1):
            if row["sequence"] != place:
                yield f"journal {row['journal_id']} has sequence {row['sequence']}, and is number {place}"
            if row["previous_hash"] != previous:
                yield f"journal {row['journal_id']} does not follow the one before"
            if row["hash"] != _hash(row, evidence.legs.get(str(row["journal_id"]), [])):
                yield f"journal {row['journal_id']} is not as it was written"
            previous = str(row["hash"])
        for head in evidence.snapshot.chain_head:
            if (head["sequence"], head["hash"]) != (length := len(evidence.snapshot.journals), previous):
                yield f"the chain ends with journal {length}, and its head is {head['sequence']}"

    return Findings(len(evidence.snapshot.journals), violations())


def _hash(journal: Record, legs: list[Record]) -> str:
    content = {
        "business_key": journal["business_key"],
        "clerk": [journal["clerk_name"], journal["clerk_role"]],
        "currency": journal["currency_code"],
        "format": 1,
        "journal_id": journal["journal_id"],
        "legs": [[leg["account_id"], leg["amount"]] for leg in legs],
        "memo": journal["memo"],
        "order_id": journal["order_id"],
        "payment_id": journal["payment_id"],
        "posted_at_ms": journal["posted_at_ms"],
        "reversal_of": journal["reversal_of"] or "",
        "sequence": journal["sequence"],
    }
    written = json.dumps(content, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(f"{journal['previous_hash']}\n{written}".encode()).hexdigest()


def business_keys_unique(evidence: Evidence) -> Findings:
    """Check that a business key stands for one journal."""
    keys = Counter(str(row["business_key"]) for row in evidence.snapshot.journals)
    return Findings(len(keys), (f"{key} stands for {count} journals" for key, count in keys.items() if count > 1))


def reversed_once(evidence: Evidence) -> Findings:
    """Check that a journal is reversed at most once, and in whole."""
    reversals = [row for row in evidence.snapshot.journals if row["reversal_of"]]

    def violations() -> Violations:
        for journal_id, rows in grouped(reversals, "reversal_of").items():
            if len(rows) > 1:
                yield f"journal {journal_id} was reversed {len(rows)} times"
            original = evidence.journals.get(journal_id)
            if original is None:
                yield f"journal {rows[0]['journal_id']} reverses {journal_id}, which does not exist"
            elif _legs(evidence, journal_id, -1) != _legs(evidence, str(rows[0]["journal_id"]), 1):
                yield f"journal {rows[0]['journal_id']} does not undo the whole of {journal_id}"

    return Findings(len(reversals), violations())


def _legs(evidence: Evidence, journal_id: str, sign: int) -> Counter[tuple[str, int]]:
    return Counter((str(leg["account_id"]), sign * int(leg["amount"])) for leg in evidence.legs.get(journal_id, ()))


def refusals_kept(evidence: Evidence) -> Findings:
    """Check that the ledger never wrote what it refused for ever; the attempt of a refusal is the payment's id."""

    def violations() -> Violations:
        for row in evidence.snapshot.refusals:
            written = [
                journal
                for journal in evidence.journals_of_payment.get(str(row["attempt"]), ())
                if journal["business_key"] == row["business_key"]
            ]
            if written:
                yield f"{row['business_key']} was refused to payment {row['attempt']}, and {names(written)} moved money"

    return Findings(len(evidence.snapshot.refusals), violations())


def balances_true(evidence: Evidence) -> Findings:
    """Check that balances are what the postings sum to, versions count the postings, and no prefix broke a limit."""
    accounts = {str(row["account_id"]): row for row in evidence.snapshot.accounts}

    def violations() -> Violations:
        balances = dict.fromkeys(accounts, 0)
        versions = dict.fromkeys(accounts, 1)
        for journal in evidence.snapshot.journals:
            for leg in evidence.legs.get(str(journal["journal_id"]), []):
                name = str(leg["account_id"])
                account = accounts.get(name)
                if account is None:
                    yield f"journal {journal['journal_id']} has a leg on {name}, which does not exist"
                    continue
                sign = 1 if account["kind"] in _GROWS_BY_DEBITS else -1
                balances[name] += sign * int(leg["amount"])
                versions[name] += 1
                if balances[name] < -int(account["overdraft_limit"]):
                    yield f"{name} fell to {_shown(account, balances[name])} with journal {journal['sequence']}"
                if balances[name] > _MAX_BALANCE:
                    yield f"{name} rose to {_shown(account, balances[name])} with journal {journal['sequence']}"
        for name, account in accounts.items():
            if account["balance"] != balances[name]:
                stored = _shown(account, int(account["balance"]))
                yield f"{name} says {stored}, and its postings sum to {_shown(account, balances[name])}"
            if account["version"] != versions[name]:
                yield f"{name} is at version {account['version']}, and has {versions[name] - 1} postings"

    return Findings(len(accounts), violations())


def _shown(record: Record, amount: int) -> str:
    return format_amount(amount, str(record["currency_code"]))
