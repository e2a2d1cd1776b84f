"""`countinghouse registry …` against a real ZooKeeper, where providers need not exist."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
import yaml
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer

from coordination.discovery import Consumer, Discovery
from coordination.registry import ProviderURL, Registry, Service
from coordination.rules import Overrides
from coordination.rules.rule_watcher import config_path
from coordination.session import Session
from tests.e2e.command import command_line, document, start_command_line
from tests.integration.provider import provider_url
from tests.integration.zookeeper import ZooKeeper

PAYMENT = "countinghouse.payment.v1.PaymentService"
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


def provider(port: int, interface: str, instance: str, **more: str) -> ProviderURL:
    return provider_url(port, interface).with_parameters({"instance": instance, "pid": "7", **more})


@asynccontextmanager
async def provided(session: Session, *urls: ProviderURL) -> AsyncIterator[None]:
    """Register providers for a while."""
    registry = Registry(session)
    for url in urls:
        await registry.register(url)
    yield
    await registry.close()


class Terminal:
    """Commands against one ZooKeeper."""

    def __init__(self, hosts: str) -> None:
        self._where = ("--zookeeper", hosts)

    async def run(self, *arguments: str) -> Any:
        return await command_line("registry", *arguments, *self._where, COUNTINGHOUSE_PLAINTEXT="true")

    async def json(self, *arguments: str) -> Any:
        return document(await self.run(*arguments, "--json"))

    async def start(self, *arguments: str) -> asyncio.subprocess.Process:
        return await start_command_line("registry", *arguments, *self._where, COUNTINGHOUSE_PLAINTEXT="true")


def unframed(text: str) -> str:
    """Return what a usage error says, without the frame that is drawn around its lines."""
    return " ".join(text.replace("│", " ").split())


@pytest.fixture
def terminal(zookeeper: ZooKeeper) -> Terminal:
    """A terminal at the module's ZooKeeper."""
    return Terminal(zookeeper.hosts)


async def rule_of(session: Session, interface: str) -> Any:
    """Return what an interface's configurators say; None if there is no node."""
    path = config_path("/dubbo", f"{interface}::", "configurators")
    if await session.exists(path) is None:
        return None
    return yaml.safe_load((await session.get(path))[0])


async def test_ls_is_what_registry_alone_does(terminal: Terminal, session: Session) -> None:
    """Providers as rules have them, with the reason, and consumers; as a table and as JSON."""
    interface, consumer = "test.commands.ls", Consumer("desk", "10.0.0.9", timestamp_ms=1_700_000_000_000)
    discovery = Discovery(session, consumer=consumer)
    async with provided(session, provider(1, interface, "shop-1"), provider(2, interface, "shop-2", group="g")):
        await discovery.subscribe(interface)
        await discovery._registry.register_consumer(consumer.url(Service(interface)))
        await Overrides(session).change(Service(interface), "127.0.0.1:1", {"weight": 20})
        await Overrides(session).change(Service(interface, "g"), "127.0.0.1:2", {"disabled": True})
        for arguments in ((), ("ls",)):
            listings = {one["interface"]: one for one in (await terminal.json(*arguments))["interfaces"]}
            first, second = listings[interface]["providers"]
            assert (first["address"], first["weight"], first["disabled"]) == ("127.0.0.1:1", 20, False)
            assert first["changed_by"] == {"weight": f"{interface}::.configurators, configs 1"}
            assert (second["disabled"], second["why_not"]) == (
                True,
                f"disabled by {interface}::g.configurators, configs 1",
            )
            assert [one["parameters"]["application"] for one in listings[interface]["consumers"]] == ["desk"]
        said = (await terminal.run()).stdout
        assert f"weight 100 changed by {interface}::.configurators, configs 1" in said
        assert f"disabled by {interface}::g.configurators, configs 1" in said
        assert "2023-11-14" in said  # since when the consumer consumes
        await Overrides(session).change(Service(interface), "127.0.0.1:1", {"weight": None})
        await Overrides(session).change(Service(interface, "g"), "127.0.0.1:2", {"disabled": None})
    await discovery.close()


