"""A gRPC channel to whoever provides an interface now.

Generated stubs take it as they take any ``grpc.aio.Channel``:
``PaymentServiceStub(DiscoveredChannel(directory, …))``.

    call ─▶ pick an endpoint ─▶ reachable? ─no──▶ pick another (nothing was sent)
                 ▲                 │ yes
                 │                 ▼
                 │               send ─▶ OK, or an error ─────────────────▶ the caller
                 │                 │
                 └─────────────────┘ UNAVAILABLE, and either the method is idempotent
                                     or gRPC says that nothing was sent

Invariants
1. A request is sent a second time only if its method is idempotent and the code was UNAVAILABLE, or if it
   is proved that the first never left: the endpoint could not be connected to. Never after
   DEADLINE_EXCEEDED. (Dubbo's default failover repeats timed-out calls, payments too.)
2. One deadline covers every attempt; what is left of it is what each attempt gets.
3. An endpoint that cannot be reached fails no call as long as another can.
4. With nobody to call the error is UNAVAILABLE and says so, within the deadline; nothing was done.
5. A stream is opened on one endpoint and never moved to another.

Which function makes each move
    DiscoveredChannel._connect   picks, and proves reachable        _UnaryCall._run   sends, decides on
    another try _Link.reachable              endpoint -> READY or not           _in_limbo         closes
    what has long been gone
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

import grpc
from grpc.aio import AioRpcError, Metadata

from coordination.balancing import Picker
from coordination.deadline import Deadline
from coordination.discovery import Directory
from coordination.endpoint import Endpoint
from coordination.errors import NoProviders

Request = TypeVar("Request")
Response = TypeVar("Response")
Option = tuple[str, Any]

WAIT_FOR_PROVIDER_S = 1.0  # how long a call waits for somebody to be registered (at most 4/5 of its deadline)
CONNECT_SLICE_S = 1.0  # how long one endpoint may take to connect before the next is tried
ROUND_PAUSE_S = 0.1  # between two rounds through all endpoints, for a call that waits for one to be ready
LIMBO_S = 30.0  # an endpoint that left the directory may come back: its connection is kept so long
CLOSE_GRACE_S = 5.0  # and its calls may then take so much longer

DEFAULT_OPTIONS: dict[str, Any] = {
    # Providers are addressed inside; an http_proxy of the environment is not for them.
    "grpc.enable_http_proxy": 0,
    # Else the channels of one process would share each other's reconnect back-off.
    "grpc.use_local_subchannel_pool": 1,
    # Nobody's DNS record may switch on gRPC's own retries.
    "grpc.service_config_disable_resolution": 1,
    "grpc.initial_reconnect_backoff_ms": 100,
    "grpc.min_reconnect_backoff_ms": 100,
    "grpc.max_reconnect_backoff_ms": 1000,
    # A host that vanished without a word is noticed by this.
    "grpc.keepalive_time_ms": 20_000,
    "grpc.keepalive_timeout_ms": 5_000,
}

NEVER_CONNECTED = "failed to connect to all addresses"
"""How gRPC core's pick_first begins the details of a call it had no connection to send on. Such a call was
never given to a transport, and with retries by service config disabled it had no earlier attempt."""


class NeverSent(AioRpcError):
    """UNAVAILABLE, and nothing of the call left this process: nobody is registered, or can be reached."""

    def __init__(self, details: str) -> None:
        super().__init__(grpc.StatusCode.UNAVAILABLE, Metadata(), Metadata(), details=details)


def never_sent(error: AioRpcError) -> bool:
    """Tell whether it is proved that no server can have seen the call, so that repeating it is harmless."""
    if isinstance(error, NeverSent):
        return True
    details = error.details() or ""
    return error.code() is grpc.StatusCode.UNAVAILABLE and details.startswith(NEVER_CONNECTED)


class DiscoveredChannel(grpc.aio.Channel):
    """A ``grpc.aio.Channel`` over all endpoints of a directory.

    Args:
        directory: whom to call.
        picker: which of them next.
        is_idempotent: tells of a full method name (``/pkg.Service/Method``) whether repeating it is harmless.
        options: gRPC channel options, over DEFAULT_OPTIONS.
        default_timeout_s: deadline of unary calls that give none, seconds; None for no deadline. Streams
            that give none have none.
        credentials: for TLS; None for plain text.
    """

    def __init__(
        self,
        directory: Directory,
        *,
        picker: Picker,
        is_idempotent: Callable[[str], bool],
        options: Iterable[Option] = (),
        default_timeout_s: float | None = None,
        credentials: grpc.ChannelCredentials | None = None,
    ) -> None:
        self._directory = directory
        self._picker = picker
        self._is_idempotent = is_idempotent
        self._options = list((DEFAULT_OPTIONS | dict(options)).items())
        self._default_timeout_s = default_timeout_s
        self._credentials = credentials
        self._links: dict[str, _Link] = {}
        self._limbo: dict[str, asyncio.Task[None]] = {}
        self._closed = False
        self._unsubscribe = directory.subscribe(self._directory_changed)

    @property
    def directory(self) -> Directory:
        """Whom this channel calls."""
        return self._directory

    # ---- what stubs ask for --------------------------------------------------------------------------

    def unary_unary(
        self,
        method: str,
        request_serializer: Callable[[Request], bytes] | None = None,
        response_deserializer: Callable[[bytes], Response] | None = None,
        _registered_method: bool | None = False,
    ) -> grpc.aio.UnaryUnaryMultiCallable[Request, Response]:
        """See grpc.aio."""
        return _UnaryUnary(self, _Method("unary_unary", method, request_serializer, response_deserializer))

    def unary_stream(
        self,
        method: str,
        request_serializer: Callable[[Request], bytes] | None = None,
        response_deserializer: Callable[[bytes], Response] | None = None,
        _registered_method: bool | None = False,
    ) -> grpc.aio.UnaryStreamMultiCallable[Request, Response]:
        """See grpc.aio."""
        return _UnaryStream(self, _Method("unary_stream", method, request_serializer, response_deserializer))

    def stream_unary(
        self,
        method: str,
        request_serializer: Callable[[Request], bytes] | None = None,
        response_deserializer: Callable[[bytes], Response] | None = None,
        _registered_method: bool | None = False,
    ) -> grpc.aio.StreamUnaryMultiCallable[Request, Response]:
        """See grpc.aio."""
        return _StreamUnary(self, _Method("stream_unary", method, request_serializer, response_deserializer))

    def stream_stream(
        self,
        method: str,
        request_serializer: Callable[[Request], bytes] | None = None,
        response_deserializer: Callable[[bytes], Response] | None = None,
        _registered_method: bool | None = False,
    ) -> grpc.aio.StreamStreamMultiCallable[Request, Response]:
        """See grpc.aio."""
        return _StreamStream(self, _Method("stream_stream", method, request_serializer, response_deserializer))

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        """Return the best state among the endpoints: READY if a call could be sent at once."""
        if self._closed:
            return grpc.ChannelConnectivity.SHUTDOWN
        if try_to_connect:
            for endpoint in self._directory.endpoints:
                self._link_to(endpoint)
        states = {link.channel.get_state(try_to_connect) for link in self._links.values()}
        for state in (
            grpc.ChannelConnectivity.READY,
            grpc.ChannelConnectivity.CONNECTING,
            grpc.ChannelConnectivity.IDLE,
            grpc.ChannelConnectivity.TRANSIENT_FAILURE,
        ):
            if state in states:
                return state
        return grpc.ChannelConnectivity.IDLE

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        """Return once `get_state()` is another."""
        while self.get_state() is last_observed_state:
            news = asyncio.Event()
            unsubscribe = self._directory.subscribe(news.set)
            waits: list[asyncio.Task[Any]] = [
                asyncio.ensure_future(link.channel.wait_for_state_change(link.channel.get_state()))
                for link in self._links.values()
            ]
            waits.append(asyncio.ensure_future(news.wait()))
            try:
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            finally:
                unsubscribe()
                for wait in waits:
                    wait.cancel()
                await asyncio.gather(*waits, return_exceptions=True)

    async def channel_ready(self) -> None:
        """Return once some endpoint can be called."""
        while (state := self.get_state(try_to_connect=True)) is not grpc.ChannelConnectivity.READY:
            await self.wait_for_state_change(state)

    async def close(self, grace: float | None = None) -> None:
        """Take no new call; cancel those under way after `grace` seconds (None: at once). Idempotent."""
        if self._closed:
            return
        self._closed = True
        self._unsubscribe()
        limbo = list(self._limbo.values())
        self._limbo.clear()
        for task in limbo:
            task.cancel()
        links = list(self._links.values())
        self._links.clear()
        await asyncio.gather(*limbo, *(link.channel.close(grace) for link in links), return_exceptions=True)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    # ---- choosing ------------------------------------------------------------------------------------

    async def _connect(self, tried: set[str], invocation: _Invocation) -> _Link:
        """Return a link to an endpoint that is connected and not in `tried`, to which the unreachable are
        added.

        With `wait_for_ready` everybody is tried again and again until the deadline.

        Raises:
            NeverSent: nobody is registered, or nobody can be reached.
        """
        deadline = invocation.deadline
        while not self._closed:
            endpoints = await self._providers(deadline)
            endpoint = self._choose(endpoints, tried)
            if endpoint is None and invocation.wait_for_ready and not deadline.expired():
                await asyncio.sleep(ROUND_PAUSE_S)
                tried.clear()
                continue
            if endpoint is None:
                addresses = ", ".join(sorted(tried))
                raise NeverSent(f"no provider of {self._directory.interface} can be reached (tried {addresses})")
            link = self._link_to(endpoint)
            left = sum(candidate.address not in tried for candidate in endpoints)
            if await link.reachable(_slice(deadline, left)):
                return link
            tried.add(endpoint.address)
        raise NeverSent("the channel is closed")

    async def _providers(self, deadline: Deadline) -> tuple[Endpoint, ...]:
        if self._directory.endpoints:
            return self._directory.endpoints
        left_s = deadline.remaining_s()
        patience_s = WAIT_FOR_PROVIDER_S if left_s is None else min(WAIT_FOR_PROVIDER_S, left_s * 0.8)
        try:
            return await self._directory.wait_any(patience_s)
        except NoProviders as error:
            raise NeverSent(str(error)) from error

    def _choose(self, endpoints: Sequence[Endpoint], tried: set[str]) -> Endpoint | None:
        """Pick one, those last seen unreachable only if there is no other."""
        down = {address for address, link in self._links.items() if link.down()}
        return self._picker.pick(endpoints, tried | down) or self._picker.pick(endpoints, tried)

    def _link_to(self, endpoint: Endpoint) -> _Link:
        link = self._links.get(endpoint.address)
        if link is None:
            if self._credentials is None:
                channel = grpc.aio.insecure_channel(endpoint.address, self._options)
            else:
                channel = grpc.aio.secure_channel(endpoint.address, self._credentials, self._options)
            link = self._links[endpoint.address] = _Link(endpoint.address, channel)
        return link

    # ---- limbo ---------------------------------------------------------------------------------------

    def _directory_changed(self) -> None:
        present = {endpoint.address for endpoint in self._directory.endpoints}
        for address in present & self._limbo.keys():
            self._limbo.pop(address).cancel()
        for address in self._links.keys() - present - self._limbo.keys():
            self._limbo[address] = asyncio.get_running_loop().create_task(self._in_limbo(address))

    async def _in_limbo(self, address: str) -> None:
        await asyncio.sleep(LIMBO_S)
        self._limbo.pop(address, None)
        link = self._links.pop(address, None)
        if link is not None:
            await link.channel.close(CLOSE_GRACE_S)


class _Link:
    """The gRPC channel to one endpoint, and the callables made on it."""

    def __init__(self, address: str, channel: grpc.aio.Channel) -> None:
        self.address = address
        self.channel = channel
        self._callables: dict[tuple[str, str], Any] = {}

    def callable(self, method: _Method) -> Any:
        """Return grpc.aio's multicallable of a method on this endpoint."""
        key = (method.kind, method.name)
        if key not in self._callables:
            make = getattr(self.channel, method.kind)
            self._callables[key] = make(
                method.name,
                request_serializer=method.request_serializer,
                response_deserializer=method.response_deserializer,
            )
        return self._callables[key]

    def down(self) -> bool:
        """Tell whether the last attempt to connect failed; gRPC goes on trying by itself."""
        return self.channel.get_state() is grpc.ChannelConnectivity.TRANSIENT_FAILURE

    async def reachable(self, deadline: Deadline) -> bool:
        """Connect if need be; False if that fails or takes too long. Nothing of any call is sent."""
        state = self.channel.get_state(try_to_connect=True)
        if state is grpc.ChannelConnectivity.READY:
            return True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(deadline.remaining_s()):
                while state in (grpc.ChannelConnectivity.IDLE, grpc.ChannelConnectivity.CONNECTING):
                    await self.channel.wait_for_state_change(state)
                    state = self.channel.get_state(try_to_connect=True)
        return state is grpc.ChannelConnectivity.READY


