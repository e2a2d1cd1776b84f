"""How a command reaches the services: found through ZooKeeper, as one principal, within one timeout.

A request that changes something carries its key (request id or ticket) through every try, so that trying again is
harmless: an answer that was lost is given again, marked as replayed. Tried again is what may yet come right, for as
long as the timeout lasts; after that the error names the key for asking again, and so does an interruption.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Self

import grpc
from google.protobuf.message import Message

from coordination import errors as coordination_errors
from coordination.channel.channel import DiscoveredChannel, never_sent
from coordination.discovery import Discovery
from coordination.session import Session
from countinghouse.acquirer.v1 import acquirer_pb2_grpc
from countinghouse.ledger.v1 import ledger_pb2_grpc
from countinghouse.order.v1 import order_pb2_grpc
from countinghouse.payment.v1 import payment_pb2_grpc
from services.cli.connection import Connection, user_name
from services.cli.exit_codes import Interrupted
from services.devstack import dialers, state
from services.devstack.keys import mint
from services.devstack.state import ACQUIRER, INTERFACES
from services.kernel.clock import CallDeadline, Clock, SystemClock
from services.kernel.errors import (
    CountinghouseError,
    OutcomeUnknown,
    PermissionDenied,
    Unauthenticated,
    Unavailable,
    may_come_right,
)
from services.kernel.ids import IdSource, RandomIds
from services.kernel.principal import Principal, Role
from services.runtime import tracing
from services.runtime.grpc import status
from services.runtime.grpc.distrust import distrust
from services.runtime.grpc.identity import server_name
from services.runtime.grpc.methods import idempotency
from services.runtime.grpc.tls import Dialer
from services.runtime.grpc.tokens import MAX_TTL_S
from services.runtime.zookeeper_paths import SERVER_NAME

_STUBS: Final[dict[str, Any]] = {
    "order": order_pb2_grpc.OrderServiceStub,
    "payment": payment_pb2_grpc.PaymentServiceStub,
    "ledger": ledger_pb2_grpc.LedgerServiceStub,
    "acquirer": acquirer_pb2_grpc.AcquirerServiceStub,
    "faults": acquirer_pb2_grpc.FaultServiceStub,
}
#: What is at the acquirer, which is found by its address.
_OUTSIDE = ("acquirer", "faults")
#: How many servers that cannot be reached are asked for the reason.
_LOOKED_AT = 3
_ACQUIRER_VARIABLE = "COUNTINGHOUSE_ACQUIRER_ADDRESS"
_ACQUIRER_TOKEN_VARIABLE = "COUNTINGHOUSE_ACQUIRER_TOKEN"  # noqa: S105  a name
#: RFC 6750, section 2.1; other characters cannot be sent in a header, or are quotes around it.
_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]+=*")
#: A token made for one command need not outlive it by much.
_TOKEN_MARGIN_S = 60
#: Of the timeout: so that one lost reply leaves time to ask again.
_TRY_FRACTION = 0.4
_RETRY_PAUSE_MS = 200
#: Refusals that are given before the key is looked up: they do not show what became of an earlier try.
_BEFORE_THE_KEY = (Unauthenticated, PermissionDenied)
#: The refusal of a try whose request another execution carries on.
_UNDER_WAY = "REQUEST_IN_PROGRESS"
_SESSION_TIMEOUT_S = 4.0
#: The trailer of an answer that is a stored one.
_REPLAYED = ("x-replayed", "true")


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer, and whether it is a stored one."""

    message: Any
    replayed: bool


