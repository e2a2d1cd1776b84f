"""Proxies by name, with the rules of toxiproxy's HTTP API, without HTTP; `proxy_api` serves them.

    nothing ─ create, populate ─▶ enabled ◀─ update, reset ─▶ disabled ─ delete ─▶ nothing
                                  toxics: add_toxic, change_toxic, remove_toxic, reset

Invariants
1. A proxy listens on a loopback address, or on the one address that `--listen` opened to others.
2. Changes are made one at a time. A request with wrong fields is refused before anything is changed.
3. There are at most MAX_PROXIES, each with at most MAX_TOXICS.

Where this differs from toxiproxy
    toxics       attributes a toxic does not have, negative ones, and a toxicity above 1 are refused; there is no noop
    listen       shown as it is bound, `localhost` as 127.0.0.1, also while disabled: a disabled proxy keeps its port.
                 `:port` is on the address opened to others or on 127.0.0.1, never on all addresses
    update       a new `listen` that cannot be bound leaves the proxy as it was
    populate     changes nothing if one field of one proxy is wrong
    not there    /metrics, and the header X-Toxiproxy-Request-Id

Errors carry toxiproxy's messages, for clients that compare them.
"""

from __future__ import annotations

import asyncio
import ipaddress
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field, model_validator

from services.chaos.faultproxy.proxy import ATTRIBUTES, HOST, Proxy, Stream, Toxic, join_address, split_address
from services.kernel.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound, Unavailable

MAX_PROXIES: Final = 256
MAX_TOXICS: Final = 64
_MAX_ATTRIBUTE: Final = 2**63 - 1

_Name = Annotated[str, Field(max_length=255, pattern=r"^[^/\x00-\x1f]*$")]
_Address = Annotated[str, Field(max_length=300)]


