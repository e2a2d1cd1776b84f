"""The API is that of toxiproxy, over a real socket, with a real echo server behind the proxies."""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import pytest

from services.chaos.faultproxy import proxy_api
from services.chaos.faultproxy.proxies import MAX_PROXIES, MAX_TOXICS, Proxies
from services.chaos.faultproxy.proxy import bound
from services.chaos.faultproxy.proxy_api import MAX_BODY_BYTES, MAX_REQUESTS, serve
from tests.unit.chaos.echo import Connection, closed, echo, said

_TIMEOUT_S = 20.0
_LATENCY_MS = 150
Answer = tuple[int, Any]


class Client:
    """Asks as a toxiproxy client does, each time on a connection of its own."""

    def __init__(self, port: int, upstream: str) -> None:
        self.port = port
        self.upstream = upstream

    async def ask(
        self, method: str, path: str, body: object = None, *, agent: str = "toxiproxy-cli", raw: bytes | None = None
    ) -> Answer:
        """Returns the status, and the document or the words."""
        text = raw if raw is not None else b"" if body is None else json.dumps(body).encode()
        return await asyncio.to_thread(self._ask, method, path, text, {"User-Agent": agent})

    async def create(self, name: str = "echo", **fields: object) -> dict[str, Any]:
        """Makes a proxy before the echo."""
        status, proxy = await self.ask("POST", "/proxies", {"name": name, "upstream": self.upstream, **fields})
        assert status == 201, proxy
        return dict(proxy)

    async def add_toxic(self, kind: str, stream: str = "downstream", **attributes: int) -> None:
        """Adds a toxic to `echo`, under its default name."""
        toxic = {"type": kind, "stream": stream, "attributes": attributes}
        status, told = await self.ask("POST", "/proxies/echo/toxics", toxic)
        assert status == 200, told

    def _ask(self, method: str, path: str, body: bytes, headers: Mapping[str, str]) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=_TIMEOUT_S)
        try:
            connection.request(method, path, body, dict(headers))
            answer = connection.getresponse()
            text = answer.read().decode()
            is_json = (answer.getheader("content-type") or "").startswith("application/json")
            return answer.status, json.loads(text) if is_json else text
        finally:
            connection.close()


@asynccontextmanager
async def served(host: str = "127.0.0.1") -> AsyncIterator[Client]:
    """The API before no proxies, which listens on a loopback address whatever `host` says."""
    listening, stop, proxies = bound("127.0.0.1", 0), asyncio.Event(), Proxies(host)
    listening.listen()
    serving = asyncio.create_task(serve(proxies, listening, stop))
    try:
        async with echo() as upstream:
            yield Client(listening.getsockname()[1], upstream)
    finally:
        stop.set()
        await serving
        await proxies.close()


@pytest.fixture
async def client() -> AsyncIterator[Client]:
    """A client of a fresh API."""
    async with served() as client:
        yield client


async def connect(listen: str) -> Connection:
    host, _, port = listen.rpartition(":")
    return await asyncio.open_connection(host.strip("[]"), int(port))


async def refuses(listen: str) -> bool:
    """Return whether no server listens there."""
    try:
        _, writer = await connect(listen)
    except ConnectionRefusedError:
        return True
    writer.close()
    return False


