"""The acquirer as the payment service meets it: the fake, and a real process on SQLite and PostgreSQL."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest

from countinghouse.acquirer.v1 import acquirer_pb2 as pb
from countinghouse.acquirer.v1.acquirer_pb2_grpc import AcquirerServiceStub, FaultServiceStub
from services.devstack.readiness import SERVING, health
from services.devstack.state import ACQUIRER
from services.kernel.clock import CallDeadline, SystemClock
from services.kernel.errors import OutcomeUnknown
from services.kernel.principal import Principal, Role
from services.payment.peers import AcquirerPeer
from services.payment.ports import Acquirer, KeyState
from services.runtime.grpc.tls import Dialer
from services.runtime.grpc.tokens import TokenSigner
from tests.contract.payment.acquirer_contract import AMOUNT, AcquirerContract, fresh
from tests.fakes.payment_acquirer import FakeAcquirer
from tests.tokens import write_key_set

_READY_S = 20.0
_TIMEOUT_S = 3.0


@dataclass(frozen=True, slots=True)
class Running:
    """A real acquirer."""

    address: str
    service_token: str
    operator_token: str

    def peer(self, channel: grpc.aio.Channel, *, timeout_s: float = _TIMEOUT_S) -> AcquirerPeer:
        """It, as the payment service sees it."""
        return AcquirerPeer(
            lambda: AcquirerServiceStub(channel),
            token=lambda: self.service_token,
            timeout_s=timeout_s,
            notify_address=lambda: "",
        )


class TestFakeAcquirer(AcquirerContract):
    """The suite on the fake."""

    @pytest.fixture
    def acquirer(self) -> Acquirer:
        return FakeAcquirer(SystemClock())


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def running(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """One process for all tests of this module, on each kind of database."""
    folder = tmp_path_factory.mktemp("acquirer")
    url = f"sqlite:///{folder / 'acquirer.db'}"
    if request.param == "postgresql":
        url = asyncio.run(request.getfixturevalue("postgres_server").create())
    signer = TokenSigner.from_file(folder / "signing.key", SystemClock())
    write_key_set(folder, signer)
    token = signer.sign(Principal("payment-service", Role.SERVICE), 900, ACQUIRER)
    (folder / "payment.token").write_text("of no use: no merchant is told")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    process = start(folder, url, port)
    address = f"127.0.0.1:{port}"
    try:
        asyncio.run(until_serving(address, process))
        yield Running(address, token, signer.sign(Principal("ops", Role.OPERATOR), 3600, ACQUIRER))
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=15) == 0


def start(folder: Path, url: str, port: int) -> subprocess.Popen[bytes]:
    """The program itself."""
    settings = {
        "DATABASE_URL": url,
        "LISTEN_PORT": str(port),
        "PROFILE": "development",
        "PLAINTEXT": "true",
        "VERIFY_KEY_FILE": str(folder / "verify.jwks"),
        "TOKEN_FOLDER": str(folder),
        "FAILPOINTS": "true",
        "DRAIN_S": "1",
    }
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COUNTINGHOUSE_")}
    with (folder / "log").open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "services.acquirer.main"],
            env=environment | {f"COUNTINGHOUSE_{name}": value for name, value in settings.items()},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )


async def until_serving(address: str, process: subprocess.Popen[bytes]) -> None:
    """Waits until it answers; fails if it ends."""
    async with asyncio.timeout(_READY_S):
        while await health(Dialer(None), address, ACQUIRER) != SERVING:
            assert process.poll() is None, "it ended while it started"
            await asyncio.sleep(0.05)


class TestRealAcquirer(AcquirerContract):
    """The suite on the process, through the payment service's own peer."""

    @pytest.fixture
    async def channel(self, running: Running) -> AsyncIterator[grpc.aio.Channel]:
        async with grpc.aio.insecure_channel(running.address) as channel:
            yield channel

    @pytest.fixture
    def acquirer(self, running: Running, channel: grpc.aio.Channel) -> Acquirer:
        return running.peer(channel)

    async def set_faults(self, running: Running, channel: grpc.aio.Channel, *faults: pb.Fault) -> None:
        stub: Any = FaultServiceStub(channel)
        request = pb.SetFaultsRequest(faults=faults)
        await stub.SetFaults(request, timeout=5, metadata=(("authorization", f"Bearer {running.operator_token}"),))

    async def test_charge_with_a_lost_reply_is_found_by_its_key(
        self, running: Running, channel: grpc.aio.Channel
    ) -> None:
        """The outcome is unknown when the timeout ends; the charge stands, and asking again finds it."""
        acquirer = running.peer(channel, timeout_s=0.5)
        key = fresh(acquirer)
        fault = pb.Fault(kind=pb.FAULT_KIND_DROP_REPLY, method="Charge", times=1, subject=key.payment.acquirer_key)
        await self.set_faults(running, channel, fault)
        with pytest.raises(OutcomeUnknown) as unknown:
            await key.charge()
        assert unknown.value.reason == "ACQUIRER_SILENT"
        assert await key.query() == await key.charge() == key.says(KeyState.CHARGED)

    async def test_refusal_of_a_closed_acquirer_leaves_the_outcome_unknown(
        self, running: Running, channel: grpc.aio.Channel
    ) -> None:
        """It says that it did nothing; an outside bank may be wrong about that, so nobody knows."""
        acquirer = running.peer(channel)
        key = fresh(acquirer)
        fault = pb.Fault(kind=pb.FAULT_KIND_DOWN, times=3, subject=key.payment.acquirer_key)
        await self.set_faults(running, channel, fault)
        for ask in (key.charge, key.query, key.reverse):
            with pytest.raises(OutcomeUnknown) as unknown:
                await ask()
            assert unknown.value.reason == "ACQUIRER_DOWN"
        assert (await key.charge()).state is KeyState.CHARGED

    async def test_unreachable_acquirer_leaves_the_outcome_unknown(self, running: Running) -> None:
        """A bank that cannot be reached is as silent as one that does not answer."""
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            with pytest.raises(OutcomeUnknown):
                await fresh(running.peer(channel)).charge()

    async def test_charge_with_too_little_time_is_not_sent(self, running: Running, channel: grpc.aio.Channel) -> None:
        """The acquirer is not asked, and the outcome is unknown: a query finds nothing."""
        acquirer = running.peer(channel)
        key = fresh(acquirer)
        deadline = CallDeadline.after(0.2, SystemClock())
        with pytest.raises(OutcomeUnknown) as unknown:
            await acquirer.charge(key.payment.acquirer_key, key.payment, AMOUNT, deadline)
        assert unknown.value.reason == "DEADLINE_TOO_SHORT"
        assert (await key.query()).state is KeyState.UNSEEN

    async def test_charge_with_an_invalid_token_has_an_unknown_outcome(
        self, running: Running, channel: grpc.aio.Channel
    ) -> None:
        """Without a token of the merchant's; for the merchant that is silence as well."""
        stranger = AcquirerPeer(
            lambda: AcquirerServiceStub(channel), token=lambda: "nonsense", timeout_s=1, notify_address=lambda: ""
        )
        with pytest.raises(OutcomeUnknown) as unknown:
            await fresh(stranger).charge()
        assert unknown.value.reason == "TOKEN_INVALID"


async def test_missing_acquirer_leaves_the_outcome_unknown() -> None:
    """It says so, and stays silent about payments that were begun when there was one."""
    absent = AcquirerPeer(None, token=lambda: "", timeout_s=1, notify_address=lambda: "")
    assert not absent.present
    with pytest.raises(OutcomeUnknown):
        await fresh(absent).reverse()
