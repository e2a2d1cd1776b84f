"""Reading of JSON that others wrote."""

from __future__ import annotations

import json
from typing import Any


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