@dataclass(frozen=True, slots=True)
class _Method:
    """A method as a stub describes it. `kind` is the name of the Channel method that makes its callable."""

    kind: str
    name: str
    request_serializer: Callable[[Any], bytes] | None
    response_deserializer: Callable[[bytes], Any] | None


@dataclass(frozen=True, slots=True)
class _Invocation:
    """One call as the caller made it; what is passed through to every attempt."""

    method: _Method
    request: Any  # a message, or the iterator of a request stream
    deadline: Deadline
    metadata: Any
    credentials: grpc.CallCredentials | None
    wait_for_ready: bool | None
    compression: grpc.Compression | None

    def on(self, link: _Link) -> Any:
        """Send it to one endpoint; returns grpc.aio's call."""
        return link.callable(self.method)(
            self.request,
            timeout=self.deadline.remaining_s(),
            metadata=self.metadata,
            credentials=self.credentials,
            wait_for_ready=self.wait_for_ready,
            compression=self.compression,
        )


class _Call(grpc.aio.Call):
    """What the four kinds of call have in common: a task that finds an endpoint, and grpc.aio's call on it.

    `_task` ends with `_inner` set, or with the error that kept it from being set.
    """

    def __init__(self, channel: DiscoveredChannel, invocation: _Invocation) -> None:
        self._channel = channel
        self._invocation = invocation
        self._inner: Any = None
        self._task: asyncio.Task[Any] = asyncio.get_running_loop().create_task(self._run())
        self._task.add_done_callback(_retrieved)

    async def _run(self) -> Any:
        """Find an endpoint and set `_inner`; what it returns is up to the kind of call."""
        raise NotImplementedError

    async def _opened(self) -> Any:
        """Return grpc.aio's call, or raise what kept it from being made."""
        await asyncio.wait({self._task})
        if self._inner is None:
            self._task.result()
        return self._inner

    def cancel(self) -> bool:
        """Cancel the call, wherever it is."""
        searching = self._task.cancel()
        sent = self._inner is not None and bool(self._inner.cancel())
        return searching or sent

    def cancelled(self) -> bool:
        """See grpc.aio."""
        return self._task.cancelled() or (self._inner is not None and bool(self._inner.cancelled()))

    def done(self) -> bool:
        """See grpc.aio."""
        return self._task.done() and (self._inner is None or bool(self._inner.done()))

    def time_remaining(self) -> float | None:
        """Return seconds left for all attempts together."""
        return self._invocation.deadline.remaining_s()

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        """Have `callback` called with this call when it has ended."""

        def searched(_: asyncio.Task[Any]) -> None:
            if self._inner is None:
                callback(self)
            else:
                self._inner.add_done_callback(lambda _: callback(self))

        self._task.add_done_callback(searched)

    async def wait_for_connection(self) -> None:
        """See grpc.aio."""
        await (await self._opened()).wait_for_connection()

    async def initial_metadata(self) -> Metadata:
        """Return the metadata the server began with; empty if no server was reached."""
        error = await self._error_before_sending()
        return error.initial_metadata() if error else await self._inner.initial_metadata()

    async def trailing_metadata(self) -> Metadata:
        """Return the metadata the server ended with; empty if no server was reached."""
        error = await self._error_before_sending()
        return error.trailing_metadata() if error else await self._inner.trailing_metadata()

    async def code(self) -> grpc.StatusCode:
        """Return the call's status code, once it has ended."""
        error = await self._error_before_sending()
        return error.code() if error else await self._inner.code()

    async def details(self) -> str:
        """Return the details of the call's status, once it has ended."""
        error = await self._error_before_sending()
        return (error.details() or "") if error else await self._inner.details()

    async def _error_before_sending(self) -> AioRpcError | None:
        """Wait for the search to end; returns its error if no call was made."""
        await asyncio.wait({self._task})
        if self._inner is not None:
            return None
        if self._task.cancelled():
            return _ended(grpc.StatusCode.CANCELLED, "cancelled by the caller")
        error = self._task.exception()
        if isinstance(error, AioRpcError):
            return error
        return _ended(grpc.StatusCode.UNKNOWN, repr(error))


