"""A stack that another process runs, as its data directory describes it: for a harness that did not start it.

countinghouse up ──writes──▶ <data>/stack.json ◀──reads── AttachedStack ◀── Harness
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Final

import psutil

from coordination.session.security import Security
from services.devstack import dialers, state
from services.devstack.keys import mint
from services.devstack.stack import ACQUIRER_INSTANCE
from services.devstack.state import ACQUIRER, Instance, InstanceState, StackState
from services.kernel.clock import Clock, SystemClock
from services.kernel.errors import InvalidArgument
from services.kernel.principal import Principal, Role
from services.runtime.grpc.tls import Dialer
from services.runtime.grpc.tokens import MAX_TTL_S
from services.testkit.waiting import wait_until

_TTL_S: Final = 3600


class AttachedStack:
    """See the module. What it has in common with `devstack.Stack` is what a `Harness` needs.

    Args:
        data: The directory of the stack.

    Attributes:
        dialer: Returns what connects to its services, or with `outside=True` to its acquirer.
        zookeeper_security: Returns how a session of the operator comes to its ZooKeeper.

    Raises:
        StackRefused: STACK_NOT_RUNNING.
    """

    def __init__(self, data: Path, clock: Clock | None = None) -> None:
        found = state.require(data)
        self.data = data.absolute()
        self.dialer: Callable[..., Dialer] = partial(dialers.of_stack, self.data, plaintext=found.plaintext)
        self.zookeeper_security: Callable[[], Security] = partial(
            dialers.zookeeper_of_stack, self.data, plaintext=found.plaintext or found.zookeeper_plaintext
        )
        self._clock = clock or SystemClock()

    def describe(self) -> StackState:
        """Return the stack as it is now.

        Raises:
            StackRefused: STACK_NOT_RUNNING: it has stopped meanwhile.
        """
        return state.require(self.data)

    @property
    def zookeeper(self) -> str:
        """`host:port`."""
        return self.describe().zookeeper

    @property
    def zookeeper_pid(self) -> int:
        """Process of the stack's own ZooKeeper; 0 if it has none."""
        return self.describe().zookeeper_pid

    @property
    def acquirer(self) -> str:
        """`host:port` of the acquirer; empty: there is none."""
        return self.describe().acquirer

    @property
    def instances(self) -> tuple[Instance, ...]:
        """The services' processes as they are now."""
        return self.describe().instances

    def instance(self, name: str) -> Instance:
        """Return one of them, like `payment-1`; or the acquirer's, `acquirer-1`.

        Raises:
            InvalidArgument: INSTANCE_UNKNOWN.
        """
        found = self.describe()
        outside = Instance(ACQUIRER_INSTANCE, ACQUIRER, "", found.acquirer_pid, found.acquirer, InstanceState.SERVING)
        known = {each.name: each for each in (*found.instances, *([outside] if found.acquirer else []))}
        if name not in known:
            raise InvalidArgument("INSTANCE_UNKNOWN", f"there is no instance {name!r}; there are {', '.join(known)}")
        return known[name]

    def token(self, name: str, role: Role, ttl_s: int | None = None, *, outside: bool = False) -> str:
        """Return a token under which `name` acts as `role`: in the services, or outside at the acquirer.

        Args:
            ttl_s: None: an hour, or as long as the role allows.

        Raises:
            SigningKeyMissing: There is no key in the directory.
            PermissionDenied: CALLER_REVOKED.
        """
        life_s = min(_TTL_S, MAX_TTL_S[role]) if ttl_s is None else ttl_s
        return mint(self.data, Principal(name, role), life_s, self._clock, outside=outside)

    def kill(self, name: str, number: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal to an instance, if it has a process that the stack's supervisor has started."""
        pid, supervisor = self.instance(name).pid, self.describe().supervisor
        with suppress(psutil.NoSuchProcess, ProcessLookupError, ValueError):
            if pid and psutil.Process(pid).ppid() == supervisor:  # a number may have become another program's
                os.kill(pid, number)

    async def wait_serving(self, *names: str, timeout_s: float = 60.0) -> None:
        """Wait until these instances (none: all of the services) are SERVING. Raises NotBroughtAbout."""

        async def serving() -> bool:
            chosen = [self.instance(name) for name in names] or self.instances
            return all(each.state is InstanceState.SERVING for each in chosen)

        await wait_until(serving, f"{' and '.join(names) or 'the stack'} does not serve again", timeout_s)
