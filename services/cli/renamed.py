"""Options and commands that were renamed: an old spelling is a usage error that names the new one."""

from __future__ import annotations

from typing import Any, Final

import typer
from typer.core import TyperCommand, TyperGroup

_OPTIONS: Final = {
    "--at-once": "--parallel",
    "--fresh": "--random-seeds",
    "--guards": "--guards-off",
    "--some": "--sample",
    "--without": "--guards-off",
}
_COMMANDS: Final = {"seeds": "sweep"}


class RenamedOptions(TyperCommand):
    """A command that refuses the old spellings of its options."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        known = {option for parameter in self.params for option in parameter.opts}
        for word in args:
            old = word.partition("=")[0]
            new = _OPTIONS.get(old, "")
            if new in known and old not in known:
                raise typer.BadParameter(f"it is now {new}", ctx=ctx, param_hint=old)
        return super().parse_args(ctx, args)


class RenamedCommands(TyperGroup):
    """A group that refuses the old names of its commands."""

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name in _COMMANDS:
            raise typer.BadParameter(f"it is now {_COMMANDS[cmd_name]}", ctx=ctx, param_hint=cmd_name)
        return super().get_command(ctx, cmd_name)
