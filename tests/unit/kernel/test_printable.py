"""What a terminal would obey, or a reader would not see, is shown by its number."""

from __future__ import annotations

import json
import unicodedata

import hypothesis.strategies as st
import pytest
from hypothesis import given

from services.kernel.printable import DECEPTIVE, escape, escape_json, escape_output

DECEIVING = [
    *("\x00", "\x1b", "\x7f", "\x85", "\x9b", "\xad", "\u034f", "\u061c", "\u115f", "\u180e", "\u200b", "\u200d"),
    *("\u200e", "\u2028", "\u2029", "\u202e", "\u2060", "\u2066", "\u2069", "\u3164", "\ufeff", "\U000e0041", "\udcff"),
]


@pytest.mark.parametrize("character", DECEIVING)
def test_deceptive_character_is_shown_by_its_number(character: str) -> None:
    """In a line of somebody else's text."""
    shown = escape(f"li{character}")
    assert shown.isascii()
    assert shown.isprintable()
    assert f"{ord(character):x}" in shown


@pytest.mark.parametrize("text", ["li", "梅", "Ünsal Öz", "O'Brien", "¥ 12.50", "नमस्ते", "日本\u3000語", "a\u00a0b"])
def test_readable_text_is_shown_as_it_is(text: str) -> None:
    """In any script."""
    assert escape(text) == escape_output(text) == text


def test_every_format_character_is_deceptive() -> None:
    """As far as this Python's Unicode knows them, and controls, separators and surrogates with them.

    The signs before Arabic, Syriac and Kaithi numbers are the format characters that are drawn.
    """
    drawn = {0x600, 0x601, 0x602, 0x603, 0x604, 0x605, 0x6DD, 0x70F, 0x890, 0x891, 0x8E2, 0x110BD, 0x110CD}
    categories = {"Cc", "Cf", "Cs", "Zl", "Zp"}
    wanted = {code for code in range(0x110000) if unicodedata.category(chr(code)) in categories} - drawn
    assert [f"{code:04x}" for code in sorted(wanted) if not DECEPTIVE.fullmatch(chr(code))] == []


def test_line_ends_and_colours_of_output_stay() -> None:
    """A CSI in one character does not."""
    assert escape_output("\x1b[31ma\tb\x1b[0m\r\n\x9b31m") == "\x1b[31ma\tb\x1b[0m\r\n\\x9b31m"


@given(st.text())
def test_json_means_the_same_when_escaped(text: str) -> None:
    """And holds none of them."""
    shown = escape_json(json.dumps({text: text}, ensure_ascii=False, indent=2))
    assert json.loads(shown) == {text: text}
    assert not DECEPTIVE.search(shown.replace("\n", ""))


def test_json_holds_what_utf_8_cannot() -> None:
    """A lone surrogate, and a tag beyond the first plane."""
    assert escape_json('"\udcff\U000e0041"') == r'"\udcff\udb40\udc41"'
