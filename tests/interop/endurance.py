"""A Java consumer that stays: idle with pings, and calling without a pause while one instance after the other restarts.

Java Dubbo pings after a minute of silence; here after a second, so that a few seconds show what hours would. A server
with gRPC's defaults answers the third such ping with GOAWAY and hangs up.
"""

from __future__ import annotations

import asyncio
import signal
from typing import Final

from services.devstack.stack import Stack
from services.devstack.state import InstanceState
from services.kernel.principal import Role
from services.testkit.harness import open_client
from tests.interop.consumers import Wrong
from tests.interop.harness import CLERK, Harness
from tests.interop.languages import JAVA
from tests.interop.program import Program

_START_S = 30.0
_ANSWER_S = 15.0
_IDLE_S = 8.0
#: Java Dubbo follows a change in the registry at once, and further ones only so long after it. A rolling restart that
#: is faster leaves it calling who has gone.
_READS_EVERY_S = 5.0
#: More than gRPC's defaults tolerate, on each of two connections.
_PINGS: Final = 8
_INSTANCES: Final = ("payment-1", "payment-2")


async def run(harness: Harness) -> str:
    """Runs the part.

    Returns:
        What was shown.

    Raises:
        Wrong: A ping was punished, a call failed, or a restarted instance was not found again.
    """
    stack = await harness.ready(JAVA)
    async with open_client(stack, CLERK, Role.CASHIER) as client:
        payment = await client.settle_ok(await client.new_order())
    async with await harness.program(JAVA, "endurance", payment.payment_id) as program:
        await program.says("address", _START_S)  # said of each that has served it for the first time
        idle = await _idle(program)
        program.tell("begin")
        await program.says("address", _ANSWER_S)
        for name in _INSTANCES:
            await _restart(stack, name)
            await program.says("address", _ANSWER_S)  # a restarted instance has another port
            await asyncio.sleep(_READS_EVERY_S)
        calls, failed = (await program.ask("end", "ended", _ANSWER_S)).split()
        if failed != "0":
            raise Wrong(f"{failed} of {calls} calls failed while one instance after the other was restarted")
    return f"{idle}; {calls} reads while both payment instances were restarted in turn: 0 failed, both found again"


async def _idle(program: Program) -> str:
    """Lets it be silent, and looks what its pings brought."""
    await asyncio.sleep(_IDLE_S)
    pings, go_aways = (await program.ask("frames", "frames", _ANSWER_S)).split()
    if int(pings) < _PINGS:
        raise Wrong(f"it sent only {pings} pings in {_IDLE_S:g} s, so nothing was shown")
    if go_aways != "0":
        raise Wrong(f"its {pings} pings brought {go_aways} GOAWAY")
    return f"{_IDLE_S:g} s idle: {pings} pings, no GOAWAY"


async def _restart(stack: Stack, name: str) -> None:
    """Has an instance drain and end, and waits until it is back."""
    before = stack.instance(name)
    stack.kill(name, signal.SIGTERM)

    def back() -> bool:
        now = stack.instance(name)
        return now.restarts > before.restarts and now.state is InstanceState.SERVING

    try:
        await stack.wait_until(back, _START_S)
    except TimeoutError:
        raise Wrong(f"{name} is not back {_START_S:g} s after SIGTERM: {stack.instance(name).state}") from None
