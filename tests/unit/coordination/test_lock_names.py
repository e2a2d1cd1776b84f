"""Lock nodes: their names, their order, and what they say of their holder."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordination.locks.lock_node import Holder, NodeName, ahead_by, made_by, queue_of

resource_ids = st.from_regex(r"[A-Za-z0-9_.:-]{1,64}", fullmatch=True)
nonces = st.from_regex(r"[0-9a-f]{16}", fullmatch=True)
sequences = st.integers(-(2**31), 2**31 - 1)


@given(resource_ids, nonces, sequences)
def test_names_are_taken_apart_from_the_right(resource_id: str, nonce: str, sequence: int) -> None:
    """Whatever hyphens and digits a resource id holds, the three parts come back; also after the counter wrapped."""
    assert NodeName.parse(f"{resource_id}-{nonce}-{sequence:010d}") == NodeName(resource_id, nonce, sequence)


@pytest.mark.parametrize("name", ["", "a", "a-0123456789abcdef", "a-XYZ-0000000001", "-0123456789abcdef-0000000001"])
def test_other_nodes_are_not_locks(name: str) -> None:
    """What is not a lock's name is nobody's place."""
    assert NodeName.parse(name) is None
    assert queue_of("a", [name]) == []


@given(sequences, st.integers(0, 2**31 - 1))
def test_queue_order_survives_the_wrap(start: int, steps: int) -> None:
    """A node made `steps` later stands `steps` behind, wherever the signed 32-bit counter wraps between them."""
    later = (start + steps + 2**31) % 2**32 - 2**31
    assert ahead_by(start, later) == steps
    assert ahead_by(later, start) == -steps


def test_line_over_the_wrap() -> None:
    """The queue of one resource is sorted across 2147483647 -> -2147483648, and holds no other resource's nodes."""

    def name(resource_id: str, sequence: int) -> str:
        return f"{resource_id}-{'0' * 16}-{sequence:010d}"

    line = [2**31 - 2, 2**31 - 1, -(2**31), -(2**31) + 1]
    names = [name("o-1", sequence) for sequence in line]
    assert queue_of("o-1", [*reversed(names), name("o", 0), name("o-1-2", 5)]) == names


@given(st.lists(resource_ids, min_size=1, max_size=20, unique=True), nonces, sequences)
def test_nodes_of_a_batch_are_found_by_their_nonce(resources: list[str], nonce: str, first: int) -> None:
    """Among all other nodes of their shards, whatever their names contain, and across the wrap."""
    other = "0123456789abcdef" if nonce != "0123456789abcdef" else "f" * 16
    listings: dict[str, list[str]] = {"/a": [], "/b": []}
    for number, resource_id in enumerate(resources):
        sequence = (first + number + 2**31) % 2**32 - 2**31
        shard = listings["/a" if number % 2 else "/b"]
        shard += [
            f"{resource_id}-{nonce}-{sequence:010d}",
            f"{resource_id[-40:]}-{nonce}-{other}-0000000001",
            "nonsense",
        ]
    found = made_by(nonce, listings)
    assert sorted(found) == sorted(resources)
    for resource_id, path in found.items():
        assert path.startswith(("/a/", "/b/"))
        assert NodeName.parse(path[3:]).resource_id == resource_id  # type: ignore[union-attr]


def test_holders_survive_being_written() -> None:
    """A holder comes back from its node's data."""
    holder = Holder("阿丽", {"role": "cashier", "instance": "payment-1"}, 1_700_000_000_000)
    assert Holder.from_json(holder.to_json()) == holder


@pytest.mark.parametrize(
    "data", [b"", b"nonsense", b"[1]", b"\xff", b'{"role":7,"since_ms":"soon"}', pytest.param(b"[" * 1500, id="deep")]
)
def test_unreadable_holders_are_shown_as_such(data: bytes) -> None:
    """Data nobody can read hides nobody from the queue."""
    assert Holder.from_json(data).owner == "?"
    assert Holder.from_json(data).since_ms == 0


def test_holder_that_no_encoding_takes_is_escaped() -> None:
    """JSON may hold lone surrogates; answers and errors name the holder, and protobuf refuses them."""
    holder = Holder.from_json(rb'{"owner":"\ud800","role":"a\udfff","\udc00":"x"}')
    assert holder == Holder("\\ud800", {"role": "a\\udfff", "\\udc00": "x"})


def test_holder_of_the_first_release_is_read() -> None:
    """It named its owner `clerk`; during an upgrade both releases stand in one queue."""
    data = b'{"clerk":"li","role":"cashier","instance":"payment-1","payment":"pay-1","since_ms":7}'
    assert Holder.from_json(data) == Holder("li", {"role": "cashier", "instance": "payment-1", "payment": "pay-1"}, 7)


def test_holder_is_shown_with_its_details() -> None:
    assert str(Holder("li", {"role": "cashier", "payment": "", "instance": "payment-1"})) == "li (cashier, payment-1)"
    assert str(Holder("li")) == "li"
