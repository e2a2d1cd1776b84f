"""How one of our own programs is run: `python -m services.<service>.main` with `COUNTINGHOUSE_*` settings."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, Mapping

from services.devstack.child import Child, Command
from services.devstack.components.component import Context
from services.devstack.managed_process import ManagedProcess
from services.devstack.state import INTERFACES

#: A service drains for `drain_s` at most (`runtime/settings.py`), and takes up to three seconds besides.
_DRAIN_S, _MARGIN_S = 5.0, 4.0


def program(
    context: Context,
    name: str,
    service: str,
    own_settings: Mapping[str, object],
    ready: Callable[[Child], Awaitable[str]],
) -> ManagedProcess:
    """Return an instance of a service, not started yet; `ready` as `ManagedProcess` has it."""
    return ManagedProcess(
        context.supervision,
        name,
        service=service,
        interface=INTERFACES.get(service, ""),
        command=command(context, name, service, {**own_settings, **_certificates(context, name, service)}),
        ready=ready,
        grace_s=float(str(context.options.settings.get("drain_s", _DRAIN_S))) + _MARGIN_S,
    )


def _certificates(context: Context, name: str, service: str) -> dict[str, object]:
    keys = context.keys
    return {
        "ca_file": keys.ca_file(service),
        "identity_file": keys.certify(service, name),
        "outside_ca_file": keys.outside_ca_file(service),
        **({"zookeeper_user_file": keys.zookeeper_user(service)} if service in INTERFACES else {}),
    }


def command(context: Context, name: str, service: str, own_settings: Mapping[str, object], *arguments: str) -> Command:
    """Return the command of a service, with the settings of all and its own."""
    options = context.options
    settings = {
        "plaintext": options.plaintext,
        "zookeeper_plaintext": options.zookeeper_plaintext,
        "profile": context.environment.get("COUNTINGHOUSE_PROFILE", "development"),
        **options.settings,
        **own_settings,
        "instance": name,
        "verify_key_file": context.keys.verify_file(service),
        "revoked_file": context.keys.revoked_file,
        "token_folder": context.keys.issue(service),
        "failpoints": options.failpoints,
        **options.settings_of.get(name, {}),
    }
    environment = {
        **context.environment,
        "MALLOC_ARENA_MAX": "2",
        "GRPC_VERBOSITY": "NONE",
        **{f"COUNTINGHOUSE_{key.upper()}": str(value) for key, value in settings.items()},
        **options.environment_of.get(name, {}),
    }
    line = (sys.executable, "-P", "-m", f"services.{service}.main", *arguments)
    return Command(line, environment, context.data / "logs" / f"{name}.log")