#: A child of Dubbo's root that no interface can be named as, and how it is shown.
ODD, SHOWN = " x\u202e", r"cannot be read: ' x\u202e' under /dubbo is no interface's name"


@asynccontextmanager
async def odd_name(session: Session) -> AsyncIterator[None]:
    """Have such a child for a while."""
    await session.ensure_path(f"/dubbo/{ODD}/providers")
    yield
    await session.delete(f"/dubbo/{ODD}/providers")
    await session.delete(f"/dubbo/{ODD}")


async def test_ls_with_a_name_of_no_interface_names_it_and_shows_the_others(
    terminal: Terminal, session: Session
) -> None:
    interface = "test.commands.odd"
    async with odd_name(session), provided(session, provider(1, interface, "shop-1")):
        listed = await terminal.json()
        said = await terminal.run()
    assert listed["malformed"] == [ODD]
    assert interface in [one["interface"] for one in listed["interfaces"] if one["providers"]]
    assert interface in said.stdout
    assert SHOWN in said.stdout.splitlines()
    assert (said.returncode, said.stderr) == (0, "")


async def test_watch_with_a_name_of_no_interface_names_it_once_and_shows_the_others(
    terminal: Terminal, session: Session
) -> None:
    """On the second output, so that lines and JSON stay what they are."""
    interface = "test.commands.odd.watched"
    async with odd_name(session), provided(session, provider(1, interface, "shop-1")):
        watching = await terminal.start("watch", "--json")
        assert watching.stdout is not None
        assert watching.stderr is not None
        async with asyncio.timeout(20):
            while json.loads(await watching.stdout.readline() or "{}").get("interface", interface) != interface:
                pass
        async with provided(session, provider(1, f"{interface}.later", "shop-2")), asyncio.timeout(20):
            while json.loads(await watching.stdout.readline() or "{}").get("instance", "shop-2") != "shop-2":
                pass
        watching.send_signal(signal.SIGINT)
        await asyncio.wait_for(watching.wait(), 10)
        assert [line for line in (await watching.stderr.read()).decode().splitlines() if "read" in line] == [SHOWN]


async def test_offline_and_online(terminal: Terminal, session: Session) -> None:
    """By instance and by address: a consumer sees it at once, others' entries stay, and afterwards nothing is left."""
    interface = "test.commands.offline"
    others = {"side": "consumer", "applications": ["x"], "parameters": {"timeout": 5}}
    path = config_path("/dubbo", f"{interface}::", "configurators")
    discovery = Discovery(session)
    async with provided(session, provider(1, interface, "shop-1"), provider(2, interface, "shop-2")):
        directory = await discovery.subscribe(interface)
        (done,) = (await terminal.json("offline", "shop-1"))["changes"]
        assert (done["address"], done["path"], done["disabled"]) == ("127.0.0.1:1", path, True)
        assert (done["written"], done["callable_providers"]) == (True, 1)
        assert await directory._wait_until(lambda: [one.address for one in directory.endpoints] == ["127.0.0.1:2"], 1)
        again = await terminal.run("offline", "127.0.0.1:1")
        assert again.stdout == f"shop-1 (127.0.0.1:1) is offline for {interface}: as {path} said already\n"

        rule = await rule_of(session, interface)
        rule["configs"].insert(0, others)
        await session.set(path, yaml.safe_dump(rule).encode())
        last = await terminal.run("offline", "127.0.0.1:2")
        assert (
            last.stdout
            == f"shop-2 (127.0.0.1:2) is offline for {interface}: written to {path}; no provider is left to be called\n"
        )
        for target in ("shop-1", "127.0.0.1:2"):
            (done,) = (await terminal.json("online", target))["changes"]
            assert done["disabled"] is False
        assert (await rule_of(session, interface))["configs"] == [others]
        assert await directory._wait_until(lambda: len(directory.endpoints) == 2, 1)
        await session.delete(path)
    await discovery.close()


