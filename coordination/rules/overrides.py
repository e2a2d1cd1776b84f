"""An operator's override of one provider, written where Dubbo keeps it: in the YAML of a service's configurators.

    configs:
    - side: consumer
      addresses: [0.0.0.0]                     ◀── an entry of ours: for every consumer, about one provider,
      providerAddresses: ['10.0.0.5:50051']        and nothing else
      parameters: {weight: 20}

It is an entry for the consumers' side, since that has effect on providers of every language, also those that do not
listen to rules. It says v2.7, which readers of 2.7 and of 3.x take alike (a v3.0 entry without `match` makes dubbo-go's
consumers fail).

Invariants
1. Entries of other writers, and their parameters in an entry like ours, stay as they are. (Comments do not: YAML is
   parsed and written anew.)
2. A change is conditional on the node's version: of two at once none is lost.
3. A rule that cannot be read, is switched off, or is about something else is not touched: OverrideRefused.
4. An entry without parameters is removed, and so is a node without entries.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml
from kazoo.exceptions import BadVersionError, NodeExistsError, NoNodeError

from coordination.deadline import Deadline
from coordination.errors import BadRule, Unavailable
from coordination.registry.registration import DEFAULT_ROOT
from coordination.registry.service_key import Service
from coordination.rules import configurators
from coordination.rules.document import RuleDocument, load
from coordination.rules.patterns import ANY_HOST
from coordination.rules.rule_watcher import config_path
from coordination.session.session import Session

VERSION = "v2.7"

#: Parameters to set; None takes one out.
Changes = Mapping[str, int | bool | None]


class _PlainDumper(yaml.SafeDumper):
    """Writes every value out: readers refuse aliases."""

    def ignore_aliases(self, _data: object) -> bool:
        return True


class OverrideRefused(BadRule):
    """The existing rule cannot be written into; the message says why."""


@dataclass(frozen=True, slots=True)
class Override:
    """An entry like ours."""

    service: Service
    address: str
    parameters: Mapping[str, Any]


class Overrides:
    """Reads and changes overrides of single providers.

    Args:
        session: a started session.
        root: Dubbo's root.
    """

    def __init__(self, session: Session, root: str = DEFAULT_ROOT) -> None:
        self._session = session
        self._root = root

    def path(self, service: Service) -> str:
        """Return the node in which a service's overrides stand."""
        return config_path(self._root, service.rule_key, configurators.KIND)

    async def change(self, service: Service, address: str, changes: Changes, *, timeout_s: float = 5.0) -> bool:
        """Change the overrides of one provider (``host:port``) of a service.

        Returns:
            True if something was written; False if nothing had to be changed.

        Raises:
            OverrideRefused: the rule there cannot be written into.
            Unavailable: ZooKeeper is away, or other writers kept changing the node until the deadline.
        """
        deadline = Deadline.after(timeout_s)
        path = self.path(service)
        while not deadline.expired():
            left_s = deadline.remaining_s() or 0.0
            try:
                data, stat = await self._session.get(path, timeout_s=left_s)
                before, version = _decoded(data, path), stat.version
            except NoNodeError:
                before, version = "", -1
            after = edited(before, service, address, changes)
            if after == before:
                return False
            try:
                await self._write(path, after, version, left_s)
            except (BadVersionError, NodeExistsError, NoNodeError):
                continue  # another writer was quicker: edit what is there now
            return True
        raise Unavailable(f"other writers kept changing {path}")

    async def ls(self, *, timeout_s: float = 5.0) -> list[Override]:
        """Return the overrides of all services. Rules that cannot be read are left out.

        Raises:
            Unavailable: ZooKeeper is away.
        """
        deadline = Deadline.after(timeout_s)
        folder, suffix = config_path(self._root, "", "").rpartition("/")[0], f".{configurators.KIND}"
        found: list[Override] = []
        try:
            names = await self._session.get_children(folder, timeout_s=timeout_s)
        except NoNodeError:
            return found
        for name in sorted(name for name in names if name.endswith(suffix)):
            try:
                data, _ = await self._session.get(f"{folder}/{name}", timeout_s=deadline.remaining_s() or 0.0)
                found += read(_decoded(data, name), Service.parse(name.removesuffix(suffix)))
            except (NoNodeError, OverrideRefused):
                continue
        return found

    async def _write(self, path: str, text: str, version: int, timeout_s: float) -> None:
        if not text:
            await self._session.delete(path, version=version, timeout_s=timeout_s)
        elif version >= 0:
            await self._session.set(path, text.encode(), version=version, timeout_s=timeout_s)
        else:
            await self._session.ensure_path(path.rpartition("/")[0], timeout_s=timeout_s)
            await self._session.create(path, text.encode(), timeout_s=timeout_s)