class _UnaryCall(_Call, grpc.aio.UnaryUnaryCall[Request, Response], Generic[Request, Response]):
    """A unary call: its task goes through the attempts and ends with the response."""

    def __await__(self) -> Generator[Any, None, Response]:
        response: Response = yield from self._task.__await__()
        return response

    async def _run(self) -> Response:
        channel, invocation = self._channel, self._invocation
        idempotent = channel._is_idempotent(invocation.method.name)
        tried: set[str] = set()
        maybe_done: AioRpcError | None = None  # of an attempt that may have reached a server
        while True:
            try:
                link = await channel._connect(tried, invocation)
                self._inner = invocation.on(link)
                response: Response = await self._inner
            except AioRpcError as error:
                if not never_sent(error):
                    maybe_done = error
                final = isinstance(error, NeverSent) or invocation.deadline.expired()
                repeatable = error.code() is grpc.StatusCode.UNAVAILABLE and (idempotent or never_sent(error))
                if final or not repeatable:
                    # That an earlier attempt may have been carried out matters more than the last one's end.
                    raise maybe_done or error from None
                tried.add(link.address)
            else:
                return response


class _StreamCall(_Call):
    """A call with a stream in it: its task ends when an endpoint was found and the call is open there."""

    async def _run(self) -> None:
        link = await self._channel._connect(set(), self._invocation)
        self._inner = self._invocation.on(link)

    async def read(self) -> Any:
        """See grpc.aio."""
        return await (await self._opened()).read()

    async def write(self, request: Any) -> None:
        """See grpc.aio."""
        await (await self._opened()).write(request)

    async def done_writing(self) -> None:
        """See grpc.aio."""
        await (await self._opened()).done_writing()

    async def _responses(self) -> AsyncIterator[Any]:
        async for response in await self._opened():
            yield response


