"""Pages of lists: cut by rows and by bytes, and tokens that are good for one query."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given

from countinghouse.acquirer.v1 import acquirer_pb2
from countinghouse.ledger.v1 import ledger_pb2
from countinghouse.order.v1 import order_pb2
from countinghouse.payment.v1 import payment_pb2
from services.kernel.errors import InvalidArgument
from services.runtime.grpc import pagination

#: Every request of a page, with two filters, where it has one.
LISTS: list[tuple[Any, Any, tuple[Any, ...]]] = [
    (order_pb2.ListOrdersRequest(), order_pb2.ListOrdersRequest(customer_id="mei"), (7,)),
    (payment_pb2.ListPaymentsRequest(), payment_pb2.ListPaymentsRequest(source=payment_pb2.SOURCE_CARD), (7, "p1")),
    (ledger_pb2.ListAccountsRequest(), ledger_pb2.ListAccountsRequest(prefix="wallet:"), ("a",)),
    (ledger_pb2.ListJournalsRequest(), ledger_pb2.ListJournalsRequest(account_id="a"), (7,)),
    (acquirer_pb2.ListChargesRequest(), acquirer_pb2.ListChargesRequest(), (7,)),
    (acquirer_pb2.ListLogRequest(), acquirer_pb2.ListLogRequest(key="k"), (7,)),
]
NAMES = [type(plain).__name__ for plain, _, _ in LISTS]


def types_of(key: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(map(type, key))


def refused(request: Any, types: tuple[Any, ...]) -> None:
    with pytest.raises(InvalidArgument) as refusal:
        pagination.key_in(request, types)
    assert refusal.value.reason == "PAGE_TOKEN_INVALID"
    assert refusal.value.fields[0][0] == "page_token"


class Numbers:
    """A list of `count` accounts whose names have so many characters, but for the first `small` ones."""

    def __init__(self, count: int, length: int = 1, small: int = 0) -> None:
        self._count, self._length, self._small = count, length, small
        self.read = self.queries = 0

    async def fetch(self, key: Any, limit: int) -> Sequence[int]:
        first = key[0] + 1 if key else 0
        rows = range(first, min(first + limit, self._count))
        self.read += len(rows)
        self.queries += 1
        return rows

    async def page(self, page_size: int = 0, token: str = "", prefix: str = "") -> pagination.Page[Any]:
        return await pagination.read_page(
            ledger_pb2.ListAccountsRequest(page_size=page_size, page_token=token, prefix=prefix),
            key_types=(int,),
            fetch=self.fetch,
            key_of=lambda row: (row,),
            out=lambda row: ledger_pb2.Account(account_id=self._name(row), version=row),
        )

    def _name(self, row: int) -> str:
        return str(row).rjust(self._length if row >= self._small else 1, "x")

    async def walk(self, page_size: int = 0) -> list[pagination.Page[Any]]:
        """All pages, following the tokens."""
        found = [await self.page(page_size)]
        while found[-1].next_page_token:
            found.append(await self.page(page_size, found[-1].next_page_token))
        return found


def test_page_size_has_a_default_and_bounds() -> None:
    """0 is the default; the bounds are taken, what is beyond them is refused."""
    assert [pagination.page_size(asked) for asked in (0, 1, 1_000)] == [50, 1, 1_000]
    for asked in (-1, 1_001):
        with pytest.raises(InvalidArgument) as refusal:
            pagination.page_size(asked)
        assert refusal.value.reason == "PAGE_SIZE_OUT_OF_RANGE"


@pytest.mark.parametrize(("count", "size"), [(0, 3), (3, 3), (4, 3), (250, 100), (250, 0), (1_001, 1_000)])
async def test_every_row_is_listed_once(count: int, size: int) -> None:
    """In order; a full page is not followed by an empty one."""
    found = await Numbers(count).walk(size)
    assert [row.version for page in found for row in page.rows] == list(range(count))
    assert [len(page.rows) for page in found[:-1]] == [size or 50] * (len(found) - 1)
    assert found[-1].rows or count == 0


async def test_page_of_large_rows_is_cut_by_bytes() -> None:
    """Below PAGE_BYTES with the rows' tags; every row is listed once, and no page is empty."""
    found = await Numbers(40, length=100_000).walk(1_000)
    assert [row.version for page in found for row in page.rows] == list(range(40))
    assert len(found) == 8
    for page in found:
        answer = ledger_pb2.ListAccountsResponse(accounts=page.rows, next_page_token=page.next_page_token)
        assert answer.ByteSize() < pagination.PAGE_BYTES + 1_000