class _Fields(BaseModel):
    """Fields of a request. One that is null or missing stays as it is, an unknown one is ignored."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, given: Any) -> Any:
        return {name: value for name, value in given.items() if value is not None} if isinstance(given, dict) else given


class ProxyFields(_Fields):
    """The fields of a proxy."""

    name: _Name = ""
    listen: _Address = ""
    upstream: _Address = ""
    enabled: bool | None = None


class ToxicFields(_Fields):
    """The fields of a toxic; `type` and `stream` are for a new one."""

    name: _Name = ""
    type: str = ""
    stream: str = Stream.DOWNSTREAM.value
    toxicity: float | None = None
    attributes: dict[str, Annotated[int, Field(le=_MAX_ATTRIBUTE)]] = Field(default_factory=dict)


class Proxies:
    """All proxies. The caller closes them.

    Args:
        host: The address that proxies may listen on besides loopback ones, and do if they name none.

    Raises:
        InvalidArgument: For the fields: FIELD_MISSING, ADDRESS_INVALID, LISTEN_REFUSED, TOXIC_UNKNOWN, STREAM_UNKNOWN,
            OUT_OF_RANGE.
        NotFound: PROXY_UNKNOWN, TOXIC_MISSING.
        AlreadyExists: PROXY_EXISTS, TOXIC_EXISTS.
        FailedPrecondition: TOO_MANY.
        Unavailable: PORT_BUSY: the address cannot be listened on.
    """

    def __init__(self, host: str = HOST) -> None:
        self._host = host
        self._by_name: dict[str, Proxy] = {}
        self._changing = asyncio.Lock()

    def __iter__(self) -> Iterator[Proxy]:
        return iter(list(self._by_name.values()))

    def get(self, name: str) -> Proxy:
        """Return the proxy of that name."""
        if name not in self._by_name:
            raise NotFound("PROXY_UNKNOWN", "proxy not found")
        return self._by_name[name]

    async def create(self, fields: ProxyFields) -> Proxy:
        """Open a new proxy, enabled by default."""
        _require(fields)
        async with self._changing:
            if fields.name in self._by_name:
                raise AlreadyExists("PROXY_EXISTS", "proxy already exists")
            self._keep_bounds({fields.name})
            return await self._open(fields.name, self._place(fields), _upstream(fields), enabled=_enabled(fields))

    async def populate(self, wanted: Sequence[ProxyFields], done: list[Proxy]) -> None:
        """Create or move proxies. One that has both addresses already stays, with its toxics.

        Args:
            done: Gets each proxy that is as wanted; after a failure, those before it.
        """
        for number, fields in enumerate(wanted, 1):
            _require(fields, f" at proxy {number}")
        plans = [(fields, self._place(fields), _upstream(fields)) for fields in wanted]
        async with self._changing:
            self._keep_bounds({fields.name for fields in wanted})
            for fields, place, upstream in plans:
                proxy = self._by_name.get(fields.name)
                if proxy is None:
                    proxy = await self._open(fields.name, place, upstream, enabled=_enabled(fields))
                elif (proxy.host, proxy.port, proxy.upstream) != (*place, upstream):
                    proxy = await self._move(proxy, place, upstream, enabled=_enabled(fields), toxics={})
                done.append(proxy)

    async def update(self, name: str, fields: ProxyFields) -> Proxy:
        """Move it, which resets its connections and keeps its toxics, and enable or disable it."""
        async with self._changing:
            proxy = self.get(name)
            place = self._place(fields) if fields.listen else (proxy.host, proxy.port)
            upstream = _upstream(fields) if fields.upstream else proxy.upstream
            enabled = proxy.enabled if fields.enabled is None else fields.enabled
            if (proxy.host, proxy.port, proxy.upstream) != (*place, upstream):
                return await self._move(proxy, place, upstream, enabled=enabled, toxics=proxy.toxics)
            await _switch(proxy, enabled=enabled)
            return proxy

    async def delete(self, name: str) -> None:
        """Close it, and reset its connections."""
        async with self._changing:
            await self.get(name).close()
            del self._by_name[name]

    async def reset(self) -> None:
        """Enable all, and remove every toxic."""
        async with self._changing:
            for proxy in self:
                await _switch(proxy, enabled=True)
                await proxy.reset()

    async def close(self) -> None:
        async with self._changing:
            for proxy in self:
                await proxy.close()
            self._by_name.clear()

    async def add_toxic(self, name: str, fields: ToxicFields) -> Toxic:
        """Add a toxic, by default named <type>_<stream>."""
        toxic = _toxic(fields)
        async with self._changing:
            proxy = self.get(name)
            if toxic.name in proxy.toxics:
                raise AlreadyExists("TOXIC_EXISTS", "toxic already exists")
            if len(proxy.toxics) >= MAX_TOXICS:
                raise FailedPrecondition("TOO_MANY", f"too many toxics: a proxy has {MAX_TOXICS} at most")
            proxy.add(toxic)
            return toxic

    def toxic(self, name: str, toxic: str) -> Toxic:
        """Return a proxy's toxic of that name."""
        toxics = self.get(name).toxics
        if toxic not in toxics:
            raise NotFound("TOXIC_MISSING", "toxic not found")
        return toxics[toxic]

    async def change_toxic(self, name: str, toxic: str, fields: ToxicFields) -> Toxic:
        """Change its attributes or its toxicity; what is not named stays."""
        async with self._changing:
            before = self.toxic(name, toxic)
            toxicity = before.toxicity if fields.toxicity is None else fields.toxicity
            attributes = {**before.attributes, **fields.attributes}
            after = _checked(before.name, before.kind, before.stream, toxicity, attributes)
            self.get(name).change(after)
            return after

    async def remove_toxic(self, name: str, toxic: str) -> None:
        async with self._changing:
            self.get(name).remove(self.toxic(name, toxic).name)

    def _keep_bounds(self, names: set[str]) -> None:
        if len(names | self._by_name.keys()) > MAX_PROXIES:
            raise FailedPrecondition("TOO_MANY", f"too many proxies: there can be {MAX_PROXIES} at most")

    def _place(self, fields: ProxyFields) -> tuple[str, int]:
        """Return the address and port to listen on; by default a free port."""
        host, port = _address("listen", fields.listen or ":0")
        host = {"": self._host, "localhost": HOST}.get(host, host)
        if host != self._host and not is_loopback(host):
            raise InvalidArgument(
                "LISTEN_REFUSED",
                f"bad request body: listen: proxies listen on 127.0.0.0/8, ::1 or localhost here, not on {host}; "
                "an address that the server is started with (--listen) is open to them as well",
            )
        return host, port

    async def _open(
        self,
        name: str,
        place: tuple[str, int],
        upstream: str,
        *,
        enabled: bool,
        toxics: Mapping[str, Toxic] | None = None,
    ) -> Proxy:
        """Open a proxy and put it under the name."""
        host, port = place
        if any(proxy.name != name and (proxy.host, proxy.port) == place for proxy in self):
            raise _busy(host, port, "address already in use")  # that of a disabled proxy: the system would give it
        try:
            proxy = Proxy(name, upstream, host=host, listen_port=port)
        except OSError as error:
            raise _busy(host, port, os.strerror(error.errno or 0).lower()) from error
        proxy.toxics = dict(toxics or {})
        try:
            await _switch(proxy, enabled=enabled)
        except Unavailable:
            await proxy.close()
            raise
        self._by_name[name] = proxy
        return proxy

    async def _move(
        self, proxy: Proxy, place: tuple[str, int], upstream: str, *, enabled: bool, toxics: Mapping[str, Toxic]
    ) -> Proxy:
        if (proxy.host, proxy.port) == place:
            await proxy.disable()
            proxy.upstream, proxy.toxics = upstream, dict(toxics)
            await _switch(proxy, enabled=enabled)
            return proxy
        moved = await self._open(proxy.name, place, upstream, enabled=enabled, toxics=toxics)
        await proxy.close()
        return moved