@contextmanager
def taken_port() -> Iterator[int]:
    """A port that another server listens on."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        yield int(other.getsockname()[1])


def error(words: str, status: int) -> Answer:
    return status, {"error": words, "status": status}


async def test_proxy_is_created_disabled_enabled_and_deleted(client: Client) -> None:
    """Made, listed, shown, disabled, enabled and deleted; bytes pass while it is enabled, and at no other time."""
    made = await client.create()
    assert made == {
        "name": "echo",
        "listen": made["listen"],
        "upstream": client.upstream,
        "enabled": True,
        "toxics": [],
    }
    assert made["listen"].startswith("127.0.0.1:")
    assert await client.ask("GET", "/proxies") == (200, {"echo": made})
    assert await client.ask("GET", "/proxies/echo") == (200, made)
    connection = await connect(made["listen"])
    assert await said(connection, b"pay") == b"pay"

    assert await client.ask("POST", "/proxies/echo", {"enabled": False}) == (200, {**made, "enabled": False})
    assert await closed(connection)
    assert await refuses(made["listen"])
    assert await client.ask("PATCH", "/proxies/echo", {"enabled": True}) == (200, made)
    connection = await connect(made["listen"])
    assert await said(connection, b"pay") == b"pay"

    assert await client.ask("DELETE", "/proxies/echo") == (204, "")
    assert await closed(connection)
    assert await refuses(made["listen"])
    assert await client.ask("GET", "/proxies/echo") == error("proxy not found", 404)
    assert await client.ask("GET", "/proxies") == (200, {})


async def test_version_is_that_of_the_api(client: Client) -> None:
    """Clients ask whether they can speak to it."""
    status, told = await client.ask("GET", "/version")
    assert (status, told["version"].split(".")[0]) == (200, "2")


async def test_proxy_created_disabled_refuses_until_it_is_enabled(client: Client) -> None:
    made = await client.create(enabled=False)
    assert made["enabled"] is False
    assert await refuses(made["listen"])
    await client.ask("POST", "/proxies/echo", {"enabled": True})
    assert await said(await connect(made["listen"]), b"x") == b"x"


async def test_update_of_upstream_drops_connections_and_keeps_port_and_toxics(client: Client) -> None:
    async with echo() as other:
        made = await client.create(upstream=other)
        await client.add_toxic("latency", latency=1)
        connection = await connect(made["listen"])
        assert await said(connection, b"x") == b"x"
        status, moved = await client.ask("POST", "/proxies/echo", {"upstream": client.upstream})
        assert (status, moved["listen"], moved["upstream"]) == (200, made["listen"], client.upstream)
        assert [toxic["name"] for toxic in moved["toxics"]] == ["latency_downstream"]
        assert await closed(connection)
    assert await said(await connect(moved["listen"]), b"x") == b"x"


async def test_update_of_listen_moves_the_proxy_with_its_toxics(client: Client) -> None:
    made = await client.create()
    await client.add_toxic("latency", latency=1)
    connection = await connect(made["listen"])
    status, moved = await client.ask("POST", "/proxies/echo", {"listen": "127.0.0.2:0"})
    assert (status, moved["listen"].split(":")[0], len(moved["toxics"])) == (200, "127.0.0.2", 1)
    assert await closed(connection)
    assert await refuses(made["listen"])
    assert await said(await connect(moved["listen"]), b"x") == b"x"


async def test_update_of_listen_that_cannot_be_bound_changes_nothing(client: Client) -> None:
    made = await client.create()
    connection = await connect(made["listen"])
    with taken_port() as port:
        refused = await client.ask("POST", "/proxies/echo", {"listen": f"127.0.0.1:{port}"})
    assert refused == error(f"listen tcp 127.0.0.1:{port}: bind: address already in use", 500)
    assert await client.ask("GET", "/proxies/echo") == (200, made)
    assert await said(connection, b"x") == b"x"


async def test_create_on_a_taken_port_is_refused(client: Client) -> None:
    """By a stranger, or by a disabled proxy of ours: it has no connections, but its port."""
    made = await client.create(enabled=False)
    with taken_port() as port:
        for listen in (f"127.0.0.1:{port}", made["listen"]):
            refused = await client.ask("POST", "/proxies", {"name": "b", "listen": listen, "upstream": client.upstream})
            assert refused == error(f"listen tcp {listen}: bind: address already in use", 500)
    assert list((await client.ask("GET", "/proxies"))[1]) == ["echo"]


async def test_toxics_have_their_defaults_and_can_be_listed_changed_and_removed(client: Client) -> None:
    """What a change does not name stays: other attributes, toxicity, type and stream."""
    await client.create()
    toxic = {"type": "latency", "attributes": {"latency": 5}}
    made = {
        "name": "latency_downstream",
        "type": "latency",
        "stream": "downstream",
        "toxicity": 1.0,
        "attributes": {"latency": 5, "jitter": 0},
    }
    path = "/proxies/echo/toxics/latency_downstream"
    assert await client.ask("POST", "/proxies/echo/toxics", toxic) == (200, made)
    assert await client.ask("GET", "/proxies/echo/toxics") == (200, [made])
    assert await client.ask("GET", path) == (200, made)
    assert (await client.ask("GET", "/proxies/echo"))[1]["toxics"] == [made]

    changed = {**made, "attributes": {"latency": 5, "jitter": 2}}
    assert await client.ask("PATCH", path, {"attributes": {"jitter": 2}, "type": "timeout"}) == (200, changed)
    changed["toxicity"] = 0.5
    assert await client.ask("POST", path, {"toxicity": 0.5}) == (200, changed)
    assert await client.ask("GET", path) == (200, changed)

    assert await client.ask("DELETE", path) == (204, "")
    assert await client.ask("GET", path) == error("toxic not found", 404)
    assert await client.ask("GET", "/proxies/echo/toxics") == (200, [])


async def test_null_in_a_request_is_as_if_left_out(client: Client) -> None:
    """The one in Go sends every field."""
    await client.create(toxics=None, enabled=None)
    toxic = {"name": "", "type": "latency", "stream": "upstream", "toxicity": 1, "attributes": None}
    status, made = await client.ask("POST", "/proxies/echo/toxics", toxic)
    assert (status, made["name"], made["attributes"]) == (200, "latency_upstream", {"latency": 0, "jitter": 0})


@pytest.mark.parametrize("stream", ["upstream", "downstream"])
async def test_latency_delays_either_direction(client: Client, stream: str) -> None:
    """An open connection as well, from the toxic's adding to its removal; both add up."""
    made = await client.create()
    connection = await connect(made["listen"])
    await client.add_toxic("latency", stream, latency=_LATENCY_MS)
    began = time.monotonic()
    assert await said(connection, b"x") == b"x"
    assert time.monotonic() - began >= _LATENCY_MS / 1000
    await client.ask("POST", f"/proxies/echo/toxics/latency_{stream}", {"attributes": {"latency": 2 * _LATENCY_MS}})
    began = time.monotonic()
    assert await said(connection, b"x") == b"x"
    assert time.monotonic() - began >= 2 * _LATENCY_MS / 1000


