"""The deployment of deploy/docker-compose.yml on Docker: it gets healthy by itself, and an order is settled once there.

`make test-compose` runs these; they need a Docker daemon with compose. The project has a name, ports and volumes of its
own, so a deployment that runs already is not met, and all of it is removed in the end.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
import pytest_asyncio

from countinghouse.payment.v1 import payment_pb2
from services.chaos.targets.compose import PORTS, free_digits, named
from services.devstack.options import GATEWAY
from services.testkit.client import new_id
from services.testkit.failpoints import DELAY
from services.testkit.harness import Harness
from services.testkit.waiting import wait_until
from tests.e2e import test_readme
from tests.e2e.checked import charges, checked_books
from tests.e2e.counts import pages, samples
from tests.e2e.deployment import HEALTHY_S, Deployment, compose, running, skip_without_docker

pytestmark = [pytest.mark.compose, pytest.mark.timeout(900)]

PROJECT = f"countinghouse-test-{os.getpid()}"
VICTIM, OTHER = "payment-1", "payment-2"


@pytest.fixture(scope="module")
def deployment(request: pytest.FixtureRequest) -> Iterator[Deployment]:
    """The deployment, built, started from nothing and healthy."""
    skip_without_docker()
    environment = os.environ | named(PROJECT, free_digits())
    compose(environment, "build")
    with running(environment) as started:
        request.config.get_terminal_writer().line(f"\nhealthy after {started.healthy_after_s:.0f} s")
        yield started


@pytest_asyncio.fixture(loop_scope="session")
async def harness(deployment: Deployment) -> AsyncIterator[Harness]:
    """The clients of the deployment."""
    async with Harness(cast(Any, deployment)) as harness:
        yield harness


async def test_deployment_is_healthy_in_time(deployment: Deployment) -> None:
    """From a fresh clone's `up --wait`, images built; every instance says SERVING."""
    assert deployment.healthy_after_s <= HEALTHY_S
    shown = await deployment.json("status")
    names = [f"{service}-{number}" for service in ("ledger", "order", "payment") for number in (1, 2)]
    assert [(part["name"], part["state"]) for part in shown["services"]] == [(name, "SERVING") for name in names]
    assert len(shown["zookeeper"].split(",")) == 3


async def test_command_line_settles_an_order(deployment: Deployment) -> None:
    """And sees the rest of what there is: registry, locks, balance, doctor."""
    made = await deployment.json("order", "create", "--customer", "mei", "--amount", "12.50", "--currency", "CNY")
    settle = ("settle", made["order"]["order_id"], "--source", "drawer", "--as", "cashier:li")
    assert (await deployment.json(*settle))["payment"]["state"] == "PAYMENT_STATE_SUCCEEDED"
    card = await deployment.json("order", "create", "--customer", "mei", "--amount", "9.90", "--currency", "CNY")
    by_card = ("settle", card["order"]["order_id"], "--source", "card", "--card", "tok-mei", "--as", "cashier:li")
    assert (await deployment.json(*by_card))["payment"]["state"] == "PAYMENT_STATE_SUCCEEDED"
    again = await deployment.command(*settle)
    assert "already settled by li" in again.stderr
    assert (await deployment.json("ledger", "trial-balance"))["balanced"]
    for looking in (("registry", "ls"), ("locks",), ("doctor",), ("acquirer", "log"), ("reconcile",)):
        assert (await deployment.command(*looking)).returncode == 0, looking
    assert (await deployment.json("check"))["verdict"] == "ok"


async def test_readmes_script_settles_an_order(deployment: Deployment, tmp_path: Path) -> None:
    """A stranger's program on the host finds an instance through the ensemble, and reaches it."""
    bare = tmp_path / "bare"
    made = await deployment.json("order", "create", "--customer", "mei", "--amount", "12.50", "--currency", "CNY")
    order_id = made["order"]["order_id"]
    test_readme.link_modules(bare)
    (tmp_path / "pay.py").write_text(test_readme.readme_script())
    (tmp_path / "ca.pem").write_text((await deployment.command("key", "ca")).stdout)
    code, output, errors = await test_readme.run(
        bare,
        tmp_path,
        *("pay.py", order_id),
        COUNTINGHOUSE_ZOOKEEPER=(await deployment.json("status"))["zookeeper"],
        COUNTINGHOUSE_TOKEN=(await deployment.json("token", "--role", "cashier", "--name", "li"))["token"],
    )
    assert (code, errors) == (0, "")
    assert re.search(rf"\bpay_\w+ for {order_id} PAYMENT_STATE_SUCCEEDED", output)
    assert (await deployment.json("order", "get", order_id))["order"]["state"] == "ORDER_STATE_PAID"


