"""Retired words: names that gave way to the field's term, and may not come back as identifiers."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from tests.architecture.code import PACKAGES, modules, tree

#: What is gone, and what is said instead. A word is added when the last use of it is renamed.
RETIRED = {
    "bill": "order",
    "Bill": "Order",
    "BillState": "OrderState",
    "Begun": "Execution",
    "Whereabouts": "AdvertisedAddress",
    "Handout": "SecretDistributor",
    "dice": "rng",
    "Merchants": "MerchantNotifier",
    "MessageEncoding": "OrderResponses, LedgerResponses",
    "AcquirerSays": "ChargeStatus",
    "Silence": "AcquirerRetry",
    "Undone": "ReversalResult",
    "Purpose": "OutboxAction",
    "Rival": "ConflictingPayment",
    "Follower": "NodeWatcher",
    "Bait": "TriggerOrder",
    "Evening": "Simulation",
    "Weather": "FaultRates",
    "Scribe": "DatasetBuilder",
    "believed_until": "valid_until",
    "RuleBook": "RuleWatcher",
}
#: Generated code, and migrations, which name stored data as it was.
_EXCEPTED = ("versions", "gen")


def test_retired_word_is_no_identifier() -> None:
    used = [
        f"{module}:{line} {name}; say {RETIRED[name]}"
        for module in modules(*PACKAGES, "tests")
        if not set(_EXCEPTED) & set(module.parts)
        for line, name in retired_in(tree(module))
    ]
    assert used == []


def test_retired_word_is_seen_wherever_it_is_a_name() -> None:
    for source in (
        "bill = 1",
        "order.bill",
        "def bill(): ...",
        "class Bill: ...",
        "f(bill=1)",
        "def f(bill): ...",
        "from a import Bill",
        "import a as bill",
    ):
        assert [name for _, name in retired_in(ast.parse(source))] in (["bill"], ["Bill"]), source
    assert list(retired_in(ast.parse("billing = 'bill'"))) == []


def retired_in(module: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield each retired word that is a name in a module, with its line."""
    for node in ast.walk(module):
        for name in _names(node):
            if name in RETIRED:
                yield getattr(node, "lineno", 0), name


def _names(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Name):
        yield node.id
    elif isinstance(node, ast.Attribute):
        yield node.attr
    elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        yield node.name
    elif isinstance(node, (ast.arg, ast.keyword)):
        yield node.arg or ""
    elif isinstance(node, ast.alias):
        yield from (node.name, node.asname or "")
