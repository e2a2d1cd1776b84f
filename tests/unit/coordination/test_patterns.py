"""The patterns of governance rules: what fits, and what is refused."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordination.errors import BadRule
from coordination.rules.patterns import AddressPattern, StringMatch, ValuePattern, glob_matches


@pytest.mark.parametrize(
    ("pattern", "value", "fits"),
    [
        ("find", "find", True),
        ("find", "finder", False),
        ("find*", "find", True),
        ("find*", "findAll", True),
        ("*All", "findAll", True),
        ("f*l", "findAll", True),
        ("f*l", "fi", False),
        ("aa*aa", "aaa", False),
        ("a*b*c", "a--b--c", True),
        ("a*b*c", "a--c", False),
        ("*", "", True),
        ("", "", True),
        ("", "a", False),
    ],
)
def test_star_is_any_text(pattern: str, value: str, fits: bool) -> None:
    assert glob_matches(pattern, value) is fits


@pytest.mark.parametrize(
    ("pattern", "value", "fits"),
    [
        ("1~100", "1", True),
        ("1~100", "100", True),
        ("1~100", "101", False),
        ("~100", "-5", True),
        ("50~", "49", False),
        ("1~100", "many", False),
        ("$host", "10.0.0.9", True),
        ("$host", "10.0.0.8", False),
        ("$nothing", "x", False),
    ],
)
def test_value_pattern_matches_ranges_and_consumer_facts(pattern: str, value: str, fits: bool) -> None:
    """Ranges of integers, and what the consumer has under a name."""
    assert ValuePattern.parse(pattern).matches(value, {"host": "10.0.0.9"}) is fits


@pytest.mark.parametrize("text", ["~", "a~b", "1~x"])
def test_range_that_is_none(text: str) -> None:
    with pytest.raises(BadRule):
        ValuePattern.parse(text)


@pytest.mark.parametrize(
    ("pattern", "host", "port", "fits"),
    [
        ("10.20.3.3:20880", "10.20.3.3", 20880, True),
        ("10.20.3.3:20880", "10.20.3.3", 20881, False),
        ("10.20.3.3", "10.20.3.3", 20881, True),
        ("10.20.3.*", "10.20.3.77", 1, True),
        ("10.20.3.*:20880", "10.20.4.77", 20880, False),
        ("10.20.3.1-9:20880", "10.20.3.9", 20880, True),
        ("10.20.3.1-9", "10.20.3.10", 1, False),
        ("10.20.3.0/24", "10.20.3.200", 1, True),
        ("10.20.3.0/24", "10.20.4.1", 1, False),
        ("10.20.3.0/24", "shop.local", 1, False),
        ("*:20880", "anything", 20880, True),
        ("*", "anything", 1, True),
        ("0.0.0.0:20880", "10.0.0.1", 20880, True),
        ("shop.local:20880", "shop.local", 20880, True),
        ("shop*", "shop-7", 1, True),
        ("[::1]:50051", "::1", 50051, True),
        ("::1", "::1", 50051, True),
        ("fe80::/10", "fe80::1", 1, True),
    ],
)
def test_address_pattern_matches_hosts_networks_and_ports(pattern: str, host: str, port: int, fits: bool) -> None:
    """Hosts, networks, segments and ports; names are compared as text, nobody is asked."""
    assert AddressPattern.parse(pattern).matches(host, port) is fits


@pytest.mark.parametrize("text", ["", "10.0.0.0/99", "x/y", "h:port", "h:0", "h:70000", ":1"])
def test_address_that_is_none(text: str) -> None:
    with pytest.raises(BadRule):
        AddressPattern.parse(text)


@pytest.mark.parametrize(
    ("rule", "value", "fits"),
    [
        ({"exact": "a"}, "a", True),
        ({"exact": "a"}, "ab", False),
        ({"prefix": "a"}, "ab", True),
        ({"wildcard": "a*c"}, "abc", True),
        ({"empty": "true"}, "", True),
        ({"empty": "true"}, "a", False),
        ({"noempty": "true"}, "a", True),
        ({"exact": 5}, "5", True),
    ],
)
def test_string_match_compares_each_way(rule: dict[str, Any], value: str, fits: bool) -> None:
    assert StringMatch.parse(rule).matches(value) is fits


@pytest.mark.parametrize("rule", [None, "a", {}, {"regex": ".*"}, {"exact": "a", "prefix": "b"}, ["exact"]])
def test_string_match_that_is_none(rule: Any) -> None:
    """Regular expressions are refused: a bad one could hold up every call."""
    with pytest.raises(BadRule):
        StringMatch.parse(rule)


@given(st.text(max_size=40), st.text(max_size=40))
def test_any_text_is_a_pattern_or_a_bad_rule(pattern: str, value: str) -> None:
    """Nothing else ever comes out of reading or comparing."""
    glob_matches(pattern, value)
    with contextlib.suppress(BadRule):
        ValuePattern.parse(pattern).matches(value, {})
    with contextlib.suppress(BadRule):
        AddressPattern.parse(pattern).matches(value, 1)
