"""Which role may call which method, and which service: the two tables. A method that is in neither cannot be called.

The role is only half of it: which orders, payments and wallets a caller may see or pay from is decided in operations,
where the thing is known.
"""

from __future__ import annotations

from services.kernel.errors import PermissionDenied
from services.kernel.principal import Principal, Role

_EVERYONE = frozenset(Role) - {Role.ACQUIRER}  # the acquirer is outside
_PEOPLE = _EVERYONE - {Role.SERVICE}
_CLERKS = frozenset({Role.CASHIER, Role.ACCOUNTANT})
_PAYERS = _CLERKS | {Role.CUSTOMER}
_SERVICE = frozenset({Role.SERVICE})
_STAFF = _EVERYONE - {Role.CUSTOMER}
#: Who calls the acquirer: the payment service, and the roles that reconcile.
_MERCHANT = frozenset({Role.SERVICE, Role.ACCOUNTANT})

MAY_CALL: dict[str, frozenset[Role]] = {
    "/countinghouse.order.v1.OrderService/CreateOrder": _PAYERS,
    "/countinghouse.order.v1.OrderService/GetOrder": _EVERYONE,
    "/countinghouse.order.v1.OrderService/GetOrderHistory": _EVERYONE,
    "/countinghouse.order.v1.OrderService/ListOrders": _EVERYONE,
    "/countinghouse.order.v1.OrderService/WatchOrders": _PEOPLE,
    "/countinghouse.order.v1.OrderService/CancelOrder": _PAYERS,
    "/countinghouse.order.v1.OrderService/ClaimOrder": _SERVICE,
    "/countinghouse.order.v1.OrderService/CompleteOrder": _SERVICE,
    "/countinghouse.order.v1.OrderService/ClaimOrders": _SERVICE,
    "/countinghouse.order.v1.OrderService/CompleteOrders": _SERVICE,
    "/countinghouse.order.v1.OrderService/ReleaseOrder": _SERVICE,
    "/countinghouse.order.v1.OrderService/ReopenOrder": _SERVICE,
    "/countinghouse.payment.v1.PaymentService/IssueTicket": _PAYERS,
    "/countinghouse.payment.v1.PaymentService/Pay": _PAYERS,
    "/countinghouse.payment.v1.PaymentService/Settle": _PAYERS,
    "/countinghouse.payment.v1.PaymentService/SettleBatch": frozenset({Role.ACCOUNTANT}),
    "/countinghouse.payment.v1.PaymentService/Reverse": frozenset({Role.ACCOUNTANT}),
    "/countinghouse.payment.v1.PaymentService/Park": _CLERKS,
    "/countinghouse.payment.v1.PaymentService/GetPayment": _EVERYONE,
    "/countinghouse.payment.v1.PaymentService/GetPaymentHistory": _EVERYONE,
    "/countinghouse.payment.v1.PaymentService/ListPayments": _EVERYONE,
    "/countinghouse.payment.v1.PaymentService/WatchPayments": _PEOPLE,
    "/countinghouse.payment.v1.PaymentService/NotifyAcquirer": frozenset({Role.ACQUIRER, Role.ACCOUNTANT}),
    "/countinghouse.ledger.v1.LedgerService/OpenAccount": frozenset({Role.ACCOUNTANT, Role.OPERATOR}),
    "/countinghouse.ledger.v1.LedgerService/CloseAccount": frozenset({Role.ACCOUNTANT, Role.OPERATOR}),
    "/countinghouse.ledger.v1.LedgerService/GetAccount": _EVERYONE,
    "/countinghouse.ledger.v1.LedgerService/ListAccounts": _STAFF,
    "/countinghouse.ledger.v1.LedgerService/Post": _SERVICE,
    "/countinghouse.ledger.v1.LedgerService/PostBatch": _SERVICE,
    "/countinghouse.ledger.v1.LedgerService/VoidPost": _SERVICE,
    "/countinghouse.ledger.v1.LedgerService/GetJournal": _STAFF,
    "/countinghouse.ledger.v1.LedgerService/ListJournals": _STAFF,
    "/countinghouse.ledger.v1.LedgerService/ReverseJournal": _SERVICE,
    "/countinghouse.ledger.v1.LedgerService/TrialBalance": _STAFF,
    "/countinghouse.ledger.v1.LedgerService/VerifyJournal": _STAFF,
    "/countinghouse.acquirer.v1.AcquirerService/Charge": _MERCHANT,
    "/countinghouse.acquirer.v1.AcquirerService/GetCharge": _MERCHANT | {Role.AUDITOR, Role.OPERATOR},
    "/countinghouse.acquirer.v1.AcquirerService/ReverseByKey": _MERCHANT,
    "/countinghouse.acquirer.v1.AcquirerService/ListCharges": _MERCHANT | {Role.AUDITOR, Role.OPERATOR},
    "/countinghouse.acquirer.v1.AcquirerService/ListLog": _MERCHANT | {Role.AUDITOR, Role.OPERATOR},
    "/countinghouse.acquirer.v1.FaultService/SetFaults": frozenset({Role.OPERATOR}),
    "/countinghouse.acquirer.v1.FaultService/GetFaults": frozenset({Role.OPERATOR}),
    "/countinghouse.debug.v1.FailpointService/ArmFailpoint": frozenset({Role.OPERATOR}),
    "/countinghouse.debug.v1.FailpointService/ListFailpoints": frozenset({Role.OPERATOR}),
}


_ORDER, _LEDGER = "/countinghouse.order.v1.OrderService/", "/countinghouse.ledger.v1.LedgerService/"
_ACQUIRER = "/countinghouse.acquirer.v1.AcquirerService/"
#: What each service calls, by the name under which it calls. A service that is not here calls none.
SERVICES_CALL: dict[str, frozenset[str]] = {
    "payment-service": frozenset(
        {
            *(
                f"{_ORDER}{each}"
                for each in ("GetOrder", "ClaimOrder", "ClaimOrders", "CompleteOrder", "CompleteOrders")
            ),
            *(f"{_ORDER}{each}" for each in ("ReleaseOrder", "ReopenOrder")),
            *(f"{_LEDGER}{each}" for each in ("GetAccount", "Post", "PostBatch", "VoidPost", "ReverseJournal")),
            *(f"{_ACQUIRER}{each}" for each in ("Charge", "GetCharge", "ReverseByKey")),
        }
    ),
}


def check(method: str, principal: Principal) -> None:
    """Let `principal` call `method`, given as `/package.Service/Method`.

    Raises:
        PermissionDenied: ROLE_NOT_ALLOWED, saying which roles may; SERVICE_NOT_ALLOWED: this service may not.
    """
    if principal.role is Role.SERVICE and method not in SERVICES_CALL.get(principal.name, frozenset()):
        raise PermissionDenied(
            "SERVICE_NOT_ALLOWED",
            f"{principal.name} may not call {method.rpartition('/')[2]}",
            metadata={"role": principal.role, "service": principal.name},
        )
    allowed = MAY_CALL.get(method, frozenset())
    if principal.role not in allowed:
        name = method.rpartition("/")[2]
        roles = ", ".join(sorted(allowed)) or "no role"
        raise PermissionDenied(
            "ROLE_NOT_ALLOWED",
            f"role {principal.role} may not call {name}; it is for: {roles}",
            metadata={"role": principal.role},
        )