async def test_weight_changes_a_share_and_takes_the_rule_away(terminal: Terminal, session: Session) -> None:
    """Another share; the weight it registered with takes the rule away, node and all."""
    interface = "test.commands.weight"
    async with provided(session, provider(1, interface, "shop-1")):
        said = (await terminal.run("weight", "shop-1", "20")).stdout
        assert said.startswith(
            f"shop-1 (127.0.0.1:1) is online with weight 20 for {interface}: written to /dubbo/config/"
        )
        assert (await rule_of(session, interface))["configs"][0]["parameters"] == {"weight": 20}
        (done,) = (await terminal.json("weight", "shop-1", "100"))["changes"]
        assert done["weight"] == 100
        assert await rule_of(session, interface) is None


async def test_interface_option_changes_one_interface_only(terminal: Terminal, session: Session) -> None:
    """An instance may provide more than one: all of them are meant, or the one that is named."""
    one, other = "test.commands.one", "test.commands.other"
    async with provided(session, provider(1, one, "both-1"), provider(1, other, "both-1", group="g", version="2")):
        done = (await terminal.json("offline", "both-1", "--interface", other))["changes"]
        assert [change["interface"] for change in done] == [other]
        assert done[0]["path"] == f"/dubbo/config/dubbo/{other}:2:g.configurators"
        done = (await terminal.json("online", "both-1"))["changes"]
        assert [(change["interface"], change["written"]) for change in done] == [(one, False), (other, True)]


async def test_online_removes_the_rule_of_a_provider_that_is_gone(terminal: Terminal, session: Session) -> None:
    """A rule may outlive its provider: by its address it can be taken away."""
    interface = "test.commands.gone"
    async with provided(session, provider(1, interface, "shop-1")):
        await terminal.json("offline", "shop-1")
    said = (await terminal.run("online", "127.0.0.1:1")).stdout
    assert said.startswith(f"127.0.0.1:1 is not registered for {interface}: written to ")
    assert await rule_of(session, interface) is None


async def test_unknown_target_is_refused_with_those_registered(terminal: Terminal, session: Session) -> None:
    interface = "test.commands.unknown"
    async with provided(session, provider(1, interface, "shop-1"), provider_url(2, interface)):
        done = await terminal.run("offline", "shop-9", "--interface", interface, "--json")
        assert (done.returncode, json.loads(done.stdout)["error"]["reason"]) == (1, "PROVIDER_NOT_FOUND")
        there = "shop-1 (127.0.0.1:1), 127.0.0.1:2"
        assert done.stderr == f"countinghouse: no provider of {interface} is called shop-9; registered: {there}\n"
    none = await terminal.run("weight", "shop-1", "5", "--interface", "test.commands.nothing")
    assert "registered: none" in none.stderr


async def test_rule_that_cannot_be_read_is_not_overwritten(terminal: Terminal, session: Session) -> None:
    interface = "test.commands.broken"
    path = config_path("/dubbo", f"{interface}::", "configurators")
    await session.ensure_path(path)
    await session.set(path, b"configs: [")
    async with provided(session, provider(1, interface, "shop-1")):
        done = await terminal.run("offline", "shop-1", "--json")
        assert (done.returncode, json.loads(done.stdout)["error"]["reason"]) == (1, "RULE_NOT_OURS")
        assert (await session.get(path))[0] == b"configs: ["
    await session.delete(path)


async def test_another_rule_that_prevails_is_named(terminal: Terminal, session: Session) -> None:
    """Disabled by somebody else's rule a provider cannot be let online here; that is said, with whose rule it is."""
    interface = "test.commands.overruled"
    path = config_path("/dubbo", f"{interface}::", "configurators")
    text = "configs: [{side: provider, addresses: ['127.0.0.1:1'], parameters: {disabled: true}}]"
    await session.ensure_path(path)
    await session.set(path, text.encode())
    async with provided(session, provider(1, interface, "shop-1")):
        done = await terminal.run("online", "shop-1")
        assert done.returncode == 1
        assert f"disabled by {interface}::.configurators, configs 1" in done.stderr
        assert (await session.get(path))[0] == text.encode()
    await session.delete(path)


