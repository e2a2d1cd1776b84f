"""Passwords of database roles in files, in the form of PostgreSQL's ~/.pgpass: `host:port:database:role:password`.

A URL names such a file by `?passfile=…`, and asyncpg reads it for each new connection; mode 0600, or it is passed over.
Ours hold for every server and database. They have neither a colon nor a backslash, so nothing needs to be escaped.
"""

from __future__ import annotations


def passfile_line(role: str, password: str) -> str:
    """The line that tells a role's password."""
    return f"*:*:*:{role}:{password}\n"


def passwords_in(passfile: str) -> dict[str, str]:
    """The password of each role that a file names."""
    lines = [line.split(":") for line in passfile.splitlines() if line and not line.startswith("#")]
    return {parts[3]: parts[4] for parts in lines}