async def test_order_is_settled_through_the_gateway_by_whom_has_a_token(deployment: Deployment) -> None:
    """Its console is served as well. A sign-in without a token is refused, and no process can be killed from there."""
    token = (await deployment.json("token", "--role", "cashier", "--name", "li"))["token"]
    caller = {"authorization": f"Bearer {token}"}
    address = f"http://127.0.0.1:{deployment.environment['COUNTINGHOUSE_PORTS']}{PORTS[GATEWAY]}"
    async with httpx.AsyncClient(base_url=address, timeout=60) as http:
        assert "<title>" in (await http.get("/")).text
        body = {"customerId": "mei", "amount": {"amount": "12.50", "currencyCode": "CNY"}}
        made = await http.post("/v1/orders", json=body, headers={**caller, "idempotency-key": new_id()})
        order_id = made.json()["order"]["orderId"]
        drawer, key = {"source": "SOURCE_DRAWER"}, {"idempotency-key": new_id()}
        settled = [
            await http.post(f"/v1/orders/{order_id}:settle", json=drawer, headers={**caller, **key}) for _ in range(2)
        ]
        assert [answer.status_code for answer in settled] == [200, 200]
        assert settled[0].json() == settled[1].json()
        assert settled[1].headers["idempotency-replayed"] == "true"
        assert (await http.post("/session", json={"as": "cashier:li"})).status_code in (401, 403)
        assert (await http.get("/dev/processes", headers=caller)).status_code == 404
    assert (await deployment.json("check"))["verdict"] == "ok"


async def test_command_runs_in_the_operator_container(deployment: Deployment) -> None:
    """As on Docker Desktop: the container `operator` has all that a command needs."""
    inside = ("exec", "-T", "operator", "countinghouse")
    made = json.loads(
        compose(
            deployment.environment,
            *(*inside, "order", "create", "--customer", "mei", "--amount", "7.00", "--currency", "CNY", "--json"),
        )
    )
    settle = ("settle", made["order"]["order_id"], "--source", "drawer", "--as", "cashier:li", "--json")
    settled = json.loads(compose(deployment.environment, *inside, *settle))
    assert settled["payment"]["state"] == "PAYMENT_STATE_SUCCEEDED"
    assert json.loads(compose(deployment.environment, *inside, "check", "--json"))["verdict"] == "ok"


async def test_payment_of_a_killed_instance_is_finished_by_another(deployment: Deployment, harness: Harness) -> None:
    """`docker compose kill` between two commits: asked elsewhere under the same key, the order is settled once."""
    order_id, key = await harness.new_order(), new_id("settle")
    request = harness.cashier.settle_request(order_id, key)
    await harness.failpoints.arm(VICTIM, "posted", DELAY, order_id, delay_s=300)
    fired = await harness.failpoints.fired(VICTIM, "posted")
    pressed = asyncio.ensure_future(harness.cashier.call(request, at=VICTIM, timeout_s=60))
    await harness.failpoints.wait_fired(VICTIM, "posted", more_than=fired)
    compose(deployment.environment, "kill", VICTIM)
    assert (await pressed).open
    answer = await harness.cashier.call_until_answered(request, at=OTHER)
    payment = answer.payment
    assert payment.state == payment_pb2.PAYMENT_STATE_SUCCEEDED
    assert charges(await checked_books(harness), order_id) == [payment.payment_id]
    assert (await deployment.json("check"))["verdict"] == "ok"
    compose(deployment.environment, "up", "--detach", "--wait")
    again = await harness.cashier.call_until_answered(request, at=VICTIM)
    assert (again.body, again.replayed) == (answer.body, True)


async def test_services_recover_from_a_lost_leader_and_a_restarted_database(
    deployment: Deployment, harness: Harness
) -> None:
    """Two of three are a quorum, and a connection that broke is replaced: nobody has to help."""
    mode = 'exec 3<>/dev/tcp/127.0.0.1/2182; echo srvr >&3; grep "Mode: leader" <&3'
    leading = [
        name
        for name in ("zoo1", "zoo2", "zoo3")
        if "leader" in compose(deployment.environment, "exec", "-T", name, "bash", "-c", f"{mode} || true")
    ]
    compose(deployment.environment, "kill", *leading)
    first = await harness.new_order()
    await harness.cashier.settle(first, at=VICTIM)
    compose(deployment.environment, "restart", "--timeout", "0", "postgres")
    second, key = new_id("order"), new_id("settle")
    made = ("order", "create", "--order-id", second, "--customer", "mei", "--amount", "9.00", "--currency", "CNY")
    assert (await deployment.command(*made, "--timeout", "30")).returncode == 0
    await harness.cashier.settle(second, key, at=OTHER)
    books = await checked_books(harness)
    assert [len(charges(books, order_id)) for order_id in (first, second)] == [1, 1]
    compose(deployment.environment, "up", "--detach", "--wait")