@pytest.mark.parametrize("stream", ["upstream", "downstream"])
async def test_timeout_drops_bytes_until_it_is_removed(client: Client, stream: str) -> None:
    """Changing it brings nothing back and ends nothing; its end ends the connection, for there is a hole in it."""
    made = await client.create()
    connection = await connect(made["listen"])
    await client.add_toxic("timeout", stream, timeout=0)
    connection[1].write(b"pay")
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(connection[0].read(1), 0.2)
    path = f"/proxies/echo/toxics/timeout_{stream}"
    await client.ask("PATCH", path, {"attributes": {"timeout": 600_000}})
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(connection[0].read(1), 0.2)
    await client.ask("DELETE", path)
    assert await closed(connection)
    assert await said(await connect(made["listen"]), b"x") == b"x"


async def test_toxic_changed_to_affect_no_connection_is_as_one_removed(client: Client) -> None:
    made = await client.create()
    connection = await connect(made["listen"])
    await client.add_toxic("latency", latency=600_000)
    await client.ask("PATCH", "/proxies/echo/toxics/latency_downstream", {"toxicity": 0})
    assert await said(connection, b"x") == b"x"


async def test_changed_timeout_counts_from_the_change(client: Client) -> None:
    made = await client.create()
    connection = await connect(made["listen"])
    assert await said(connection, b"x") == b"x"
    await client.add_toxic("reset_peer", timeout=600_000)
    await client.ask("PATCH", "/proxies/echo/toxics/reset_peer_downstream", {"attributes": {"timeout": 0}})
    with pytest.raises(ConnectionResetError):
        await asyncio.wait_for(connection[0].read(1), 5)


