"""Request ids belong to a role and a name."""

from __future__ import annotations

from services.runtime.database.migrations import add_caller_roles

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # The event of a change was written with the time of its request.
    told = (
        "SELECT r.caller, r.method, r.key, e.actor_role AS role FROM requests_before r "
        "JOIN order_events e ON e.actor_name = r.caller AND e.at_ms = r.created_at_ms "
        "WHERE r.response_ok AND {}"
    )
    add_caller_roles(
        known=[
            told.format("r.method = 'CreateOrder' AND e.version = 1"),
            told.format("r.method = 'CancelOrder' AND e.to_state = 'CANCELLED'"),
        ],
        possible=dict.fromkeys(("CreateOrder", "CancelOrder"), ("customer", "cashier", "accountant")),
    )
