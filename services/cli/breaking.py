"""What the gateway of a stack on this machine may do to the stack's processes, and for whom."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import psutil

from services.devstack import state
from services.devstack.keys import revoked_file
from services.devstack.stack import ACQUIRER_INSTANCE, ZOOKEEPER
from services.kernel.clock import SystemClock
from services.kernel.errors import FailedPrecondition, NotFound, PermissionDenied
from services.kernel.principal import Role
from services.runtime.grpc.tokens import HOUSE, TokenVerifier
from services.runtime.grpc.trust import TrustFiles

_SIGNALS: Final = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP, "resume": signal.SIGCONT}


class StackProcesses:
    """See `gateway.breaking.Processes`. They are those that the stack's file names now.

    Args:
        data: The stack's directory.
    """

    def __init__(self, data: Path) -> None:
        self._data = data

    def listed(self) -> list[dict[str, Any]]:
        return [
            {"name": name, "service": service, "pid": pid, "state": _state_of(pid)}
            for name, (service, pid) in self._known().items()
        ]

    def act(self, name: str, action: str) -> None:
        known = self._known()
        if name not in known:
            raise NotFound("PROCESS_UNKNOWN", f"there is no process {name}; there are {', '.join(known)}")
        _, pid = known[name]
        with suppress(ProcessLookupError):
            if pid:
                os.kill(pid, _SIGNALS[action])
                return
        raise FailedPrecondition("PROCESS_GONE", f"{name} is not running at this moment; try again")

    def _known(self) -> dict[str, tuple[str, int]]:
        """Return the service and the process id of each, by name."""
        found = state.require(self._data)
        known = {each.name: (each.service, each.pid) for each in found.instances}
        if found.acquirer_pid:
            known[ACQUIRER_INSTANCE] = (state.ACQUIRER, found.acquirer_pid)
        if found.zookeeper_pid:
            known[ZOOKEEPER] = (ZOOKEEPER, found.zookeeper_pid)
        return known


class OperatorCheck:
    """Raises unless a header `Bearer …` is that of an operator of the stack.

    Args:
        data: The stack's directory, which has the keys that are believed.
    """

    def __init__(self, data: Path) -> None:
        trust = TrustFiles(data / "keys" / "verify.jwks", revoked_file(data))
        self._verifier = TokenVerifier(trust.current, HOUSE, SystemClock())

    async def __call__(self, authorization: str) -> None:
        principal = self._verifier.verify(authorization.removeprefix("Bearer ").strip())
        if principal.role is not Role.OPERATOR:
            raise PermissionDenied(
                "ROLE_NOT_ALLOWED", f"role {principal.role} may not do this; it is for: {Role.OPERATOR}"
            )


def _state_of(pid: int) -> str:
    try:
        stopped = psutil.Process(pid).status() == psutil.STATUS_STOPPED if pid else None
    except psutil.NoSuchProcess:
        stopped = None
    return "gone" if stopped is None else "stopped" if stopped else "running"