async def test_reset_enables_all_and_removes_every_toxic(client: Client) -> None:
    made = await client.create()
    off = await client.create("off", enabled=False)
    await client.add_toxic("timeout")
    assert await client.ask("POST", "/reset") == (204, "")
    assert await client.ask("GET", "/proxies") == (200, {"echo": made, "off": {**off, "enabled": True}})
    for proxy in (made, off):
        assert await said(await connect(proxy["listen"]), b"x") == b"x"


async def test_populate_creates_and_moves_and_keeps_what_is_as_wanted(client: Client) -> None:
    """One that has both addresses keeps its toxics and connections; one that has not is made anew."""
    same, other = await client.create(), await client.create("other")
    await client.add_toxic("latency", latency=1)
    await client.ask("POST", "/proxies/other/toxics", {"type": "latency"})
    connection = await connect(same["listen"])
    wanted = [
        {"name": "echo", "listen": same["listen"], "upstream": client.upstream},
        {"name": "other", "listen": other["listen"], "upstream": "127.0.0.1:1"},
        {"name": "new", "listen": "localhost:0", "upstream": client.upstream, "enabled": False},
    ]
    status, told = await client.ask("POST", "/populate", wanted)
    assert (status, list(told)) == (201, ["proxies"])
    assert [(proxy["name"], len(proxy["toxics"]), proxy["enabled"]) for proxy in told["proxies"]] == [
        ("echo", 1, True),
        ("other", 0, True),
        ("new", 0, False),
    ]
    assert told["proxies"][1] == {**other, "upstream": "127.0.0.1:1"}
    assert await said(connection, b"x") == b"x"
    again = [{**proxy, "toxics": None} for proxy in told["proxies"]]
    assert await client.ask("POST", "/populate", again) == (201, told)


async def test_populate_refuses_all_for_one_field_and_lists_what_was_created_before_a_failure(client: Client) -> None:
    good = {"name": "a", "upstream": client.upstream}
    refused = await client.ask("POST", "/populate", [good, {"name": "b"}])
    assert refused == (400, {"error": "missing required field: upstream at proxy 2", "status": 400, "proxies": []})
    assert await client.ask("GET", "/proxies") == (200, {})
    with taken_port() as port:
        status, told = await client.ask("POST", "/populate", [good, {**good, "name": "b", "listen": f":{port}"}])
    assert (status, told["status"], [proxy["name"] for proxy in told["proxies"]]) == (500, 500, ["a"])
    assert list((await client.ask("GET", "/proxies"))[1]) == ["a"]


