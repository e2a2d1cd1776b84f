"""Retired words: names that gave way to the field's term, and words that name no component."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator

import pytest

from tests.architecture.code import PACKAGES, ROOT, modules, tracked_files, tree

#: Identifiers that are gone, and what is said instead. A word is added when the last use of it is renamed.
RETIRED = {
    "bill": "order",
    "Bill": "Order",
    "BillState": "OrderState",
    "bank_kinds": "the acquirer's fault types",
    "Booth": "Harness",
    "Teller": "RecordingClient",
    "Desk": "RecordingClient, Writer",
    "open_booth": "Harness",
    "set_stage": "Harness",
    "Course": "run",
    "Programme": "run config",
    "Strike": "FaultInjection",
    "calm_s": "quiet_period_s",
    "World": "Target",
    "spoil": "add_toxic",
    "Bait": "TriggerOrder",
    "Deed": "Operation",
    "hire": "build_workers",
    "mix_up_ids": "reuse_request_id",
    "Person": "Identity",
    "Telephone": "RecordingClient",
    "Heard": "CallResult",
    "Told": "Reply",
    "Till": "SharedState",
    "Evening": "Simulation",
    "Weather": "FaultRates",
    "CALM": "FaultRates.NONE",
    "STORM": "FaultRates.HIGH",
    "Scribe": "DatasetBuilder",
    "House": "InMemoryCluster, RunningStack",
    "believed_until": "valid_until",
    "believes_in": "is_valid",
    "Belief": "SessionValidity",
    "_hear": "on_kazoo_state",
    "_gulp": "fill_buffer",
    "_Stake": "grant",
    "list_surely": "sync_and_list",
    "Follower": "NodeWatcher",
    "RuleBook": "RuleWatcher",
    "Cluster": "EndpointPool",
    "LIMBO_S": "EMPTY_LIST_GRACE_S, REMOVED_ENDPOINT_TTL_S",
    "CLEARLY": "COST_RATIO_MIN",
    "dice": "rng",
    "Whereabouts": "AdvertisedAddress",
    "keepers": "drain tasks",
    "Outside": "ExternalService",
    "Merchants": "MerchantNotifier",
    "Handout": "SecretDistributor",
    "last_words": "last log line",
    "lose_sight": "mark_unknown",
    "ask_now": "schedule_query",
    "owes": "pending_notifications",
    "Purpose": "OutboxAction",
    "Undone": "ReversalResult",
    "AcquirerSays": "ChargeStatus",
    "Silence": "AcquirerRetry",
    "Rival": "ConflictingPayment",
    "Begun": "Execution",
    "_let_others": "release_lease",
    "_LastLook": "FinalRead",
    "_Places": "CallIndex",
    "untold": "unrecorded",
    "MessageEncoding": "OrderResponses, LedgerResponses",
}
#: Words that name no component: say the caller, another clerk, no instance, the holder.
VAGUE = re.compile(r"(?<!`)\b(nobody|somebody|whoever|anybody|everybody)\b(?!`)", re.IGNORECASE)
#: Generated code, and migrations, which name stored data as it was.
_EXCEPTED = ("versions", "gen")
#: CHANGELOG quotes what was.
_PAGES = ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md")
#: Names of Unix users.
_USERS = {"nobody"}


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


@pytest.mark.parametrize("package", PACKAGES)
def test_vague_word_is_in_no_text_of_the_code(package: str) -> None:
    used = [
        f"{module}:{line} {word}"
        for module in modules(package)
        if not set(_EXCEPTED) & set(module.parts)
        for line, word in vague_in(texts(ROOT.joinpath(module).read_text()))
    ]
    assert used == []


def test_vague_word_is_on_no_page_and_in_no_proto() -> None:
    pages = [page for page in tracked_files() if is_checked_page(str(page))]
    used = [
        f"{page}:{line} {word}"
        for page in pages
        for line, word in vague_in(enumerate(ROOT.joinpath(page).read_text().split("\n"), start=1))
    ]
    assert used == []


def test_vague_word_is_seen_in_comment_docstring_and_string() -> None:
    for source in ("# told by nobody", '"""Whoever asks."""', "error = 'somebody is first'", "f'{name}: anybody'"):
        assert len(list(vague_in(texts(source)))) == 1, source
    assert list(vague_in(texts("nobody = 1\nuser = 'nobody'  # `nobody`"))) == []


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


def texts(source: str) -> Iterator[tuple[int, str]]:
    """Yield the comments and the strings of a module, with their lines."""
    kinds = {tokenize.COMMENT, tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", tokenize.STRING)}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type in kinds:
            yield token.start[0], token.string


def vague_in(lines: Iterator[tuple[int, str]]) -> Iterator[tuple[int, str]]:
    """Yield each vague word of some texts, with its line."""
    for line, text in lines:
        if text.strip("'\"") not in _USERS:
            yield from ((line + text.count("\n", 0, found.start()), found[0]) for found in VAGUE.finditer(text))


def is_checked_page(path: str) -> bool:
    """Return whether a file is a page about the product, or a proto."""
    return path.endswith(".proto") or (path.endswith(_PAGES) and not path.startswith("tests/"))