class _UnaryStreamCall(_StreamCall, grpc.aio.UnaryStreamCall[Request, Response], Generic[Request, Response]):
    def __aiter__(self) -> AsyncIterator[Response]:
        return self._responses()


class _StreamStreamCall(_StreamCall, grpc.aio.StreamStreamCall[Request, Response], Generic[Request, Response]):
    def __aiter__(self) -> AsyncIterator[Response]:
        return self._responses()


class _StreamUnaryCall(_StreamCall, grpc.aio.StreamUnaryCall[Request, Response], Generic[Request, Response]):
    def __await__(self) -> Generator[Any, None, Response]:
        return self._response().__await__()

    async def _response(self) -> Response:
        response: Response = await (await self._opened())
        return response


class _MultiCallable:
    """What a stub calls: makes the call of its kind."""

    def __init__(self, channel: DiscoveredChannel, method: _Method) -> None:
        self._channel = channel
        self._method = method


class _UnaryUnary(_MultiCallable, grpc.aio.UnaryUnaryMultiCallable[Request, Response], Generic[Request, Response]):
    def __call__(
        self,
        request: Request,
        *,
        timeout: float | None = None,
        metadata: Any = None,
        credentials: grpc.CallCredentials | None = None,
        wait_for_ready: bool | None = None,
        compression: grpc.Compression | None = None,
    ) -> grpc.aio.UnaryUnaryCall[Request, Response]:
        deadline = Deadline.after(self._channel._default_timeout_s if timeout is None else timeout)
        return _UnaryCall(
            self._channel,
            _Invocation(self._method, request, deadline, metadata, credentials, wait_for_ready, compression),
        )