#: Asked of an API that has one proxy, echo, with one toxic, latency_downstream.
REFUSALS: list[tuple[str, str, object, int, str]] = [
    ("POST", "/proxies", {}, 400, "missing required field: name"),
    ("POST", "/proxies", {"name": "b"}, 400, "missing required field: upstream"),
    ("POST", "/proxies", {"name": "echo", "upstream": "127.0.0.1:1"}, 409, "proxy already exists"),
    ("POST", "/proxies", {"name": "a/b", "upstream": "127.0.0.1:1"}, 400, "bad request body: name: "),
    ("POST", "/proxies", {"name": 7, "upstream": "127.0.0.1:1"}, 400, "bad request body: name: "),
    ("POST", "/proxies", {"name": "b", "upstream": "nowhere"}, 400, "bad request body: upstream: 'nowhere'"),
    ("POST", "/proxies", {"name": "b", "upstream": "a:65536"}, 400, "bad request body: upstream: 'a:65536'"),
    ("POST", "/proxies", {"name": "b", "upstream": ":0"}, 400, "bad request body: upstream: ':0'"),
    ("POST", "/proxies", ["b"], 400, "bad request body: "),
    ("POST", "/populate", {"name": "b"}, 400, "bad request body: "),
    ("GET", "/proxies/none", None, 404, "proxy not found"),
    ("POST", "/proxies/none", {}, 404, "proxy not found"),
    ("DELETE", "/proxies/none", None, 404, "proxy not found"),
    ("GET", "/proxies/none/toxics", None, 404, "proxy not found"),
    ("POST", "/proxies/none/toxics", {}, 404, "proxy not found"),
    ("GET", "/proxies/none/toxics/t", None, 404, "proxy not found"),
    ("POST", "/proxies/echo/toxics", {"type": "latency", "stream": "up"}, 400, "stream was invalid, can be either"),
    ("POST", "/proxies/echo/toxics", {"type": "poison"}, 400, "invalid toxic type"),
    ("POST", "/proxies/echo/toxics", {"type": "latency"}, 409, "toxic already exists"),
    ("POST", "/proxies/echo/toxics", {"type": "timeout", "toxicity": 2}, 400, "bad request body: toxicity"),
    ("POST", "/proxies/echo/toxics", {"type": "timeout", "attributes": {"ms": 1}}, 400, "bad request body: "),
    ("POST", "/proxies/echo/toxics", {"type": "timeout", "attributes": {"timeout": "1"}}, 400, "bad request body"),
    ("POST", "/proxies/echo/toxics", {"type": "timeout", "attributes": {"timeout": 2**63}}, 400, "bad request"),
    ("PATCH", "/proxies/echo/toxics/none", {}, 404, "toxic not found"),
    ("PATCH", "/proxies/echo/toxics/latency_downstream", {"attributes": {"jitter": -1}}, 400, "bad request body"),
    ("DELETE", "/proxies/echo/toxics/none", None, 404, "toxic not found"),
    ("GET", "/nowhere", None, 404, "Not Found"),
    ("PUT", "/proxies", None, 405, "Method Not Allowed"),
]


async def test_refusal_has_toxiproxys_status_and_message(client: Client) -> None:
    """And it changes nothing."""
    await client.create()
    await client.add_toxic("latency")
    before = await client.ask("GET", "/proxies")
    for method, path, body, status, words in REFUSALS:
        code, told = await client.ask(method, path, body)
        assert (code, told["status"]) == (status, status), (path, body, told)
        assert told["error"].startswith(words), (path, body)
        assert await client.ask("GET", "/proxies") == before


async def test_body_that_is_not_json_is_refused(client: Client) -> None:
    for raw in (b"", b"{", b"\xff", b"[" * 100_000):
        status, told = await client.ask("POST", "/proxies", raw=raw)
        assert (status, told["error"].split(":")[0]) == (400, "bad request body")


async def test_proxies_listen_on_loopback_addresses(client: Client) -> None:
    for listen, at in {
        "": "127.0.0.1",
        ":0": "127.0.0.1",
        "localhost:0": "127.0.0.1",
        "127.8.9.10:0": "127.8.9.10",
        "[::1]:0": "[::1]",
    }.items():
        made = await client.create(f"echo{listen}", listen=listen)
        assert made["listen"].rpartition(":")[0] == at
        assert await said(await connect(made["listen"]), b"x") == b"x"


async def test_proxies_listen_on_no_other_addresses(client: Client) -> None:
    """Neither a new one nor one that moves."""
    made = await client.create()
    for listen in ("0.0.0.0:0", "[::]:0", "192.0.2.1:0", "example.com:0", "127.0.0.1", "127.0.0.1:x"):
        new = {"name": "b", "listen": listen, "upstream": client.upstream}
        for path, body in (("/proxies", new), ("/populate", [new]), ("/proxies/echo", {"listen": listen})):
            status, told = await client.ask("POST", path, body)
            assert (status, told["error"].split(":")[:2]) == (400, ["bad request body", " listen"])
        assert await client.ask("GET", "/proxies") == (200, {"echo": made})


async def test_proxies_listen_on_the_address_that_was_opened(client: Client) -> None:
    """Then that one, and it is where a proxy listens that names no address."""
    async with served("0.0.0.0") as open_one:  # noqa: S104
        assert (await open_one.create())["listen"].startswith("0.0.0.0:")
        assert (await open_one.create("b", listen="0.0.0.0:0"))["listen"].startswith("0.0.0.0:")
        refused = await open_one.ask("POST", "/proxies", {"name": "c", "listen": "192.0.2.1:0", "upstream": "a:1"})
        assert refused[0] == 400


