"""Quoting of untrusted text in messages: escaped, and never longer than a line; and what makes it fit to be sent."""

from __future__ import annotations

from collections.abc import Mapping

MAX_CHARACTERS = 60
MAX_ORIGIN_CHARACTERS = 200


def quoted(value: object) -> str:
    """Return `value` in quotes for a message, with what is not printable escaped.

    Text is cut after `MAX_CHARACTERS`; of a mapping or a list only the kind is shown, since rendering one takes as long
    as it is large.
    """
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, list | tuple | set):
        return "a list"
    text = value if isinstance(value, str) else str(value)
    return repr(text) if len(text) <= MAX_CHARACTERS else f"{text[:MAX_CHARACTERS]!r}… ({len(text)} characters)"


def escaped(origin: str) -> str:
    """Return where something stands, for a message: without quotes, escaped, cut after `MAX_ORIGIN_CHARACTERS`."""
    return repr(origin[:MAX_ORIGIN_CHARACTERS])[1:-1]


def well_formed(text: str) -> str:
    r"""Return `text` as UTF-8 can carry it: a lone surrogate, which JSON may hold, becomes its escape, `\ud800`."""
    return text.encode("utf-8", "backslashreplace").decode()
