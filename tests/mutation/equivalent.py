"""Changes that make no difference, each with the reason: `equivalent.txt`."""

from __future__ import annotations

from pathlib import Path

_FILE = Path(__file__).with_name("equivalent.txt")


def read_equivalent(file: Path = _FILE) -> dict[str, str]:
    """The reason of each, by its mutant's name.

    A reason stands above the names it is of, which are indented by two spaces.

    Raises:
        ValueError: A name has no reason, or stands there twice.
    """
    found: dict[str, str] = {}
    reason: list[str] = []
    in_names = False
    for line in file.read_text().splitlines():
        if not line.strip():
            reason, in_names = [], False
        elif line.startswith("  "):
            if not reason or line.strip() in found:
                raise ValueError(f"without a reason, or twice: {line.strip()}")
            found[line.strip()] = " ".join(reason)
            in_names = True
        else:
            reason = [line.strip()] if in_names else [*reason, line.strip()]
            in_names = False
    return found
