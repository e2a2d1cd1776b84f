"""`countinghouse settle-run` with a scripted client: what it refuses, prints and ends with."""

from __future__ import annotations

import inspect
import json
import os
from pathlib import Path
from typing import Any

import pytest
import typer
from google.protobuf.message import Message

from countinghouse.order.v1 import order_pb2
from countinghouse.payment.v1 import payment_pb2 as pb
from services.cli.client import Client
from services.cli.connection import Connection
from services.cli.settle_run import settle_run
from services.kernel.errors import Aborted, NotFound, PermissionDenied, Unauthenticated, Unavailable
from services.kernel.principal import Role
from services.runtime.grpc.status import to_status

LOCKED = Aborted("ORDER_LOCKED", "held by \x1b[31mli", retry_after_ms=1)


class Services(Client):
    """Settles every order but those of `refusals`; `batch` refuses every call, `later` those after the first."""

    def __init__(self, data: Path, *, as_json: bool = False, **refusals: Any) -> None:
        super().__init__(Connection(data, "", None, Role.ACCOUNTANT, "", 60.0, as_json))
        self.keys: list[str] = []
        self._refusals = refusals

    async def find(self, service: str, within_s: float) -> None:
        """It is there."""

    async def send(self, service: str, method: str, request: Message, within_s: float) -> Any:
        if whole := self._refusals.get("later" if self.keys else "batch"):
            raise whole
        asked: Any = request
        if method == "GetOrder":
            return order_pb2.GetOrderResponse(order=order_pb2.Order(state=order_pb2.ORDER_STATE_UNPAID))
        self.keys += [each.request_id for each in asked.requests]
        return pb.SettleBatchResponse(outcomes=[self._outcome(each.order_id) for each in asked.requests])

    def _outcome(self, order_id: str) -> pb.SettleOutcome:
        if order_id in self._refusals:
            return pb.SettleOutcome(error=to_status(self._refusals[order_id]).SerializeToString())
        payment = pb.Payment(payment_id=f"pay-{order_id}", state=pb.PAYMENT_STATE_SUCCEEDED)
        return pb.SettleOutcome(response=pb.SettleResponse(payment=payment))


async def run(client: Client, file: Path, **changes: Any) -> int:
    """Return the exit code."""
    settings: dict[str, Any] = {
        "run_id": "",
        "at_once": 2,
        "patience": 0.01,
        "dry_run": False,
        "result": None,
    }
    command: Any = inspect.unwrap(settle_run)
    try:
        await command(client, file, **(settings | changes))
    except typer.Exit as end:
        return end.exit_code
    return 0


def write(path: Path, content: str) -> None:
    path.write_text(content)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file of three orders."""
    path = tmp_path / "orders.csv"
    path.write_text("order_id\no1\no2\no3\n")
    return path


async def test_run_of_orders_that_are_all_settled_ends_with_0(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert await run(Services(file.parent), file, run_id="r1") == 0
    said = capsys.readouterr()
    assert said.err == ""
    assert "settled                      3" in said.out.splitlines()
    assert file.with_name("orders.csv.result.csv").read_text().splitlines()[1:] == [
        f"{number + 1},o{number},settled,,pay-o{number}" for number in (1, 2, 3)
    ]


async def test_run_id_is_made_of_the_content_of_the_file(file: Path) -> None:
    """The same content under another name is the same run."""
    first, same, other, named = (Services(file.parent) for _ in range(4))
    copy = file.with_name("copy.csv")
    write(copy, "order_id\no1\no2\n")
    write(file, "order_id\no1\no2\n")
    await run(first, file)
    await run(same, copy)
    write(copy, "order_id\no1\n")
    await run(other, copy)
    await run(named, copy, run_id="november")
    assert first.keys == same.keys
    assert first.keys[0] != other.keys[0]
    assert named.keys == ["november:o1"]


async def test_run_with_findings_ends_with_1_and_names_them(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Words of a server are escaped; what is open can be asked about again."""
    client = Services(file.parent, o2=NotFound("ORDER_NOT_FOUND", "there is none"), o3=LOCKED)
    assert await run(client, file, run_id="r1") == 1
    said = capsys.readouterr()
    assert "line 3: order o2 skipped: there is none\n" in said.out
    assert "line 4: order o3 open: held by \\x1b[31mli\n" in said.out
    assert said.err.endswith("To go on, not twice, run the same command again with --run-id r1\n")