async def test_command_without_zookeeper_prints_one_sentence() -> None:
    offline = ("registry", "offline", "shop-1", "--zookeeper", "127.0.0.1:1", "--timeout", "0.3")
    done = await command_line(*offline, COUNTINGHOUSE_PLAINTEXT="true")
    assert done.returncode == 1
    assert "no ZooKeeper answers" in done.stderr
    assert done.stderr.count("\n") == 1


async def test_watch_shows_providers_that_come_change_and_go(terminal: Terminal, session: Session) -> None:
    """As JSON, one object a line, at first whoever is there; interfaces made later are followed, too."""
    interface, later = "test.commands.watch", "test.commands.watch.later"
    registry = Registry(session)
    await registry.register(provider(1, interface, "shop-1"))
    watching = await terminal.start("watch", "--json")
    assert watching.stdout is not None

    async def until(event: str, name: str, **wanted: object) -> None:
        assert watching.stdout is not None
        async with asyncio.timeout(10):
            while True:
                line = json.loads(await watching.stdout.readline())
                if (line["event"], line["interface"]) == (event, name) and wanted.items() <= line.items():
                    return

    await until("there", interface, instance="shop-1", weight=100, list="live", why_not="")
    for port in (2, 3):
        await registry.register(provider(port, later, f"late-{port}"))
        await until("there", later, instance=f"late-{port}")
    overrides = Overrides(session)
    await overrides.change(Service(interface), "127.0.0.1:1", {"weight": 20})
    await until("changed", interface, weight=20)
    await overrides.change(Service(interface), "127.0.0.1:1", {"weight": None, "disabled": True})
    await until("changed", interface, why_not=f"disabled by {interface}::.configurators, configs 1")
    await overrides.change(Service(interface), "127.0.0.1:1", {"disabled": None})
    for port, event in ((2, "gone"), (3, "changed")):  # the last one is doubted for a while
        await registry.unregister(provider(port, later, f"late-{port}"))
        await until(event, later, address=f"127.0.0.1:{port}", list="live" if event == "gone" else "emptying")
    watching.send_signal(signal.SIGINT)
    assert await asyncio.wait_for(watching.wait(), 10) == 130
    await registry.close()


async def test_watch_prints_lines_and_ends_with_its_reader(terminal: Terminal, session: Session) -> None:
    """On a pipe it is a line for each change; a reader that has seen enough is no error."""
    interface = "test.commands.lines"
    async with provided(session, provider(1, interface, "shop-1")):
        watching = await terminal.start("watch")
        assert watching.stdout is not None
        assert watching.stderr is not None
        async with asyncio.timeout(10):
            while f"registered  {interface}  127.0.0.1:1  shop-1  weight 100  live" not in (
                line := (await watching.stdout.readline()).decode()
            ):
                assert line
        watching._transport.get_pipe_transport(1).close()  # type: ignore[attr-defined]
        registry = Registry(session)
        for port in (2, 3):  # the first may still fit into the pipe's buffer
            await registry.register(provider(port, interface, f"shop-{port}"))
        await asyncio.wait_for(watching.wait(), 10)
        assert (await watching.stderr.read()).decode() == ""
        assert watching.returncode == 0
        await registry.close()


@asynccontextmanager
async def serving(status: Any) -> AsyncIterator[int]:
    """Serve grpc.health on a free port; yields it."""
    server, health = grpc.aio.server(), HealthServicer()
    for name in ("", PAYMENT):
        await health.set(name, status)
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield port
    await server.stop(None)


