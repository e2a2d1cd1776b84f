"""Messages as JSON, and the schemas that say so."""

from __future__ import annotations

from countinghouse.payment.v1 import payment_pb2
from countinghouse.type.v1 import clerk_pb2
from services.gateway.messages import to_json
from services.gateway.openapi import document
from services.gateway.routes import public_routes


def test_credential_is_in_no_answer_and_no_schema() -> None:
    """What lets a service act for a clerk (`debug_redact` in the proto)."""
    clerk = clerk_pb2.Clerk(name="li", role=clerk_pb2.ROLE_CASHIER, delegation="secret")
    shown = to_json(payment_pb2.ListPaymentsResponse(payments=[payment_pb2.Payment(clerk=clerk)]))
    assert shown["payments"][0]["clerk"] == {"name": "li", "role": "ROLE_CASHIER"}
    schemas = document(public_routes())["components"]["schemas"]
    assert set(schemas["Clerk"]["properties"]) == {"name", "role"}
