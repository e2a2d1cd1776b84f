"""How a session knows ZooKeeper, as whom it comes, and who may touch the nodes that it creates.

TLS     its certificate must be of an authority that `context` believes, and name `server_name`, at whatever address
        it is
user    a name and a password (ZooKeeper's scheme `digest`), sent after the handshake at every new connection
acl     of every node that the session creates; `acls` has others for what is under certain paths

Without TLS a password can be read on its way, so a user needs a context.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from kazoo.security import ACL, OPEN_ACL_UNSAFE


@dataclass(frozen=True, slots=True)
class Security:
    """See the module.

    Attributes:
        context: returns the TLS context of the next connection; None: plain text.
        server_name: the DNS name that ZooKeeper's certificate must have.
        user: returns ``name:password`` for the next client; None: the session has no user.
        acl: of the nodes that it creates.
        acls: of those that it creates at these paths and below them, instead; paths are below the chroot.

    Raises:
        ValueError: a user without TLS.
    """

    context: Callable[[], ssl.SSLContext] | None = None
    server_name: str = ""
    user: Callable[[], str] | None = None
    acl: Sequence[ACL] = tuple(OPEN_ACL_UNSAFE)
    acls: Mapping[str, Sequence[ACL]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.user is not None and self.context is None:
            raise ValueError("without TLS the password of a user can be read on its way; give a context")


#: As ZooKeeper is installed: in plain text, and every node is open to all.
OPEN = Security()