async def test_explain_gives_a_reason_for_every_provider(terminal: Terminal, session: Session) -> None:
    """The one who is called, and why no other is: disabled, routed away, of a group, unreachable, unreadable."""
    route = config_path("/dubbo", f"{PAYMENT}::", "condition-router")
    overrides = Overrides(session)
    async with serving(SERVING) as port:
        urls = [provider(number, PAYMENT, f"payment-{number}") for number in (2, 3, 4)]
        urls += [provider(port, PAYMENT, "payment-1"), provider(5, PAYMENT, "payment-5", group="g")]
        async with provided(session, *urls):
            await session.create(f"/dubbo/{PAYMENT}/providers/nonsense", ephemeral=True)
            await overrides.change(Service(PAYMENT), "127.0.0.1:3", {"disabled": True})
            await session.ensure_path(route)
            await session.set(route, b"conditions: ['method=Settle & application=countinghouse-cli => port != 2']")
            explained = await terminal.json("explain", "o1")
            assert (explained["interface"], explained["method"], explained["chosen"]) == (
                PAYMENT,
                "Settle",
                f"127.0.0.1:{port}",
            )
            rule = f"{PAYMENT}::.condition-router (method=Settle & application=countinghouse-cli => port != 2)"
            assert {one["instance"]: one["why"] for one in explained["providers"]} == {
                "": "cannot be read: not a URL: 'nonsense'",
                "payment-1": "chosen: not called yet, 0 in flight",
                "payment-2": f"routed away by {rule}",
                "payment-3": f"disabled by {PAYMENT}::.configurators, configs 1",
                "payment-4": "cannot be reached",
                "payment-5": f"provides g/{PAYMENT}, not {PAYMENT}",
            }
            await session.delete(route)
            await overrides.change(Service(PAYMENT), "127.0.0.1:3", {"disabled": None})


async def test_explain_asks_the_picker(terminal: Terminal, session: Session) -> None:
    """Of several, one is chosen and each other told why not; an order's own instance is the same every time."""
    overrides, service = Overrides(session), Service(PAYMENT)
    async with (
        serving(SERVING) as well,
        serving(NOT_SERVING) as ill,
        provided(session, provider(well, PAYMENT, "payment-1"), provider(ill, PAYMENT, "payment-2")),
    ):
        await overrides.change(service, f"127.0.0.1:{ill}", {"weight": 300})
        explained = await terminal.json("explain", "o1", "--method", "Pay", "--picker", "random")
        found = {one["instance"]: one for one in explained["providers"]}
        chosen = next(one for one in explained["providers"] if one["chosen"])
        other = next(one for one in explained["providers"] if not one["chosen"])
        assert chosen["address"] == explained["chosen"]
        assert chosen["why"].startswith("chosen: weight ")
        assert other["why"].startswith("not drawn: weight ")
        assert (found["payment-1"]["health"], found["payment-2"]["health"]) == ("SERVING", "NOT_SERVING")
        assert found["payment-2"]["why"].endswith(f"weight 300 of 400; weight by {PAYMENT}::.configurators, configs 1")
        await overrides.change(service, f"127.0.0.1:{ill}", {"weight": 0})
        drained = await terminal.json("explain", "o1")
        assert drained["chosen"] == f"127.0.0.1:{well}"
        assert any(one["why"].startswith("weight 0: others have a weight") for one in drained["providers"])
        await overrides.change(service, f"127.0.0.1:{ill}", {"weight": None})
        hashed = [await terminal.json("explain", "o1", "--picker", "consistenthash") for _ in range(2)]
        assert hashed[0] == hashed[1]
        assert any(one["why"] == "chosen: o1 belongs here" for one in hashed[0]["providers"])


async def test_explain_lists_services_and_pickers(terminal: Terminal) -> None:
    """Of services and pickers, and that no instance provides one."""
    refused = await terminal.run("explain", "o1", "--service", "gate")
    assert (refused.returncode, "payment, order, ledger" in unframed(refused.stderr)) == (2, True)
    refused = await terminal.run("explain", "o1", "--picker", "luck")
    assert (refused.returncode, "random" in unframed(refused.stderr)) == (2, True)
    nobody = await terminal.run("explain", "o1", "--service", "ledger")
    assert nobody.stdout == "no instance provides countinghouse.ledger.v1.LedgerService\n"