def is_loopback(host: str) -> bool:
    """Return whether only this machine reaches the address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


async def _switch(proxy: Proxy, *, enabled: bool) -> None:
    if not enabled:
        await proxy.disable()
        return
    try:
        await proxy.enable()
    except OSError as error:
        raise _busy(proxy.host, proxy.port, os.strerror(error.errno or 0).lower()) from error


def _busy(host: str, port: int, why: str) -> Unavailable:
    return Unavailable("PORT_BUSY", f"listen tcp {join_address(host, port)}: bind: {why}")


def _require(fields: ProxyFields, where: str = "") -> None:
    for name in ("name", "upstream"):
        if not getattr(fields, name):
            raise InvalidArgument("FIELD_MISSING", f"missing required field: {name}{where}")


def _address(field: str, address: str) -> tuple[str, int]:
    try:
        return split_address(address)
    except InvalidArgument as error:
        raise InvalidArgument(error.reason, f"bad request body: {field}: {error.message}") from error


def _upstream(fields: ProxyFields) -> str:
    host, port = _address("upstream", fields.upstream)
    if not host or not port:
        raise InvalidArgument("ADDRESS_INVALID", f"bad request body: upstream: {fields.upstream!r} leads nowhere")
    return fields.upstream


def _enabled(fields: ProxyFields) -> bool:
    return fields.enabled is not False


def _toxic(fields: ToxicFields) -> Toxic:
    stream = fields.stream.lower()
    if stream not in list(Stream):
        raise InvalidArgument("STREAM_UNKNOWN", "stream was invalid, can be either upstream or downstream")
    if fields.type not in ATTRIBUTES:
        raise InvalidArgument("TOXIC_UNKNOWN", "invalid toxic type")
    toxicity = 1.0 if fields.toxicity is None else fields.toxicity
    return _checked(
        fields.name or f"{fields.type}_{stream}", fields.type, Stream(stream), toxicity, dict(fields.attributes)
    )


def _checked(name: str, kind: str, stream: Stream, toxicity: float, attributes: Mapping[str, int]) -> Toxic:
    try:
        return Toxic(name, kind, stream, toxicity, attributes)
    except InvalidArgument as error:
        raise InvalidArgument(error.reason, f"bad request body: {error.message}") from error