class _UnaryStream(_MultiCallable, grpc.aio.UnaryStreamMultiCallable[Request, Response], Generic[Request, Response]):
    def __call__(
        self,
        request: Request,
        *,
        timeout: float | None = None,
        metadata: Any = None,
        credentials: grpc.CallCredentials | None = None,
        wait_for_ready: bool | None = None,
        compression: grpc.Compression | None = None,
    ) -> grpc.aio.UnaryStreamCall[Request, Response]:
        deadline = Deadline.after(timeout)
        return _UnaryStreamCall(
            self._channel,
            _Invocation(self._method, request, deadline, metadata, credentials, wait_for_ready, compression),
        )


class _StreamUnary(_MultiCallable, grpc.aio.StreamUnaryMultiCallable[Request, Response], Generic[Request, Response]):
    def __call__(
        self,
        request_iterator: Any = None,
        timeout: float | None = None,
        metadata: Any = None,
        credentials: grpc.CallCredentials | None = None,
        wait_for_ready: bool | None = None,
        compression: grpc.Compression | None = None,
    ) -> grpc.aio.StreamUnaryCall[Request, Response]:
        deadline = Deadline.after(timeout)
        return _StreamUnaryCall(
            self._channel,
            _Invocation(self._method, request_iterator, deadline, metadata, credentials, wait_for_ready, compression),
        )