async def test_browsers_are_refused(client: Client) -> None:
    """A web page must not control the machine of the one who reads it."""
    agent = "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36"
    assert await client.ask("POST", "/reset", agent=agent) == (403, "User agent not allowed\n")
    assert (await client.ask("POST", "/reset", agent="curl/8"))[0] == 204


async def test_proxies_and_toxics_are_bounded(client: Client) -> None:
    many = [{"name": f"p{number}", "upstream": "a:1", "enabled": False} for number in range(MAX_PROXIES + 1)]
    refused = await client.ask("POST", "/populate", many)
    assert refused[1]["error"] == f"too many proxies: there can be {MAX_PROXIES} at most"
    assert (await client.ask("POST", "/populate", many[1:]))[0] == 201
    refused = await client.ask("POST", "/proxies", many[0])
    assert refused == error(f"too many proxies: there can be {MAX_PROXIES} at most", 400)
    for number in range(MAX_TOXICS):
        toxic = {"name": str(number), "type": "latency"}
        assert (await client.ask("POST", "/proxies/p1/toxics", toxic))[0] == 200
    refused = await client.ask("POST", "/proxies/p1/toxics", {"type": "latency"})
    assert refused == error(f"too many toxics: a proxy has {MAX_TOXICS} at most", 400)


async def test_bodies_are_bounded(client: Client) -> None:
    """One that announces too much is refused before it is sent, one that does not when it has sent too much."""
    for head, body in (
        (f"Content-Length: {MAX_BODY_BYTES + 1}", b""),
        ("Transfer-Encoding: chunked", b"%x\r\n%s\r\n" % (MAX_BODY_BYTES + 1, b" " * (MAX_BODY_BYTES + 1))),
    ):
        reader, writer = await asyncio.open_connection("127.0.0.1", client.port)
        writer.write(f"POST /proxies HTTP/1.1\r\nHost: x\r\n{head}\r\n\r\n".encode() + body)
        assert (await asyncio.wait_for(reader.readline(), _TIMEOUT_S)).startswith(b"HTTP/1.1 413 ")
        writer.close()


async def test_body_that_is_late_is_refused(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proxy_api, "_BODY_TIMEOUT_S", 0.1)
    reader, writer = await asyncio.open_connection("127.0.0.1", client.port)
    writer.write(b"POST /proxies HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n")
    assert (await asyncio.wait_for(reader.readline(), _TIMEOUT_S)).startswith(b"HTTP/1.1 408 ")
    writer.close()


async def test_requests_at_once_are_bounded(client: Client) -> None:
    """Who comes when all places are taken is told so, and is served when one is free."""
    held = [await asyncio.open_connection("127.0.0.1", client.port) for _ in range(MAX_REQUESTS)]
    assert (await client.ask("GET", "/version"))[0] == 503
    for reader, writer in held:
        writer.write_eof()
        assert await asyncio.wait_for(reader.read(), _TIMEOUT_S) == b""  # it has noticed
        writer.close()
    assert (await client.ask("GET", "/version"))[0] == 200


async def test_changes_at_once_are_made_one_after_another(client: Client) -> None:
    """Of many who make the same proxy one does; of many who switch it, some last one has the say."""
    body = {"name": "echo", "upstream": client.upstream}
    answers = await asyncio.gather(*(client.ask("POST", "/proxies", body) for _ in range(8)))
    assert sorted(status for status, _ in answers) == [201] + [409] * 7
    switches = [client.ask("POST", "/proxies/echo", {"enabled": number % 2 == 0}) for number in range(8)]
    assert {status for status, _ in await asyncio.gather(*switches)} == {200}
    proxy = (await client.ask("GET", "/proxies/echo"))[1]
    assert await refuses(proxy["listen"]) is not proxy["enabled"]
