"""Addresses of ZooKeeper: the spellings that are understood, and the sentence that refuses the others."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kazoo.hosts import collect_hosts

from coordination.errors import BadAddress
from coordination.session import EnsembleAddress, ServerAddress


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("h1", "h1:2181"),
        ("h1:2182", "h1:2182"),
        (" h1:2181 , h2:2181 ", "h1:2181,h2:2181"),
        ("h1:2181 h2:2181\n", "h1:2181,h2:2181"),
        ("h1:2181,h2:2181,", "h1:2181,h2:2181"),
        (",h1:2181,,h2:2181", "h1:2181,h2:2181"),
        ("h1:2181,h1:2181", "h1:2181"),
        ("h1:2181,h2/house", "h1:2181,h2:2181/house"),
        ("h1:2181,h2:2181/a/b/", "h1:2181,h2:2181/a/b"),
        ("h1/", "h1:2181"),
        ("zookeeper:2181", "zookeeper:2181"),
        ("zookeeper://h1:2181", "h1:2181"),
        ("ZooKeeper://h1:2181,h2:2181", "h1:2181,h2:2181"),
        ("zookeeper://h1:2181?backup=h2:2181,h3:2182", "h1:2181,h2:2181,h3:2182"),
        ("zookeeper://h1?backup=h2, h3 ", "h1:2181,h2:2181,h3:2181"),
        ("zookeeper://h1?backup=h2%3A2181%2Ch3&backup=h4", "h1:2181,h2:2181,h3:2181,h4:2181"),
        ("zookeeper://h1:2181/house?backup=h2:2181", "h1:2181,h2:2181/house"),
        ("h1:2181?backup=h2:2181", "h1:2181,h2:2181"),
        ("h1:2181;", "h1:2181"),
        ("[::1]:2181", "[::1]:2181"),
        ("[::1]", "[::1]:2181"),
        ("[2001:db8::1]:2182,[fe80::1%eth0],h3/house", "[2001:db8::1]:2182,[fe80::1%eth0]:2181,h3:2181/house"),
        ("127.0.0.1:2181", "127.0.0.1:2181"),
    ],
)
def test_address_in_a_known_spelling_is_understood_whole(text: str, canonical: str) -> None:
    """Every server that was named is there, and ZooKeeper's own notation reads back as the same address."""
    address = EnsembleAddress.parse(text)
    assert str(address) == canonical
    assert EnsembleAddress.parse(canonical) == address
    assert collect_hosts(canonical) == ([(each.host, each.port) for each in address.servers], address.chroot or None)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "names no server"),
        (" , ", "names no server"),
        ("/house", "names no server"),
        ("h1:2181;h2:2181", "one ensemble"),
        ("zookeeper://h1:2181|zookeeper://h2:2181", "one ensemble"),
        ("h1 :2181", "names no host"),
        (":2181", "names no host"),
        ("h1:2181/house,h2:2181", "comes once, after the last server"),
        ("h1:2181/house,h2:2181/house", "comes once, after the last server"),
        ("h1/../zookeeper", "comes once, after the last server"),
        ("h1//house", "comes once, after the last server"),
        ("h1:", "no port"),
        ("h1:0", "no port"),
        ("h1:65536", "no port"),
        ("h1:２１８１", "no port"),
        ("h1:2181x", "no port"),
        ("::1", r"\[::1\]:2181"),
        ("::1:2181", r"\[::1\]:2181"),
        ("[::1", "no IPv6 address in brackets"),
        ("[::1]2181", "no IPv6 address in brackets"),
        ("[127.0.0.1]:2181", "no IPv6 address in brackets"),
        ("nacos://h1:8848", "no way to reach ZooKeeper"),
        ("zookeeper://h1?backup=h2&group=dubbo", "'group' is not supported"),
        ("h1\x1b[2J:2181", r"\\x1b"),
        ("梅:2181", r"\\u6885"),
        ("h" * 5000, "5000 characters"),
    ],
)
def test_address_that_is_not_understood_is_refused_in_a_sentence(text: str, why: str) -> None:
    with pytest.raises(BadAddress, match=why):
        EnsembleAddress.parse(text)


def test_address_with_a_password_is_refused_without_showing_it() -> None:
    with pytest.raises(BadAddress) as refusal:
        EnsembleAddress.parse("zookeeper://li:secret@h1:2181")
    assert "secret" not in str(refusal.value)


@given(st.text(st.sampled_from("h1:[],;/?=&% \nzookeeper://backup")))
def test_any_text_is_an_address_or_a_bad_address(text: str) -> None:
    """What was understood is understood in the same way once more."""
    with contextlib.suppress(BadAddress):
        address = EnsembleAddress.parse(text)
        assert EnsembleAddress.parse(str(address)) == address


@pytest.mark.parametrize(("host", "written"), [("h1", "h1:2182"), ("::1", "[::1]:2182")])
def test_server_is_written_as_it_is_read(host: str, written: str) -> None:
    assert str(ServerAddress(host, 2182)) == written
    assert ServerAddress.parse(written) == ServerAddress(host, 2182)
