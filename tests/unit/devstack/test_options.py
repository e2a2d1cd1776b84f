"""What a stack may be asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from services.devstack.stack import Stack, StackOptions
from services.kernel.errors import CountinghouseError, InvalidArgument
from services.kernel.principal import Role


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"services": ("gatekeeper",)}, "SERVICE_UNKNOWN"),
        ({"replicas": {"gatekeeper": 2}}, "SERVICE_UNKNOWN"),
        ({"ports": {"gatekeeper": 2}}, "SERVICE_UNKNOWN"),
        ({"replicas": {"payment": 0}}, "OUT_OF_RANGE"),
        ({"replicas": {"payment": 17}}, "OUT_OF_RANGE"),
        ({"ports": {"payment": 0}}, "OUT_OF_RANGE"),
        ({"ports": {"payment": 65_536}}, "OUT_OF_RANGE"),
        ({"ports": {"payment": 65_535}, "replicas": {"payment": 2}}, "OUT_OF_RANGE"),
        ({"guards_off": ("luck",)}, "GUARD_UNKNOWN"),
        ({"zookeeper": "h1:2181;h2:2181"}, "ZOOKEEPER_ADDRESS"),
    ],
)
def test_invalid_option_is_refused(tmp_path: Path, wrong: dict[str, Any], reason: str) -> None:
    with pytest.raises(InvalidArgument) as refusal:
        StackOptions(tmp_path, **wrong)
    assert refusal.value.reason == reason


async def test_directory_no_database_url_can_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="choose a directory"):
        await Stack(StackOptions(tmp_path / "why?")).start()


async def test_file_is_no_data_directory(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CountinghouseError, match="name another --data"):
        await Stack(StackOptions(tmp_path / "file" / "data")).start()


async def test_stack_that_was_not_started_signs_nothing(tmp_path: Path) -> None:
    stack = Stack(StackOptions(tmp_path))
    with pytest.raises(CountinghouseError, match="not started"):
        stack.token("li", Role.CASHIER)
    await stack.stop()


async def test_instance_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="payment-7"):
        Stack(StackOptions(tmp_path)).kill("payment-7")
