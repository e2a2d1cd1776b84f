"""`countinghouse locks`: who holds which bill, and who waits."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from services.cli import output
from services.cli.arguments import calling
from services.kernel.principal import Role

if TYPE_CHECKING:
    from services.cli.client import Client


@calling(Role.AUDITOR)
async def locks(client: Client) -> None:
    """Shows the queue of every bill that somebody is settling now.

    Example: countinghouse locks
    """
    from coordination.lock import OrderLocks  # noqa: PLC0415  `--help` does without

    queues = await OrderLocks(await client.session()).queues(timeout_s=client.remaining_s)
    if client.as_json:
        output.print_json(
            {
                "queues": [
                    {
                        "order_id": order_id,
                        "queue": [
                            {"position": place.position, "token": place.token, **asdict(place.holder)}
                            for place in places
                        ],
                    }
                    for order_id, places in queues.items()
                ]
            }
        )
        return
    if not queues:
        print("nobody is settling a bill at this moment")
        return
    output.print_table(
        "locks",
        ("order", "", "clerk", "role", "instance", "payment", "since"),
        [
            (
                order_id,
                "holds" if place.position == 0 else f"waits, {place.position} ahead",
                place.holder.clerk,
                place.holder.role,
                place.holder.instance,
                place.holder.payment,
                output.moment(place.holder.since_ms),
            )
            for order_id, places in queues.items()
            for place in places
        ],
    )
