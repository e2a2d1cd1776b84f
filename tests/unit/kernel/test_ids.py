"""Ids, names and texts: what is taken, and that seeds repeat."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from services.kernel.errors import InvalidArgument
from services.kernel.ids import (
    RandomIds,
    SeededIds,
    check_account,
    check_business_key,
    check_name,
    check_text,
    check_text_form,
)

LIMITS: list[tuple[Callable[[str, str], str], int]] = [
    (check_name, 64),
    (check_account, 100),
    (check_business_key, 160),
]


@pytest.mark.parametrize(("check", "limit"), LIMITS)
def test_ids_have_a_form(check: Callable[[str, str], str], limit: int) -> None:
    """1 to `limit` characters of a small alphabet; the refusal names the field."""
    for good in ("a", "A-Z_0.9:x", "x" * limit):
        assert check(good, "some_id") == good
    for bad, reason in (
        ("", "FIELD_REQUIRED"),
        ("x" * (limit + 1), "FIELD_MALFORMED"),
        ("a b", "FIELD_MALFORMED"),
        ("a/b", "FIELD_MALFORMED"),
        ("a\n", "FIELD_MALFORMED"),
        ("é", "FIELD_MALFORMED"),
        ("١", "FIELD_MALFORMED"),
    ):
        with pytest.raises(InvalidArgument) as refusal:
            check(bad, "some_id")
        assert (refusal.value.reason, refusal.value.fields[0][0]) == (reason, "some_id")


def test_texts_have_limits() -> None:
    """Any script is welcome; control characters and too many characters are not."""
    assert check_text("茶 ×2, crème", "memo") == "茶 ×2, crème"
    assert check_text("", "memo") == ""
    assert check_text("x" * 200, "memo")
    for text, required, reason in (
        ("", True, "FIELD_REQUIRED"),
        ("x" * 201, False, "FIELD_TOO_LONG"),
        ("a\x00b", False, "FIELD_MALFORMED"),
        ("a\nb", False, "FIELD_MALFORMED"),
    ):
        with pytest.raises(InvalidArgument) as refusal:
            check_text(text, "memo", required=required)
        assert refusal.value.reason == reason


@pytest.mark.parametrize(
    "text",
    [
        *("a\x7fb", "a\x85b", "a\x9bb", "\x1b[2J"),
        *("pay \u202e0001", "\u2066a\u2069", "a\u200eb", "\u061ca"),
        *("a\u2028b", "a\u2029b"),
        *("a\u200bb", "a\ufeffb", "\u2060", "a\u00adb", "\u180e", "\u3164", "a\u1160b", "a\u034fb"),
        *("\ue000", "\ud800", "\ufdd0", "\U000e0041", "\ufffe"),
        *("\u200d", "a\u200d", "\u200da", "a \u200d b", "a\u200d\u200db", "1\u200c2"),
    ],
    ids=ascii,
)
def test_text_with_a_character_that_is_not_shown_is_refused(text: str) -> None:
    """Controls, bidi controls, separators of lines, blanks without width, unassigned code points, loose joiners."""
    with pytest.raises(InvalidArgument) as refusal:
        check_text(text, "memo")
    assert (refusal.value.reason, refusal.value.fields[0][0]) == ("FIELD_MALFORMED", "memo")
    assert refusal.value.message.isascii()


@pytest.mark.parametrize(
    "text",
    [
        *("梅の花 ×2, crème", "ｃａｆé\u3000茶", "e\u0301", "12\u00a0€"),
        *("می\u200cخواهم", "क्\u200dष", "👩\u200d👩\u200d👧", "❤\ufe0f\u200d🔥", "👍🏽", "🇨🇳", "\u0600123"),
        *("한국어", "ไทย", "עברית", "العربية", "⠓⠊\u2800⠓⠊"),
    ],
    ids=ascii,
)
def test_text_of_any_script_is_taken_as_it_is(text: str) -> None:
    """Joiners where scripts and emoji need them; nothing is normalised."""
    assert check_text(text, "memo") == text


def test_text_that_was_taken_before_stays_usable() -> None:
    """Only new texts are held to the rule above."""
    assert check_text_form("a\x9b\u202e", "memo") == "a\x9b\u202e"
    with pytest.raises(InvalidArgument):
        check_text_form("a\x00", "memo")


def test_random_ids_are_ids_and_differ() -> None:
    """Each is a name, begins with its prefix, and is not made twice."""
    source = RandomIds()
    made = {source.new("pay") for _ in range(1_000)}
    assert len(made) == 1_000
    assert all(check_name(name, "id").startswith("pay_") for name in made)


def test_seeded_ids_repeat() -> None:
    """The same seed makes the same ids; another seed others."""
    one, same, other = SeededIds(1), SeededIds(1), SeededIds(2)
    first = [one.new("ord") for _ in range(5)]
    assert first == [same.new("ord") for _ in range(5)]
    assert first != [other.new("ord") for _ in range(5)]
