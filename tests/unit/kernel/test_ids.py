"""Ids, names and texts: what is taken, and that seeds repeat."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from services.kernel.errors import InvalidArgument
from services.kernel.ids import (
    RandomIds,
    check_account,
    check_business_key,
    check_name,
    check_reason,
    check_text,
    check_text_form,
    is_blank,
)
from tests.fakes.ids import SeededIds

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


#: White_Space, and Default_Ignorable_Code_Point as DerivedCoreProperties.txt of Unicode 15.1 lists it.
WHITE_SPACE = "\t\n\v\f\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(map(chr, range(0x2000, 0x200B)))
DEFAULT_IGNORABLE = [
    *(range(0xAD, 0xAE), range(0x34F, 0x350), range(0x61C, 0x61D), range(0x115F, 0x1161), range(0x17B4, 0x17B6)),
    *(range(0x180B, 0x1810), range(0x200B, 0x2010), range(0x202A, 0x202F), range(0x2060, 0x2070)),
    *(range(0x3164, 0x3165), range(0xFE00, 0xFE10), range(0xFEFF, 0xFF00), range(0xFFA0, 0xFFA1)),
    *(range(0xFFF0, 0xFFF9), range(0x1BCA0, 0x1BCA4), range(0x1D173, 0x1D17B), range(0xE0000, 0xE1000)),
]
BLANK_GLYPHS = "\u2800\U0001d159\U00013441\U00013442"


def test_whatever_is_not_drawn_is_blank() -> None:
    """White space, what may be ignored, and glyphs that are blank."""
    hidden = [*WHITE_SPACE, *BLANK_GLYPHS, *(chr(code) for codes in DEFAULT_IGNORABLE for code in codes)]
    assert [f"{ord(each):04x}" for each in hidden if not is_blank(each)] == []


@pytest.mark.parametrize("glyph", BLANK_GLYPHS)
def test_reason_of_blank_glyphs_is_refused(glyph: str) -> None:
    for reason in (glyph, f" {glyph}{glyph}\u0301"):
        with pytest.raises(InvalidArgument) as refusal:
            check_reason(reason, "reason")
        assert refusal.value.reason == "FIELD_REQUIRED"


@pytest.mark.parametrize("text", ["a", "误", "🙂", "¿", "1", "𝅘𝅥𝅮", "ꙮ"])
def test_text_that_is_drawn_is_not_blank(text: str) -> None:
    assert not is_blank(f" {text}")