async def test_run_with_many_findings_names_the_first_and_counts_the_others(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(file, "order_id\n" + "no order\n" * 30)
    assert await run(Services(file.parent), file) == 1
    lines = capsys.readouterr().out.splitlines()
    assert sum("bad line: " in line for line in lines) == 20
    assert lines[-1] == f"and 10 more: see {file}.result.csv"


async def test_run_as_json_prints_one_summary(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    client = Services(file.parent, as_json=True, o3=LOCKED)
    assert await run(client, file, run_id="r1") == 1
    told = json.loads(capsys.readouterr().out)
    assert (told["run_id"], told["lines"], told["interrupted"]) == ("r1", 3, False)
    assert {name: count for name, count in told["outcomes"].items() if count} == {"settled": 2, "open": 1}
    assert told["result"] == f"{file}.result.csv"


async def test_dry_run_names_each_order_and_writes_nothing(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(file, "order_id\no1\no1\n,\n")
    client = Services(file.parent)
    assert await run(client, file, dry_run=True) == 1
    lines = capsys.readouterr().out.splitlines()
    assert "line 2: order o1 would be settled" in lines
    assert "line 3: order o1 would be skipped: line 2 names the same order" in lines
    assert client.keys == []
    assert list(file.parent.iterdir()) == [file]


async def test_refused_run_ends_with_the_refusal_and_every_line_is_open(file: Path) -> None:
    client = Services(file.parent, batch=PermissionDenied("ROLE_NOT_ALLOWED", "not for you"))
    with pytest.raises(PermissionDenied):
        await run(client, file)
    rows = file.with_name("orders.csv.result.csv").read_text().splitlines()[1:]
    assert rows == [f"{number + 1},o{number},open,not for you," for number in (1, 2, 3)]


async def test_run_that_is_refused_after_some_orders_were_settled_says_how_to_go_on(file: Path) -> None:
    """A token that has expired meanwhile."""
    write(file, "order_id\n" + "".join(f"o{number}\n" for number in range(200)))
    client = Services(file.parent, later=Unauthenticated("TOKEN_EXPIRED", "the token has expired."))
    with pytest.raises(Unauthenticated, match=r"^the token has expired\. To go on, .* with --run-id r1$"):
        await run(client, file, run_id="r1", at_once=1)


async def test_run_without_services_ends_with_1_and_says_how_to_go_on(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    client = Services(file.parent, batch=Unavailable("SERVICE_UNAVAILABLE", "away"))
    assert await run(client, file, run_id="r1") == 1
    said = capsys.readouterr()
    assert "no order got an outcome for 0.01 s: some orders are open" in said.err
    assert "lines                        3 in" in said.out


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"run_id": "a:b"}, "1 to 32 characters"),
        ({"run_id": "r" * 33}, "1 to 32 characters"),
        ({"run_id": "4111111111111111"}, "card number"),
        ({"result": "orders.csv"}, "it is the file of the orders"),
        ({"result": "other.csv"}, "is no result of a run"),
        ({"result": "."}, "is no file"),
        ({"file": "other.csv"}, "names no column order_id"),
        ({"file": "pipe"}, "no regular file"),
    ],
)
async def test_wrong_usage_is_refused_before_anything_is_done(file: Path, changes: dict[str, Any], says: str) -> None:
    file.with_name("other.csv").write_text("customer\nmei\n")
    os.mkfifo(file.with_name("pipe"))
    client = Services(file.parent)
    named = {name: file.parent / value if name in ("file", "result") else value for name, value in changes.items()}
    with pytest.raises(typer.BadParameter, match=says):
        await run(client, **({"file": file} | named))
    assert client.keys == []
    assert file.with_name("other.csv").read_text() == "customer\nmei\n"
