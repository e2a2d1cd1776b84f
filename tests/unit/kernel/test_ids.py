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