def edited(text: str, service: Service, address: str, changes: Changes) -> str:
    """Return a rule's YAML with the changes made in our entry for one provider; "" if nothing is left of it.

    The same text comes back if nothing had to be changed.

    Args:
        text: the rule as it stands; blank if there is none.

    Raises:
        OverrideRefused: it cannot be written into.
    """
    rule = _rule(text, service)
    wanted = {key: value for key, value in changes.items() if value is not None}
    if wanted and not RuleDocument(rule, str(service)).flag("enabled", True):
        raise OverrideRefused(f"the rule of {service} is switched off (enabled: false): nothing in it has any effect")
    entries: list[Any] = rule["configs"]
    entry = next((entry for entry in entries if _is_about(entry, address)), None)
    before = {} if entry is None else entry["parameters"]
    parameters = {key: value for key, value in before.items() if key not in changes or changes[key] is not None}
    parameters |= wanted
    if parameters == before:
        return text
    if entry is None:
        entries.append(
            {"side": "consumer", "addresses": [ANY_HOST], "providerAddresses": [address], "parameters": parameters}
        )
    elif parameters:
        entry["parameters"] = parameters
    else:
        entries.remove(entry)
    if not entries and rule.keys() <= _new_rule(service).keys():
        return ""
    return yaml.dump(rule, Dumper=_PlainDumper, sort_keys=False, allow_unicode=True)


def read(text: str, service: Service) -> list[Override]:
    """Return the entries like ours in a rule's YAML.

    Raises:
        OverrideRefused: it is not a rule of this service.
    """
    return [
        Override(service, entry["providerAddresses"][0], entry["parameters"])
        for entry in _rule(text, service)["configs"]
        if _is_about(entry, "")
    ]


def _new_rule(service: Service) -> dict[str, Any]:
    return {"configVersion": VERSION, "scope": "service", "key": str(service), "enabled": True, "configs": []}


def _rule(text: str, service: Service) -> dict[str, Any]:
    """Return what a rule's YAML says, `configs` included, or a new one.

    Raises:
        OverrideRefused: it cannot be read, or it is not about this service.
    """
    if not text.strip():
        return _new_rule(service)
    try:
        configurators.parse_configurators(text, service.rule_key)
        rule = load(text, str(service))
    except BadRule as error:
        raise OverrideRefused(f"the existing rule cannot be read ({error}); repair it first") from error
    if not isinstance(rule, dict):
        raise OverrideRefused(f"the rule of {service} is a list of URLs, as 2.6 wrote them; it is not written into")
    key = RuleDocument(rule, str(service)).text("key", str(service))
    if rule.get("scope") == "application" or Service.parse(key) != service:
        raise OverrideRefused(f"the rule at {service.rule_key} is about {key}, not {service}; it is not written into")
    rule["configs"] = rule.get("configs") or []
    return rule


def _is_about(entry: Any, address: str) -> bool:
    """Tell whether an entry is like ours: for all consumers, about exactly this provider ("" for any)."""
    if not entry.keys() <= {"side", "addresses", "providerAddresses", "parameters", "enabled"}:
        return False
    providers = entry.get("providerAddresses") or []
    return (
        entry.get("side") == "consumer"
        and entry.get("enabled", True) is True
        and (entry.get("addresses") or [ANY_HOST]) == [ANY_HOST]
        and len(providers) == 1
        and address in ("", str(providers[0]))
    )


def _decoded(data: bytes, path: str) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise OverrideRefused(f"{path} is not UTF-8; it is not written into") from error
