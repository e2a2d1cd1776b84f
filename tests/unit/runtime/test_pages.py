"""Page sizes and page tokens."""

from __future__ import annotations

from contextlib import suppress

import hypothesis.strategies as st
import pytest
from hypothesis import given

from services.kernel.errors import InvalidArgument
from services.runtime import pages


def test_sizes() -> None:
    """0 is the default; the bounds are taken, what is beyond them is refused."""
    assert [pages.page_size(asked) for asked in (0, 1, 1_000)] == [50, 1, 1_000]
    for asked in (-1, 1_001):
        with pytest.raises(InvalidArgument) as refusal:
            pages.page_size(asked)
        assert refusal.value.reason == "PAGE_SIZE_OUT_OF_RANGE"


@given(st.lists(st.text(st.characters(exclude_characters="\n", exclude_categories=["Cs"])), min_size=1, max_size=3))
def test_a_key_comes_back_as_it_went_out(key: list[str]) -> None:
    """Whatever is in it; the token is safe in a URL."""
    token = pages.encode(*key)
    assert token.replace("-", "").replace("_", "").isalnum() or token == ""
    if token:
        assert pages.decode(token, len(key)) == tuple(key)


@given(st.integers(0, 10**18 - 1))
def test_a_number_comes_back(number: int) -> None:
    """Up to 18 digits, which every sequence fits."""
    assert pages.decode_number(pages.encode(number)) == number


def test_the_first_page_has_no_key() -> None:
    """An empty token begins."""
    assert pages.decode("", 2) is None
    assert pages.decode_number("") is None


@pytest.mark.parametrize(
    "token", ["?", "é", "a", "=", "AAAAA", pages.encode("x"), pages.encode(-1), pages.encode("1" * 19), "M Q", "MQ=="]
)
def test_a_token_that_we_did_not_make_is_refused(token: str) -> None:
    """Never an error of ours, never a page from somewhere."""
    with pytest.raises(InvalidArgument) as refusal:
        pages.decode_number(token)
    assert refusal.value.reason == "PAGE_TOKEN_INVALID"


@given(st.text())
def test_any_text_is_a_key_or_refused(token: str) -> None:
    """No other exception leaves."""
    with suppress(InvalidArgument):
        pages.decode_number(token)


def test_a_token_of_another_list_is_refused() -> None:
    """A key of two parts is none of one."""
    with pytest.raises(InvalidArgument):
        pages.decode(pages.encode("a", "b"), 1)
