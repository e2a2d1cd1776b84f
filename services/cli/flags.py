"""Fields of requests, named by the flags of the command that was typed.

A server's refusal names the fields of its protos, `customer_id` or `amount.currency_code`. A caller who typed
`--customer` and `--currency` looks for those. `calling` puts every refusal through `told_by_flags`.
"""

from __future__ import annotations

import re
from typing import Final

import typer

from services.cli.exit_codes import WrongUsage
from services.kernel.errors import CountinghouseError, InvalidArgument

#: Parameters of commands by the field that they are sent in, where it is not the field's name without `_id`.
_PARAMETERS: Final = {
    "currency_code": "currency",
    "description": "line",
    "expected_version": "version",
    "faults": "wanted",
    "from_sequence": "first",
    "lines": "line",
    "minor_units": "amount",
    "overdraft_limit": "overdraft",
    "page_size": "limit",
    "page_token": "page",
    "payee_account_id": "payee",
    "quantity": "line",
    "to_sequence": "last",
    "ttl_s": "ttl",
}
#: Names of fields that no sentence has as words of its own, like `customer_id`; no part of an id, a path, an address.
_FIELD = re.compile(r"(?<![\w.:/@-])[a-z]+(?:_[a-z]+)+(?![\w:/@-]|\.\w)")


def told_by_flags(error: CountinghouseError, context: typer.Context) -> CountinghouseError:
    """Return the refusal of a field that has a flag in the words of the command line, as wrong usage.

    Any other refusal stays as it is: its sentence may hold an id or a path that was typed.
    """
    flag = next((flag for field, _ in error.fields if (flag := _flag(field, context))), "")
    if not isinstance(error, InvalidArgument) or not flag:
        return error
    message = error.message
    for field, _ in error.fields:
        message = re.sub(rf"^{re.escape(field)}(?= )", _flag(field, context) or field, message)
    message = _FIELD.sub(lambda found: _flag(found[0], context) or found[0], message)
    if flag not in message:
        message = f"{flag}: {message}"
    return WrongUsage(error.reason, message, metadata=error.metadata, fields=error.fields)


def _flag(field: str, context: typer.Context) -> str:
    """Return the option or argument of a field, as it was typed; empty: the command has none."""
    *parents, last = re.sub(r"\[\d+\]", "", field).split(".")
    known = {parameter.name: parameter for parameter in context.command.params}
    for part in ("lines",) if "lines" in parents else (last, *parents):
        for name in (_PARAMETERS.get(part, part), part.removesuffix("_id")):
            parameter = known.get(name if context.params.get(f"{name}_minor") is None else f"{name}_minor")
            if parameter is not None:
                return parameter.opts[0] if parameter.param_type_name == "option" else str(parameter.metavar)
    return ""
