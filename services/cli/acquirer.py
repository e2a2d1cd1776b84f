"""`countinghouse acquirer …`: the acquirer's own log, and the faults injected into it."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from typing import Annotated, Any

import typer

from countinghouse.acquirer.v1 import acquirer_pb2 as pb
from services.chaos.acquirer_log import record_of
from services.cli import output
from services.cli.arguments import Limit, Page, calling
from services.cli.client import Client
from services.kernel.principal import Role

app = typer.Typer(no_args_is_help=True, help="Show the acquirer's log, and inject faults into it.")

_LOG_PAGE = 500
_KINDS = ("drop-reply", "delay-before", "delay-after", "down", "notice-twice", "notice-lost")
#: `kind[:method][,times=N][,delay=MS][,subject=S]`
_FAULT = re.compile(
    r"(?P<kind>[a-z-]+)(:(?P<method>[A-Za-z]+))?(,times=(?P<times>\d{1,9}))?(,delay=(?P<delay_ms>\d{1,6}))?"
    r"(,subject=(?P<subject>[A-Za-z0-9_.:-]{1,64}))?"
)


@app.command("log")
@calling(Role.AUDITOR)
async def log(
    client: Client,
    key: Annotated[str, typer.Option("--key", help="Show only entries of this key.", show_default=False)] = "",
    limit: Limit = 50,
    page: Page = "",
    jsonl: Annotated[
        bool, typer.Option("--jsonl", help="Print all pages as JSON lines, as `check --acquirer-log` reads them.")
    ] = False,
) -> None:
    """List the acquirer's own log, newest first: every request as it was received, and every decision.

    --jsonl prints it oldest first.

    Example: countinghouse acquirer log --key pay_7d0q:1
    """
    if jsonl:
        if key or page:
            raise typer.BadParameter("--jsonl prints the whole log: --key and --page exclude it")
        await _print_lines(client)
        return
    request = pb.ListLogRequest(page_size=limit, page_token=page, key=key, newest_first=True)
    response = output.as_dict(await client.read_list("acquirer", "ListLog", request, "entries"))
    output.print_page(
        client.as_json,
        response,
        "the acquirer's log",
        ("number", "at", "method", "key", "decision", "amount", "card", "reference"),
        [
            (
                str(entry["number"]),
                output.moment(entry["at_ms"]),
                entry["method"],
                entry["key"],
                entry["word"],
                output.money(entry["amount"]),
                entry["card"],
                entry["reference"],
            )
            for entry in response["entries"]
        ],
    )


async def _print_lines(client: Client) -> None:
    """Print the whole log, an entry a line."""
    page = ""
    while True:
        request = pb.ListLogRequest(page_size=_LOG_PAGE, page_token=page)
        response = await client.read("acquirer", "ListLog", request)
        for entry in response.entries:
            print(json.dumps(asdict(record_of(entry))))
        page = response.next_page_token
        if not page:
            return


@app.command("faults")
@calling(Role.OPERATOR)
async def faults(
    client: Client,
    wanted: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KIND[:METHOD][,times=N][,delay=MS][,subject=S]",
            help=f"Fault to inject; repeatable, replaces those that are set. Kinds: {', '.join(_KINDS)}.",
            show_default=False,
        ),
    ] = None,
    clear: Annotated[bool, typer.Option("--clear", help="Remove all faults.")] = False,
) -> None:
    """Show or set the faults of the acquirer of a stack that was started with --failpoints.

    `times` counts for each key; a subject is a key, a payment id or a card.

    Example: countinghouse acquirer faults --set drop-reply:Charge,times=1
    """
    if clear and wanted:
        raise typer.BadParameter("--set and --clear exclude each other")
    if clear or wanted:
        request = pb.SetFaultsRequest(faults=[_fault(part) for part in wanted or ()])
        response = (await client.change("faults", "SetFaults", request, "faults")).message
    else:
        response = await client.read("faults", "GetFaults", pb.GetFaultsRequest())
    document = output.as_dict(response)
    if client.as_json:
        output.print_json(document)
        return
    output.print_table(
        "faults",
        ("kind", "method", "times", "delay ms", "subject"),
        [
            (
                output.short(fault["kind"], "FAULT_KIND_").lower().replace("_", "-"),
                fault["method"] or "all",
                str(fault["times"] or "always"),
                str(fault["delay_ms"] or ""),
                fault["subject"] or "all",
            )
            for fault in document["faults"]
        ],
    )


def _fault(text: str) -> Any:
    found = _FAULT.fullmatch(text)
    if found is None or found["kind"] not in _KINDS:
        raise typer.BadParameter(
            f"{text!r} is not like drop-reply:Charge,times=1; the kinds are {', '.join(_KINDS)}", param_hint="--set"
        )
    return pb.Fault(
        kind=pb.FaultKind.Value(f"FAULT_KIND_{found['kind'].upper().replace('-', '_')}"),
        method=found["method"] or "",
        times=int(found["times"] or 0),
        delay_ms=int(found["delay_ms"] or 0),
        subject=found["subject"] or "",
    )
