"""Request ids and tickets belong to a role and a name; a payment says who owns its request."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from services.runtime.database.migrations import add_caller_roles

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_PAYERS = ("customer", "cashier", "accountant")


def upgrade() -> None:
    op.add_column("payments", sa.Column("request_role", sa.String(16), nullable=False, server_default=""))
    op.execute("UPDATE payments SET request_role = clerk_role")  # so far no caller paid with another's ticket
    add_caller_roles(
        known=[
            "SELECT request_caller AS caller, request_method AS method, request_key AS key, request_role AS role "
            "FROM payments UNION "
            "SELECT reversal_caller, 'Reverse', reversal_key, reversal_role FROM payments WHERE reversal_key <> ''",
            # An unused ticket is that of the one person who has ever paid under its caller's name.
            "SELECT r.caller, r.method, r.key, p.role FROM requests_before r "
            "JOIN (SELECT clerk_name, MIN(clerk_role) AS role FROM payments "
            "GROUP BY clerk_name HAVING COUNT(DISTINCT clerk_role) = 1) p ON p.clerk_name = r.caller "
            "WHERE r.method = 'Pay' AND r.state = 'ISSUED'",
        ],
        possible={"IssueTicket": _PAYERS, "Pay": _PAYERS, "Settle": _PAYERS, "Reverse": ("accountant",)},
    )
    # Its owner is not known, and it must not have several: it ends unused, and its owner fetches another.
    op.execute(
        "UPDATE requests SET state = 'EXPIRED' WHERE method = 'Pay' AND state = 'ISSUED' AND EXISTS ("
        "SELECT 1 FROM requests o WHERE o.caller = requests.caller AND o.method = requests.method "
        "AND o.key = requests.key AND o.caller_role <> requests.caller_role)"
    )
