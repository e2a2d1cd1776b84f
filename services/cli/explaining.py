"""`countinghouse registry explain`: which instance would get a call about an order, and why each other one would not.

registered ──rules──▶ candidates ──reachable?──▶ ──picker──▶ chosen
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from coordination.channel.load import Load
from coordination.channel.load_balancing import Candidate, PickerName, Standing, by_name
from coordination.discovery import Consumer, Discovery, Eligibility
from coordination.registry import Endpoint
from services.cli import output
from services.cli.arguments import calling
from services.cli.client import Client
from services.devstack.readiness import UNREACHABLE, health
from services.devstack.state import INTERFACES
from services.kernel.clock import SystemClock
from services.kernel.ids import new_rng
from services.kernel.principal import Role

#: The consumer to which the rules apply: the command itself.
_APPLICATION = "countinghouse-cli"
_METHODS = {"payment": "Settle", "order": "GetOrder", "ledger": "Post"}
_HEALTH_TIMEOUT_S = 1.0


@dataclass(frozen=True, slots=True)
class Choice:
    """A picker's choice among candidates.

    Args:
        chosen: Address of the one it takes.
        reasons: By address, why that one, or why not.
    """

    chosen: str
    reasons: Mapping[str, str]


@calling(Role.AUDITOR)
async def explain(
    client: Client,
    order_id: Annotated[str, typer.Argument(metavar="ORDER", help="Order that the call is about.")],
    service: Annotated[str, typer.Option("--service", help="Service that is called.")] = "payment",
    method: Annotated[
        str,
        typer.Option("--method", help="Method that is called. [default: Settle, GetOrder, Post]", show_default=False),
    ] = "",
    tag: Annotated[str, typer.Option("--tag", help="The call's tag.", show_default=False)] = "",
    picker: Annotated[
        str,
        typer.Option("--picker", envvar="COUNTINGHOUSE_PICKER", help="Load balancing, as the services use it."),
    ] = "p2c",
) -> None:
    """Show which instance would get a call about an order, and why each other one would not.

    The order is not looked up: a call about one that does not exist is routed the same way. Only consistenthash depends
    on its id. The others draw anew for each call, so that one draw of many is shown, for a caller without another call
    under way.

    Example: countinghouse registry explain o1 --service payment --method Settle
    """
    interface = _one_of("service", service, INTERFACES)
    _one_of("picker", picker, {name.value: name for name in PickerName})
    method = method or _METHODS[service]
    discovery = Discovery(await client.session(), consumer=Consumer(_APPLICATION))
    try:
        directory = await discovery.subscribe(interface, timeout_s=client.remaining_s)
        verdicts = directory.eligibility(method, tag)
    finally:
        await discovery.close()
    asked = {verdict.address for verdict in verdicts if not verdict.why_not}
    health = await _health(client, asked, service, client.remaining_s)
    reachable = [verdict.endpoint for verdict in verdicts if verdict.endpoint and _is_reachable(verdict, health)]
    choice = _choice(picker, reachable, order_id) if reachable else Choice("", {})
    lines = [_line(verdict, health, choice) for verdict in verdicts]
    if client.as_json:
        call = {"order_id": order_id, "interface": interface, "method": method, "tag": tag, "picker": picker}
        output.print_json(call | {"list": directory.state.value, "chosen": choice.chosen, "providers": lines})
        return
    if not lines:
        output.print_line(f"no instance provides {interface}")
        return
    output.print_table(
        f"{interface}/{method}",
        ("", "address", "instance", "weight", "health", "why"),
        [
            (
                "▶" if line["chosen"] else "",
                line["address"],
                line["instance"],
                str(line["weight"]),
                line["health"],
                line["why"],
            )
            for line in lines
        ],
    )


def _choice(picker: str, reachable: Sequence[Endpoint], order_id: str) -> Choice:
    now_ms = SystemClock().now_ms()
    candidates = [Candidate(endpoint, endpoint.weight_at(now_ms), Load()) for endpoint in reachable]
    verdicts = by_name(picker, new_rng()).explain(candidates, order_id)
    chosen = next(verdict.address for verdict in verdicts if verdict.standing is Standing.CHOSEN)
    return Choice(chosen, {verdict.address: f"{verdict.standing}: {verdict.why}" for verdict in verdicts})


async def _health(client: Client, addresses: set[str], service: str, left_s: float) -> dict[str, str]:
    dialer, interface = client.dialer(), INTERFACES[service]
    ordered = sorted(addresses)
    timeout_s = min(_HEALTH_TIMEOUT_S, left_s)
    answers = await asyncio.gather(
        *(health(dialer, address, service, timeout_s, interface=interface) for address in ordered)
    )
    return dict(zip(ordered, answers, strict=True))


def _is_reachable(verdict: Eligibility, health: Mapping[str, str]) -> bool:
    return health.get(verdict.address, UNREACHABLE) != UNREACHABLE


def _line(verdict: Eligibility, health: Mapping[str, str], choice: Choice) -> dict[str, Any]:
    url = verdict.endpoint.url if verdict.endpoint else verdict.registration.url
    why = verdict.why_not or choice.reasons.get(verdict.key, "cannot be reached")
    changed_by = verdict.endpoint.changed_by if verdict.endpoint else {}
    if not verdict.why_not and "weight" in changed_by:
        why = f"{why}; weight by {changed_by['weight']}"
    return {
        "address": verdict.key or verdict.registration.name,
        "instance": url.parameters.get("instance", "") if url else "",
        "weight": verdict.endpoint.weight if verdict.endpoint else None,
        "health": health.get(verdict.address, ""),
        "chosen": bool(choice.chosen) and verdict.key == choice.chosen,
        "why": why,
    }


def _one_of(what: str, given: str, known: Mapping[str, Any]) -> Any:
    if given not in known:
        raise typer.BadParameter(f"{given} is no {what}; there is {', '.join(known)}", param_hint=f"--{what}")
    return known[given]
