"""Who is calling, as a verified token says."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Role(StrEnum):
    """What somebody is to the counting house."""

    CUSTOMER = "customer"
    CASHIER = "cashier"
    ACCOUNTANT = "accountant"
    AUDITOR = "auditor"
    OPERATOR = "operator"
    SERVICE = "service"
    ACQUIRER = "acquirer"


@dataclass(frozen=True, slots=True)
class Principal:
    """A name and the role under which it acts."""

    name: str
    role: Role

    def __str__(self) -> str:
        return f"{self.name} ({self.role})"
