"""The watcher of rules: an error of ours, too, is counted and logged, and the last good rule is kept."""

from __future__ import annotations

import pytest

from coordination.rules import rule_watcher

GOOD, UNEXPECTED = "good", "unexpected"


def parse(text: str, key: str = "a.B::") -> tuple[str, ...]:
    """Read a rule; for one text, raise an error that no handler expects."""
    if text == UNEXPECTED:
        raise OverflowError("too large")
    return (text,)


@pytest.fixture
def readable() -> list[bool]:
    """What was counted."""
    return []


def count_in(readable: list[bool]) -> rule_watcher.OnRuleRead:
    """Return what counts there."""

    def on_rule_read(read: bool, changes: int = 1, /) -> None:
        readable.extend([read] * changes)

    return on_rule_read


async def test_yaml_that_fails_unexpectedly_is_unreadable(
    readable: list[bool], caplog: pytest.LogCaptureFixture
) -> None:
    """Were the exception to pass, the node would be read again, and the same data be taken for known."""
    node = rule_watcher._Node.__new__(rule_watcher._Node)
    node._path, node._parse, node._key, node._data = "/dubbo/config/dubbo/a.B::.tag-router", parse, "a.B::", b""
    node._on_rule_read = count_in(readable)
    for data in (GOOD, UNEXPECTED, UNEXPECTED):
        await node._take(data.encode())
    assert node.rules == (GOOD,)
    assert readable == [True, False]
    assert caplog.text.count("a.B::.tag-router is not applied") == caplog.text.count("OverflowError: too large") == 1


async def test_name_that_fails_unexpectedly_costs_itself(
    readable: list[bool], caplog: pytest.LogCaptureFixture
) -> None:
    names = rule_watcher._Names.__new__(rule_watcher._Names)
    names._path, names._parse, names._known = "/dubbo/a.B/configurators", parse, {}
    names._on_rule_read = count_in(readable)
    for _ in range(2):
        await names._take([UNEXPECTED, GOOD])
    assert list(names.rules) == [GOOD]
    assert sorted(readable) == [False, True]
    assert caplog.text.count("OverflowError: too large") == 1