async def test_row_larger_than_a_page_is_a_page_of_its_own() -> None:
    """No list stops at it for ever."""
    found = await Numbers(3, length=pagination.PAGE_BYTES + 1).walk()
    assert [[row.version for row in page.rows] for page in found] == [[0], [1], [2]]


@pytest.mark.parametrize("length", [30_000, 60_000, 100_000, pagination.PAGE_BYTES])
@pytest.mark.parametrize("size", [0, 8, 100, 1_000])
async def test_page_of_large_rows_reads_few_rows_more_than_it_sends(length: int, size: int) -> None:
    """The largest page size of the largest rows is no way to make a server read a hundred megabytes."""
    numbers = Numbers(100_000, length=length)
    page = await numbers.page(size)
    assert numbers.read <= max(16, len(page.rows) + 1)


async def test_page_whose_later_rows_are_large_reads_at_most_as_many_again_as_it_has_grown_by() -> None:
    """Small rows say nothing of those behind them."""
    numbers = Numbers(100_000, length=100_000, small=20)
    page = await numbers.page(1_000)
    assert len(page.rows) == 25
    assert numbers.read <= 16 + 3 * 16


async def test_page_of_small_rows_is_read_in_few_queries() -> None:
    """Two for a page of the default size; then the largest part of the rest each time."""
    for size, queries in ((0, 2), (8, 1), (1_000, 12)):
        numbers = Numbers(100_000)
        assert len((await numbers.page(size)).rows) == (size or pagination.DEFAULT_ROWS)
        assert numbers.queries <= queries


@pytest.mark.parametrize(("plain", "filtered", "key"), LISTS, ids=NAMES)
def test_key_comes_back_as_it_went_out(plain: Any, filtered: Any, key: tuple[Any, ...]) -> None:
    """Whatever the page size; the token is safe in a URL."""
    for request in (plain, filtered):
        token = pagination.token_of(request, key)
        assert token.replace("-", "").replace("_", "").isalnum()
        again = type(request)(page_token=token, page_size=17)
        again.MergeFrom(request)
        assert pagination.key_in(again, types_of(key)) == key


@pytest.mark.parametrize(("plain", "filtered", "key"), LISTS, ids=NAMES)
def test_token_of_another_list_or_filter_is_refused(plain: Any, filtered: Any, key: tuple[Any, ...]) -> None:
    """Also where its key would be one of this list."""
    for other_plain, other_filtered, _ in LISTS:
        for other in (other_plain, other_filtered):
            for mine in (plain, filtered):
                if other == mine and type(other) is type(mine):
                    continue
                request = type(mine)(page_token=pagination.token_of(other, key))
                request.MergeFrom(mine)
                refused(request, types_of(key))


def test_first_page_has_no_key() -> None:
    """An empty token begins."""
    assert pagination.key_in(order_pb2.ListOrdersRequest(), (int,)) is None


def forged(*parts: object) -> str:
    """A token that nobody gave out."""
    return base64.urlsafe_b64encode("\n".join(map(str, parts)).encode()).decode().rstrip("=")


PLAIN = order_pb2.ListOrdersRequest()
MINE = base64.urlsafe_b64decode(pagination.token_of(PLAIN, (1,)) + "==").decode().split("\n")[0]


@pytest.mark.parametrize(
    "token",
    [
        "?",
        "é",
        "a",
        "=",
        "AAAAA",
        "MQ",
        forged(7),
        forged(MINE),
        forged(MINE, "x"),
        forged(MINE, -1),
        forged(MINE, "1" * 19),
        forged(MINE, "١"),
        forged(MINE, 1, 1),
        forged(MINE, 1) + "=",
        forged(MINE, 1) + " ",
    ],
)
def test_token_that_was_not_given_out_is_refused(token: str) -> None:
    """Among them those of the releases before, which held the key alone."""
    refused(order_pb2.ListOrdersRequest(page_token=token), (int,))


@pytest.mark.parametrize("part", ["", "a b", "a\x00", "梅", "x" * 161, "a'"])
def test_token_with_a_key_that_no_row_has_is_refused(part: str) -> None:
    """No text of a caller comes to a database this way."""
    request = ledger_pb2.ListAccountsRequest()
    request.page_token = pagination.token_of(request, (part,))
    refused(request, (str,))


@given(st.text())
def test_any_text_is_a_key_or_refused(token: str) -> None:
    """No other exception leaves."""
    request = order_pb2.ListOrdersRequest(page_token=token)
    with suppress(InvalidArgument):
        pagination.key_in(request, (int,))