class _StreamStream(_MultiCallable, grpc.aio.StreamStreamMultiCallable[Request, Response], Generic[Request, Response]):
    def __call__(
        self,
        request_iterator: Any = None,
        timeout: float | None = None,
        metadata: Any = None,
        credentials: grpc.CallCredentials | None = None,
        wait_for_ready: bool | None = None,
        compression: grpc.Compression | None = None,
    ) -> grpc.aio.StreamStreamCall[Request, Response]:
        deadline = Deadline.after(timeout)
        return _StreamStreamCall(
            self._channel,
            _Invocation(self._method, request_iterator, deadline, metadata, credentials, wait_for_ready, compression),
        )


def _slice(deadline: Deadline, candidates: int) -> Deadline:
    """Return the part of a deadline that one endpoint may take to connect: a fair share, so that one that
    swallows packets leaves time for the others and for the call itself."""
    left_s = deadline.remaining_s()
    return deadline.at_most(CONNECT_SLICE_S if left_s is None else min(CONNECT_SLICE_S, left_s / (candidates + 1)))


def _ended(code: grpc.StatusCode, details: str) -> AioRpcError:
    return AioRpcError(code, Metadata(), Metadata(), details=details)


def _retrieved(task: asyncio.Task[Any]) -> None:
    """A call whose result nobody awaits is no error."""
    if not task.cancelled():
        task.exception()