class Client:
    """A connection to the services for the time of one command.

    Attributes:
        connection: Which stack it calls, as whom.
    """

    def __init__(self, connection: Connection, clock: Clock | None = None, ids: IdSource | None = None) -> None:
        self.connection = connection
        self._clock = clock or SystemClock()
        self._ids = ids or RandomIds()
        self._deadline = CallDeadline.after(connection.timeout_s, self._clock)
        self._resources = AsyncExitStack()
        self._session: Session | None = None
        self._stubs: dict[str, Any] = {}
        self._registered: dict[str, Callable[[], list[str]]] = {}
        self._role = connection.default_role
        #: By whether it is for the acquirer outside.
        self._tokens: dict[bool, str] = {False: connection.token} if connection.token else {}
        if given := os.environ.get(_ACQUIRER_TOKEN_VARIABLE):
            self._tokens[True] = given
        self._request_id = ""
        #: How what is under way can be repeated; empty: nothing is.
        self._repeat = ""
        self._again = ""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._resources.aclose()

    @property
    def as_json(self) -> bool:
        """Whether JSON is wanted."""
        return self.connection.as_json

    @property
    def remaining_s(self) -> float:
        """What is left of the timeout."""
        return self._deadline.remaining_s()

    def act_as(self, role: Role) -> None:
        """Call as `role`, unless the user gave another."""
        self._role = role

    def new_id(self, given: str) -> str:
        """Return the request id given, or a fresh one."""
        self._request_id = given or self._ids.new("req")
        return self._request_id

    @property
    def interrupted(self) -> Interrupted | None:
        """Return the message if the command ends here; None: it was not changing anything."""
        if not self._repeat:
            return None
        return Interrupted("INTERRUPTED", f"Interrupted. It may have been done. {self._repeat}")

    @property
    def again(self) -> str:
        """How to get the answer of the last change again; empty: nothing was changed."""
        return self._again

    async def read(self, service: str, method: str, request: Message) -> Any:
        """Ask for something; return the response message.

        Raises:
            CountinghouseError: What the service answered, or that it did not.
        """
        return (await self._once(service, method, request, self._deadline)).message

    async def read_list(self, service: str, method: str, request: Any, rows: str) -> Any:
        """Ask for `page_size` rows of a list; return the response with all of them, or all that there are.

        A page may be cut short before the list has ended, so this goes on until it has as many as were asked for.

        Args:
            rows: Field of the response that has the rows.

        Raises:
            CountinghouseError: As `read`.
        """
        wanted = request.page_size
        response = await self.read(service, method, request)
        found = getattr(response, rows)
        while response.next_page_token and len(found) < wanted:
            request.page_size = wanted - len(found)
            request.page_token = response.next_page_token
            page = await self.read(service, method, request)
            found.extend(getattr(page, rows))
            response.next_page_token = page.next_page_token
        return response

    async def find(self, service: str, within_s: float) -> None:
        """Find a service, within part of the timeout.

        Raises:
            StackRefused: STACK_NOT_RUNNING.
            Unavailable: ZOOKEEPER_UNAVAILABLE, or SERVICE_UNAVAILABLE.
        """
        try:
            async with asyncio.timeout(within_s):
                await self._stub(service)
        except TimeoutError:
            raise Unavailable(
                "SERVICE_UNAVAILABLE", f"the {service} service was not found in {within_s:g} s; try again"
            ) from None

    async def send(self, service: str, method: str, request: Message, within_s: float) -> Any:
        """Send a request once; return the response message.

        Args:
            within_s: What this call may take of the timeout.

        Raises:
            CountinghouseError: What the service answered, or that it did not.
        """
        deadline = CallDeadline.after(min(within_s, self._deadline.remaining_s()), self._clock)
        return (await self._once(service, method, request, deadline)).message

    async def change(self, service: str, method: str, request: Message, key: str) -> Reply:
        """Change something, trying again under the same key while that may help.

        Args:
            key: The request id or ticket in `request`.

        Raises:
            CountinghouseError: As `read`, with how to repeat the command if asking again may help.
            OutcomeUnknown: A try was not answered, or its request is under way, and no later one showed its outcome.
        """
        try_s = self.connection.timeout_s * _TRY_FRACTION
        how = f"use --request-id {key}" if key == self._request_id else "run the same command"
        self._repeat = f"To ask again, not twice, {how}"  # no full stop: an id may end with one
        unanswered = False
        while True:
            attempt = CallDeadline.after(min(try_s, self._deadline.remaining_s()), self._clock)
            try:
                reply = await self._once(service, method, request, attempt)
            except CountinghouseError as error:
                unanswered = unanswered or isinstance(error, OutcomeUnknown) or error.reason == _UNDER_WAY
                pause_s = (error.retry_after_ms or _RETRY_PAUSE_MS) / 1000
                if may_come_right(error) and self._deadline.remaining_s() > pause_s:
                    await asyncio.sleep(pause_s)
                    continue
                if may_come_right(error) or (unanswered and isinstance(error, _BEFORE_THE_KEY)):
                    raise self._to_be_asked_again(error, key, unanswered=unanswered) from error
                self._repeat = ""
                if "replayed" in error.metadata:
                    self._tell_replayed(error, key)
                raise
            self._repeat, self._again = "", f"to get the answer again, {how}"
            return reply

    async def session(self) -> Session:
        """Return a connected ZooKeeper session.

        Raises:
            StackRefused: STACK_NOT_RUNNING.
            Unavailable: ZOOKEEPER_UNAVAILABLE.
        """
        if self._session is not None:
            return self._session
        data = self.connection.data
        address = self.connection.zookeeper or state.require(data).zookeeper
        security = dialers.zookeeper_of_command(data, os.environ, elsewhere=self._is_elsewhere())
        session = Session(address, timeout_s=_SESSION_TIMEOUT_S, name="cli", security=security)
        try:
            await session.start()
            self._resources.push_async_callback(session.close)
            await session.wait_connected(self._deadline.remaining_s())
        except (ValueError, coordination_errors.Unavailable) as error:
            if security.context is not None:
                await self._refuse_unbelieved(address.split(","), SERVER_NAME)
            raise Unavailable(
                "ZOOKEEPER_UNAVAILABLE", f"no ZooKeeper answers at {address}; see whether it runs, and try again"
            ) from error
        self._session = session
        return session

    def dialer(self, *, outside: bool = False) -> Dialer:
        """Return what connects to the services, or to the acquirer.

        Raises:
            StackRefused: CA_FILE_MISSING.
            CountinghouseError: TLS_FILE_INVALID.
        """
        elsewhere = self._is_elsewhere(outside=outside)
        return dialers.of_command(self.connection.data, os.environ, outside=outside, elsewhere=elsewhere)

    def _is_elsewhere(self, *, outside: bool = False) -> bool:
        found = state.read(self.connection.data)
        if outside:
            return os.environ.get(_ACQUIRER_VARIABLE, "") not in ("", found.acquirer if found else "")
        return self.connection.zookeeper not in ("", found.zookeeper if found else "")

    async def _refuse_unbelieved(self, addresses: Sequence[str], name: str = "", *, outside: bool = False) -> None:
        """Say so if a server that cannot be reached is there, and is not believed.

        Args:
            name: What its certificate must name; empty: the host of its address.

        Raises:
            StackRefused: SERVER_NOT_BELIEVED.
        """
        elsewhere = self._is_elsewhere(outside=outside)
        file = dialers.believed_file(self.connection.data, os.environ, outside=outside, elsewhere=elsewhere)
        if file is None:
            return
        for address in addresses[:_LOOKED_AT]:
            why = await asyncio.to_thread(distrust, address, file, name or address.rpartition(":")[0])
            if why:
                raise state.StackRefused(
                    "SERVER_NOT_BELIEVED",
                    f"the server at {address} cannot be called by {file}: {why}; write to that file what "
                    "`countinghouse key ca` prints at its stack now (for a stack that was started with --plaintext, "
                    "set COUNTINGHOUSE_PLAINTEXT=true)",
                )

    async def _once(self, service: str, method: str, request: Message, deadline: CallDeadline) -> Reply:
        stub = await self._stub(service)
        call = getattr(stub, method)(
            request, timeout=deadline.remaining_s(), metadata=(("authorization", f"Bearer {self._bearer(service)}"),)
        )
        try:
            message = await call
        except grpc.aio.AioRpcError as error:
            if never_sent(error):
                outside = service in _OUTSIDE
                addresses = [self._acquirer()] if outside else self._registered[service]()
                await self._refuse_unbelieved(addresses, "" if outside else server_name(service), outside=outside)
                raise Unavailable(
                    "SERVICE_UNAVAILABLE", f"the {service} service cannot be reached ({error.details()}); try again"
                ) from error
            if service == "faults" and error.code() is grpc.StatusCode.UNIMPLEMENTED:
                raise state.StackRefused(
                    "FAILPOINTS_OFF",
                    "the acquirer takes no faults: its stack was started without --failpoints; "
                    "start it with `countinghouse up --failpoints`",
                ) from error
            refusal = status.from_rpc_error(error)
            if _REPLAYED in tuple(error.trailing_metadata() or ()):
                refusal.metadata["replayed"] = "true"
            raise refusal from error
        trailers = await call.trailing_metadata() or ()
        return Reply(message, _REPLAYED in tuple(trailers))

    async def _stub(self, service: str) -> Any:
        if service in _OUTSIDE and service not in self._stubs:
            address = self._acquirer()
            channel = self.dialer(outside=True).open(address, ACQUIRER)
            self._resources.push_async_callback(channel.close)
            self._stubs[service] = _STUBS[service](channel)
        if service not in self._stubs:
            self._stubs[service] = _STUBS[service](await self.channel(service))
        return self._stubs[service]

    async def channel(self, service: str) -> DiscoveredChannel:
        """Find a service; return a channel to its instances, for as long as the client is open.

        Raises:
            StackRefused: STACK_NOT_RUNNING.
            Unavailable: ZOOKEEPER_UNAVAILABLE.
        """
        discovery = Discovery(await self.session())
        self._resources.push_async_callback(discovery.close)
        directory = await discovery.subscribe(INTERFACES[service], timeout_s=self._deadline.remaining_s())
        self._registered[service] = lambda: [each.address for each in directory.registered]
        dialer = self.dialer()
        discovered = DiscoveredChannel(
            directory,
            idempotency=idempotency,
            credentials=dialer.credentials,
            options=dialer.options(service),
            on_attempt=tracing.attempt_observer(),
        )
        self._resources.push_async_callback(discovered.close)
        return discovered

    def _acquirer(self) -> str:
        """Return the acquirer's address, from the environment or the running stack.

        Raises:
            StackRefused: STACK_NOT_RUNNING or NO_ACQUIRER.
        """
        address = os.environ.get(_ACQUIRER_VARIABLE) or state.require(self.connection.data).acquirer
        if not address:
            raise state.StackRefused("NO_ACQUIRER", f"this stack has no acquirer; {_ACQUIRER_VARIABLE} names one")
        return address

    def _to_be_asked_again(self, error: CountinghouseError, key: str, *, unanswered: bool) -> CountinghouseError:
        """Return `error` with how to ask again; as an unknown outcome if any try was not answered."""
        kind = OutcomeUnknown if unanswered else type(error)
        named = kind.__new__(kind)
        CountinghouseError.__init__(
            named,
            error.reason,
            f"{error.message.removesuffix('.')}. {self._repeat}",
            metadata={**error.metadata, "request_id": key},
            retry_after_ms=error.retry_after_ms,
            fields=error.fields,
        )
        self._repeat = ""
        return named

    def _tell_replayed(self, error: CountinghouseError, key: str) -> None:
        """Mark a stored refusal as stored: its reason held then, and may no longer hold."""
        whose, new = f"ticket {key}", "fetch a new ticket"
        if key == self._request_id:
            whose, new = f"--request-id {key}", "use a new id"
            error.metadata["request_id"] = key
        error.message = f"{error.message.removesuffix('.')}. This is the stored answer to {whose}; {new} to ask anew."

    def _bearer(self, service: str) -> str:
        """Return the token for a service. One of the house is never sent to the acquirer, nor the other way round."""
        outside = service in _OUTSIDE
        if outside not in self._tokens:
            principal = self.connection.principal or Principal(user_name(), self._role)
            ttl_s = min(int(self.connection.timeout_s) + _TOKEN_MARGIN_S, MAX_TTL_S[principal.role])
            self._tokens[outside] = mint(self.connection.data, principal, ttl_s, self._clock, outside=outside)
        if not _TOKEN.fullmatch(self._tokens[outside]):
            raise Unauthenticated(
                "TOKEN_INVALID", "the token has characters that no token has; take one from `countinghouse token`"
            )
        return self._tokens[outside]
