"""What a rule may hold: nothing that is expensive to build is built, and an empty entry spoils nothing else."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import yaml

from coordination.errors import BadProviderURL, BadRule
from coordination.locks import Holder
from coordination.quoting import MAX_CHARACTERS, MAX_ORIGIN_CHARACTERS, quoted
from coordination.registry import ProviderURL
from coordination.rules.configurators import parse_configurators, parse_override
from coordination.rules.document import (
    MAX_DEPTH,
    MAX_NODES,
    MAX_NUMBER_CHARACTERS,
    MAX_TEXT_CHARACTERS,
    RuleDocument,
    load,
)
from coordination.rules.routers import parse_conditions, parse_tags

KEY = "a.B::"
#: Nine lists, each of nine times the one before: 344 bytes for 387,420,489 texts.
BOMB = "\n".join(["a: &a [x,x,x,x,x,x,x,x,x]", *(f"{two}: &{two} [{','.join([f'*{one}'] * 9)}]" for one, two in
                  zip("abcdefgh", "bcdefghi", strict=True))])  # fmt: skip


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was built from YAML's events."""
    texts: list[str] = []
    build = yaml.load

    def note(text: str, **options: Any) -> Any:
        texts.append(text)
        return build(text, **options)

    monkeypatch.setattr(yaml, "load", note)
    return texts


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (BOMB, "anchors and aliases"),
        ("configs: &all [1]", "anchors and aliases"),
        ("a: *b", "anchors and aliases"),
        ("a: !!python/object:os.system [x]", "tags are not allowed"),
        ("a: !!binary " + "A" * 100, "tags are not allowed"),
        ("[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1), "nested deeper"),
        ("- a\n" * (MAX_NODES + 1), f"more than {MAX_NODES} values"),
        ("a: " + "1:" * (MAX_TEXT_CHARACTERS // 2) + "1", "characters"),
        ("a: '" + "x" * (MAX_TEXT_CHARACTERS + 1) + "'", "characters"),
    ],
)
def test_document_that_is_expensive_to_build_is_refused_before(built: list[str], text: str, why: str) -> None:
    with pytest.raises(BadRule, match=why):
        load(text, "a rule")
    assert built == []


#: In base 60, too large for a float; and hexadecimal, with more digits than Python writes as text.
LARGE = ["1:" * 200 + "1.5", "0x" + "f" * 4_000]


@pytest.mark.parametrize("number", LARGE)
@pytest.mark.parametrize(
    ("parse", "text"),
    [
        (parse_configurators, "configs:\n- side: consumer\n  parameters:\n    weight: {}"),
        (parse_configurators, "configs:\n- parameters: {{weight: 1}}\n  side:\n    {}"),
        (parse_configurators, "\n\n\n    {}"),
        (parse_conditions, "force: true\nconditions:\n- a = 1\n-   {}"),
        (parse_tags, "tags:\n- addresses: ['*']\n  name:\n    {}"),
    ],
)
def test_number_that_is_too_large_is_refused_at_its_place(
    built: list[str], parse: Callable[[str, str], object], text: str, number: str
) -> None:
    """Nothing else than BadRule is raised; as text it is no number to YAML."""
    with pytest.raises(BadRule, match=rf"^a\.B::\..*a number of {len(number)} characters at line 4, column \d+;"):
        parse(text.format(number), KEY)
    assert built == []
    assert load(f"'{number}'", "a rule") == number


@pytest.mark.parametrize("number", ["9" * MAX_NUMBER_CHARACTERS, "1:" * 126 + "1.5", "0x" + "f" * 254])
def test_number_within_its_limit_is_text_to_a_rule(number: str) -> None:
    assert RuleDocument.parse(f"name: {number}", "a rule").text("name").isprintable()


def test_whatever_yaml_cannot_build_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a number that is too large for a float, were it not measured before."""
    monkeypatch.setattr("coordination.rules.document.MAX_NUMBER_CHARACTERS", MAX_TEXT_CHARACTERS)
    with pytest.raises(BadRule, match="not YAML"):
        load(f"a: {LARGE[0]}", "a rule")


def test_document_within_its_limits_is_built(built: list[str]) -> None:
    """A list of so many values less one: the list itself is one."""
    assert len(load("- a\n" * (MAX_NODES - 1), "a rule")) == MAX_NODES - 1
    assert load("[" * MAX_DEPTH + "]" * MAX_DEPTH, "a rule")
    assert len(built) == 2


@pytest.mark.parametrize("secret", ["\x1b[31m", "\u202e", "\x85", "\u2028"])
@pytest.mark.parametrize(
    "text",
    [
        "configs: [{{side: {}, parameters: {{weight: 1}}}}]",
        "configs: [{{side: consumer, parameters: {{weight: {}}}}}]",
        "configs: [{{side: consumer, match: {{param: [{{key: k, value: {{{}: a}}}}]}}, parameters: {{weight: 1}}}}]",
        "configs: {}",
    ],
)
def test_refused_value_is_quoted_escaped_and_cut(text: str, secret: str) -> None:
    hostile = '"' + secret.encode("unicode_escape").decode() + "x" * 1_000 + '"'
    with pytest.raises(BadRule) as refusal:
        parse_configurators(text.format(hostile), KEY)
    message = str(refusal.value)
    assert message.isprintable()
    assert len(message) < MAX_CHARACTERS + MAX_ORIGIN_CHARACTERS + 200


def test_refused_collection_is_not_rendered() -> None:
    class Costly(dict[str, object]):
        def __repr__(self) -> str:
            raise AssertionError("rendered")

    assert quoted(Costly()) == "a mapping"
    assert quoted([Costly()]) == "a list"
    with pytest.raises(BadRule, match="a mapping"):
        RuleDocument({"side": Costly()}, "a rule").text("side")


def test_syntax_error_shows_the_place_and_no_content() -> None:
    with pytest.raises(BadRule) as refusal:
        load("a: 1\nb: [secret", "a rule")
    assert str(refusal.value) == "a rule: not YAML at line 3, column 1"


@pytest.mark.parametrize("empty", ["", "''", "'  '", "~", "null", "{}", "[]"])
def test_empty_entry_is_skipped_and_the_rest_of_the_rule_applies(empty: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    (weight,) = parse_configurators(f"configs:\n- {empty}\n- {{side: consumer, parameters: {{weight: 1}}}}", KEY)
    (route,) = parse_conditions(f"conditions:\n- {empty}\n- method=Pay => host=10.0.0.5", KEY)
    (tags,) = parse_tags(f"tags:\n- {empty}\n- {{name: gray, addresses: ['10.0.0.5']}}", KEY)
    assert weight.parameters == {"weight": "1"}
    assert route.text == "method=Pay => host=10.0.0.5"
    assert [tag.name for tag in tags.tags] == ["gray"]
    assert caplog.text.count("1 empty entries") == 3


@pytest.mark.parametrize("key", ["addresses", "providerAddresses", "applications"])
def test_condition_of_empty_entries_only_is_refused(key: str) -> None:
    """It must not be taken for no condition."""
    with pytest.raises(BadRule, match="empty entries only"):
        parse_configurators(f"configs: [{{side: consumer, {key}: ['', ~], parameters: {{weight: 1}}}}]", KEY)


def test_empty_one_of_is_refused() -> None:
    with pytest.raises(BadRule, match="empty entries only"):
        parse_configurators("configs: [{side: consumer, match: {service: {oneof: [~]}}, parameters: {weight: 1}}]", KEY)


def test_url_too_long_to_be_read_is_refused() -> None:
    long = "override://0.0.0.0/a.B?" + "&".join(f"p{number}=1" for number in range(100_000))
    with pytest.raises(BadRule, match="too many for a URL"):
        parse_override(long)
    with pytest.raises(BadProviderURL, match="too many for a URL"):
        ProviderURL.parse(long)


@pytest.mark.parametrize("data", [b"[" * 100_000, b'{"owner":"' + b"x" * 100_000 + b'"}'])
def test_holder_of_too_many_bytes_is_shown_as_unreadable(data: bytes) -> None:
    assert Holder.from_json(data).owner == "?"
