"""Reading of JSON that others wrote."""

from __future__ import annotations

import json
from typing import Any, NoReturn


def parse_json(document: str | bytes) -> Any:
    """Return what a JSON document holds.

    Raises:
        ValueError: It is none, or it is nested more deeply than the parser can follow, for which `json.loads` raises
            RecursionError.
    """
    try:
        return json.loads(document)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def parse_json_strictly(document: bytes) -> Any:
    """Return what a JSON document holds that a stranger sent.

    Raises:
        ValueError: It is none, in UTF-8; it is nested too deeply, has a key twice, or NaN or Infinity, which RFC 8259
            has not.
    """
    try:
        return json.loads(document.decode(), object_pairs_hook=_without_duplicates, parse_constant=_refuse_constant)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("it has a key twice")
    return found


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")
