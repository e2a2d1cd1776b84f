"""JSON to requests, and responses to JSON: protobuf's own mapping, with amounts as people write them besides.

    {"currencyCode": "CNY", "minorUnits": "1250", "amount": "12.50"}

A response has both forms of an amount. A request has one: `amount`, in major units, or `minorUnits`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NoReturn, TypeVar

from google.protobuf import json_format
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from services.kernel.currency import format_number
from services.kernel.errors import InvalidArgument
from services.kernel.json_input import parse_json_strictly
from services.kernel.money import parse_amount

_MONEY: Final = "countinghouse.type.v1.Money"
#: A descriptor of a message, of protobuf's compiled code or of its Python code, whose types have no common one.
_Kind = Any
_M = TypeVar("_M", bound=Message)


def parse_body(kind: type[_M], body: bytes) -> _M:
    """Return the request that a body holds.

    Raises:
        InvalidArgument: BODY_INVALID, or what is wrong with an amount.
    """
    document, message = parse_object(body), kind()
    _take_amounts(document, message.DESCRIPTOR, "")
    try:
        json_format.ParseDict(document, message)
    except (json_format.ParseError, ValueError, TypeError, RecursionError) as error:
        _refuse(f"the body is no {message.DESCRIPTOR.name}: {error}")
    return message


def parse_object(body: bytes) -> dict[str, Any]:
    """Return the object of JSON that a body holds; none is an empty one.

    Raises:
        InvalidArgument: BODY_INVALID.
    """
    try:
        document = parse_json_strictly(body or b"{}")
    except ValueError as error:
        _refuse(f"the body is no JSON: {error}")
    if not isinstance(document, dict):
        _refuse("the body is not a JSON object")
    return document


def parse_query(kind: type[_M], query: Sequence[tuple[str, str]]) -> _M:
    """Return the request that the parameters of a query hold, each a field of it.

    Raises:
        InvalidArgument: PARAMETER_INVALID.
    """
    message = kind()
    for name, text in query:
        field = _field(message.DESCRIPTOR, name)
        if field is None:
            known = ", ".join(each.json_name for each in message.DESCRIPTOR.fields if each.message_type is None)
            _refuse_parameter(name, f"there is no parameter {name!r} here; there are {known or 'none'}")
        if not field.is_repeated and [each for each, _ in query].count(name) > 1:
            _refuse_parameter(name, f"{name} is given more than once")
        value: Any = [*getattr(message, field.name), text] if field.is_repeated else text
        if field.type == FieldDescriptor.TYPE_BOOL:
            value = {"true": True, "false": False}.get(text, text)
        try:
            json_format.ParseDict({field.json_name: value}, message)
        except (json_format.ParseError, ValueError, TypeError):
            _refuse_parameter(name, f"{text[:40]!r} is not what {name} takes")
    return message


def fill_path(message: Message, values: Mapping[str, str]) -> None:
    """Set the fields that are in the path.

    Raises:
        InvalidArgument: PATH_MISMATCH: the body says otherwise.
    """
    for name, text in values.items():
        given = getattr(message, name)
        if given not in ("", text):
            raise InvalidArgument.of_field(
                "PATH_MISMATCH", name, f"{name} in the body differs from the one in the path; leave it out of the body"
            )
        setattr(message, name, text)


def to_json(message: Message) -> dict[str, Any]:
    """Return a message as JSON has it: every field but credentials, and amounts in both forms."""
    document: dict[str, Any] = json_format.MessageToDict(message, always_print_fields_with_no_presence=True)
    _complete(document, message.DESCRIPTOR)
    return document


def is_credential(field: FieldDescriptor) -> bool:
    """Return whether a field is marked in the proto (`debug_redact`) as one that no answer shows."""
    return bool(field.GetOptions().debug_redact)


def dumped(document: object) -> bytes:
    """Return the bytes of a JSON document."""
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()


def _take_amounts(document: dict[str, Any], kind: _Kind, place: str) -> None:
    """Turn amounts in major units into minor units."""
    for field, value, where in _messages_in(document, kind, place):
        if field.message_type.full_name != _MONEY:
            _take_amounts(value, field.message_type, where)
        elif "amount" in value:
            text, currency = value.pop("amount"), value.get("currencyCode", value.get("currency_code", ""))
            if "minorUnits" in value or "minor_units" in value:
                _refuse(f"{where} has both amount and minorUnits; give one of them")
            if not isinstance(text, str) or not isinstance(currency, str):
                _refuse(f'{where}.amount is text, like "12.50", and currencyCode is a code, like "CNY"')
            value["minorUnits"] = parse_amount(text, currency, f"{where}.amount")


def _complete(document: dict[str, Any], kind: _Kind) -> None:
    """Add the amounts in major units; take the credentials out."""
    for field in filter(is_credential, kind.fields):
        document.pop(field.json_name, None)
    for field, value, _ in _messages_in(document, kind, ""):
        if field.message_type.full_name == _MONEY:
            value["amount"] = format_number(int(value["minorUnits"]), value["currencyCode"])
        else:
            _complete(value, field.message_type)


def _messages_in(document: dict[str, Any], kind: _Kind, place: str) -> Iterable[tuple[Any, dict[str, Any], str]]:
    """Yield the objects in a document that are messages, each with its field and its place."""
    for name, value in list(document.items()):
        field = _field(kind, name)
        if field is None or field.message_type is None or field.message_type.GetOptions().map_entry:
            continue
        where = f"{place}.{field.name}" if place else field.name
        many = isinstance(value, list)
        for number, each in enumerate(value if many else [value]):
            if isinstance(each, dict):
                yield field, each, f"{where}[{number}]" if many else where


def _field(kind: _Kind, name: str) -> Any:
    return kind.fields_by_camelcase_name.get(name) or kind.fields_by_name.get(name)


def _refuse(why: str) -> NoReturn:
    raise InvalidArgument("BODY_INVALID", why)


def _refuse_parameter(name: str, why: str) -> NoReturn:
    raise InvalidArgument.of_field("PARAMETER_INVALID", name, why)
