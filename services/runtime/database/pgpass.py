"""The PostgreSQL roles of a service, and their passwords in files of the form of ~/.pgpass.

A URL names such a file by `?passfile=…`, and asyncpg reads it for each new connection; mode 0600, or it is passed over.
A line of ours, `*:*:*:role:password`, holds for every server and database. Names and passwords have neither a colon nor
a backslash, so nothing needs to be escaped. What each role may do is said in `runtime/database/postgres_roles.py`.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Roles:
    """The names of one service's roles, and of its database."""

    house: str
    service: str

    @property
    def database(self) -> str:
        """The service's database."""
        return f"{self.house}_{self.service}"

    @property
    def user(self) -> str:
        """Under which the service works."""
        return f"{self.house}_{self.service}"

    @property
    def owner(self) -> str:
        """Under which its schema is changed."""
        return f"{self.house}_{self.service}_owner"

    @property
    def checker(self) -> str:
        """Who reads the databases of all services of the house."""
        return f"{self.house}_checker"


def passfile_line(role: str, password: str) -> str:
    """Return the line that holds a role's password."""
    return f"*:*:*:{role}:{password}\n"


def passwords_in(passfile: str) -> dict[str, str]:
    """Return the password of each role that a file names."""
    lines = [line.split(":") for line in passfile.splitlines() if line and not line.startswith("#")]
    return {parts[3]: parts[4] for parts in lines}