async def test_container_reads_only_its_own_secrets(deployment: Deployment) -> None:
    """A service cannot read what owns its tables or signs tokens, nor write to its own disk, nor become root."""
    look = "cat /run/secrets/pgpass; find / -name signing.key 2>/dev/null; id -u; touch /x 2>&1; cat /proc/1/status"
    seen = compose(deployment.environment, "exec", "-T", "ledger-1", "sh", "-c", look)
    assert re.findall(r"^\*:\*:\*:(\w+):", seen, re.MULTILINE) == ["countinghouse_ledger"]
    assert "signing.key" not in seen
    assert "\n10001\n" in seen
    assert "Read-only file system" in seen
    assert re.search(r"^CapEff:\s+0+$", seen, re.MULTILINE)
    assert re.search(r"^NoNewPrivs:\s+1$", seen, re.MULTILINE)


@pytest.mark.parametrize(
    ("name", "reached", "unreachable"),
    [
        ("acquirer", ["payment-1:50061", "postgres:5432"], ["zoo1:2181", "order-1:50051", "ledger-1:50171"]),
        ("zoo1", ["zoo2:3888", "order-1:50051"], ["postgres:5432", "acquirer:50081"]),
        ("ledger-1", ["zoo1:2181", "postgres:5432", "order-1:50151"], ["acquirer:50081"]),
        ("order-prune", ["postgres:5432"], ["zoo1:2181", "acquirer:50081"]),
        ("gateway", ["zoo1:2181", "payment-1:50061"], ["postgres:5432", "acquirer:50081"]),
    ],
)
async def test_container_reaches_what_it_needs_and_nothing_else(
    deployment: Deployment, name: str, reached: list[str], unreachable: list[str]
) -> None:
    """Neither by name nor by the address that the other has in a network of its own."""
    assert set(ports_reached_by(deployment, name, [*reached, *unreachable])) == set(reached)
    others = [
        f"{address}:{port}"
        for other, port in (each.split(":") for each in unreachable)
        for address in addresses_of(deployment, other)
    ]
    assert others
    assert ports_reached_by(deployment, name, others) == []


def addresses_of(deployment: Deployment, name: str) -> list[str]:
    """What a container is called in each of its networks."""
    container = compose(deployment.environment, "ps", "--quiet", name).strip()
    form = "{{range .NetworkSettings.Networks}}{{.IPAddress}} {{end}}"
    done = subprocess.run(
        ["docker", "inspect", "--format", form, container], capture_output=True, text=True, check=True
    )
    return done.stdout.split()


def ports_reached_by(deployment: Deployment, name: str, addresses: list[str]) -> list[str]:
    """Those to which a container can connect."""
    attempts = "; ".join(
        f"timeout 2 bash -c '</dev/tcp/{host}/{port}' 2>/dev/null && echo {host}:{port}"
        for host, port in (each.split(":") for each in addresses)
    )
    return compose(deployment.environment, "exec", "-T", name, "bash", "-c", f"{attempts}; true").split()


async def test_acquirer_sends_its_notices_to_the_payment_service(deployment: Deployment, harness: Harness) -> None:
    """In the network that they share; it knows no other address of ours."""
    before = await notices(deployment)
    order_id = await harness.new_order()
    await harness.cashier.settle_ok(order_id, source=payment_pb2.SOURCE_CARD, card="tok-mei")

    async def arrived() -> bool:
        return await notices(deployment) > before

    await wait_until(arrived, "no notice arrived", 10.0)


async def notices(deployment: Deployment) -> float:
    """How many the instances of the payment service have answered."""
    found = await pages(cast(Any, deployment))
    counted = [await samples(page) for name, page in found.items() if name.startswith("payment-")]
    return sum(each["countinghouse_calls_total"].get(("OK", "NotifyAcquirer"), 0.0) for each in counted)


async def test_database_superuser_connects_over_the_socket_only(deployment: Deployment) -> None:
    ask = ("exec", "-T", "-e", "PGPASSWORD=none", "postgres", "psql", "-U", "postgres", "-c", "SELECT 1")
    compose(deployment.environment, *ask)
    with pytest.raises(AssertionError, match="rejects connection"):
        compose(deployment.environment, *ask, "-h", "postgres")
