"""`countinghouse registry explain`: who would get a call about an order, and why each of the others would not.

registered ──rules──▶ candidates ──reachable?──▶ ──picker──▶ chosen
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from services.cli import output
from services.cli.arguments import calling
from services.devstack.state import INTERFACES
from services.kernel.clock import SystemClock
from services.kernel.errors import InvalidArgument
from services.kernel.principal import Role

if TYPE_CHECKING:
    from coordination.discovery import Verdict
    from coordination.endpoint import Endpoint
    from services.cli.client import Client

#: As who the rules are asked: the command itself is the consumer.
_APPLICATION = "countinghouse-cli"
_METHODS = {"payment": "Settle", "order": "GetOrder", "ledger": "Post"}
_HEALTH_TIMEOUT_S = 1.0


@dataclass(frozen=True, slots=True)
class Choice:
    """What a picker says of candidates.

    Args:
        chosen: Address of the one it would take; empty if that is left to chance.
        reasons: By address, why that one, or why not.
    """

    chosen: str
    reasons: Mapping[str, str]


Explain = Callable[["Sequence[Endpoint]", str], Choice]
"""Given candidates that can be reached and the order's id, says whom it would take."""


def _by_weight(endpoints: Sequence[Endpoint], key: str) -> Choice:
    """Each by its share; with one of them there is nothing left to chance."""
    del key
    now_ms = SystemClock().now_ms()
    weights = {endpoint.address: endpoint.weight_at(now_ms) for endpoint in endpoints}
    if not any(weights.values()):
        weights = dict.fromkeys(weights, 1)
    total = sum(weights.values())
    (chosen, *others) = sorted((address for address, weight in weights.items() if weight), key=str) or [""]
    return Choice(
        "" if others else chosen,
        {address: f"gets {weight / total:.0%} of the calls" for address, weight in weights.items()},
    )


PICKERS: Mapping[str, Explain] = {"random": _by_weight}


@calling(Role.AUDITOR)
async def explain(
    client: Client,
    order_id: Annotated[str, typer.Argument(metavar="ORDER", help="Which bill the call is about.")],
    service: Annotated[str, typer.Option("--service", help="Which service is called.")] = "payment",
    method: Annotated[
        str, typer.Option("--method", help="Which method. [default: Settle, GetOrder, Post]", show_default=False)
    ] = "",
    tag: Annotated[str, typer.Option("--tag", help="The call's tag.", show_default=False)] = "",
    picker: Annotated[str, typer.Option("--picker", help="How one of several is chosen.")] = "random",
) -> None:
    """Says which instance would get a call about a bill, and why each other one would not.

    Example: countinghouse registry explain o1 --service payment --method Settle
    """
    from coordination.discovery import Consumer, Discovery  # noqa: PLC0415  `--help` does without

    interface = _one_of("service", service, INTERFACES)
    explained_by = _one_of("picker", picker, PICKERS)
    method = method or _METHODS[service]
    discovery = Discovery(await client.session(), consumer=Consumer(_APPLICATION))
    try:
        directory = await discovery.subscribe(interface, timeout_s=client.remaining_s)
        verdicts = directory.verdicts(method, tag)
    finally:
        await discovery.close()
    health = await _health({verdict.address for verdict in verdicts if not verdict.why_not}, client.remaining_s)
    reachable = [verdict.endpoint for verdict in verdicts if verdict.endpoint and _is_reachable(verdict, health)]
    choice = explained_by(reachable, order_id) if reachable else Choice("", {})
    lines = [_line(verdict, health, choice) for verdict in verdicts]
    if client.as_json:
        call = {"order_id": order_id, "interface": interface, "method": method, "tag": tag, "picker": picker}
        output.print_json(call | {"list": directory.state.value, "chosen": choice.chosen, "providers": lines})
        return
    if not lines:
        print(f"nobody provides {interface}")
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


async def _health(addresses: set[str], left_s: float) -> dict[str, str]:
    from services.devstack.readiness import health  # noqa: PLC0415

    ordered = sorted(addresses)
    timeout_s = min(_HEALTH_TIMEOUT_S, left_s)
    return dict(zip(ordered, await asyncio.gather(*(health(one, timeout_s) for one in ordered)), strict=True))


def _is_reachable(verdict: Verdict, health: Mapping[str, str]) -> bool:
    from services.devstack.readiness import UNREACHABLE  # noqa: PLC0415

    return health.get(verdict.address, UNREACHABLE) != UNREACHABLE


def _line(verdict: Verdict, health: Mapping[str, str], choice: Choice) -> dict[str, Any]:
    url = verdict.endpoint.url if verdict.endpoint else verdict.registration.url
    why = verdict.why_not or choice.reasons.get(verdict.address, "cannot be reached")
    changed_by = verdict.endpoint.changed_by if verdict.endpoint else {}
    if not verdict.why_not and "weight" in changed_by:
        why = f"{why}; weight by {changed_by['weight']}"
    return {
        "address": verdict.address or verdict.registration.name,
        "instance": url.parameters.get("instance", "") if url else "",
        "weight": verdict.endpoint.weight if verdict.endpoint else None,
        "health": health.get(verdict.address, ""),
        "chosen": bool(choice.chosen) and verdict.address == choice.chosen,
        "why": why,
    }


def _one_of(what: str, given: str, known: Mapping[str, Any]) -> Any:
    if given not in known:
        raise InvalidArgument(f"{what.upper()}_UNKNOWN", f"{given} is no {what}; there is {', '.join(known)}")
    return known[given]
