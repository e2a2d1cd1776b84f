"""Why a server is not believed to be what was called: gRPC says only that it cannot be reached."""

from __future__ import annotations

import socket
import ssl
from pathlib import Path

from coordination.errors import BadAddress
from coordination.session.address import ServerAddress

_TIMEOUT_S = 2.0


def distrust(address: str, ca_file: Path, name: str) -> str:
    """Connect to a server once; return why it is not believed, or nothing if it is, or if it does not answer.

    Args:
        address: `host:port`.
        ca_file: The authorities, PEM.
        name: What its certificate must name.
    """
    try:
        server = ServerAddress.parse(address)
        context = ssl.create_default_context(cafile=ca_file)
        with socket.create_connection((server.host, server.port), _TIMEOUT_S) as connected:
            context.wrap_socket(connected, server_hostname=name).close()
    except ssl.SSLCertVerificationError as error:
        return f"its certificate is not believed: {error.verify_message}"
    except ssl.SSLError as error:
        return "it does not speak TLS" if error.reason == "WRONG_VERSION_NUMBER" else ""
    except (OSError, BadAddress):
        return ""
    return ""
