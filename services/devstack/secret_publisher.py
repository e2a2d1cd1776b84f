"""Copy what the secret distributor hands out into Secrets of Kubernetes, and again whenever it changes.

    python -m services.devstack.secret_publisher --account /run/account /secrets order order-owner roles

Each folder `/secrets/<reader>` becomes the data of the Secret `<reader>-secrets`, which must exist: this process may
change the Secrets that its Role names, and may neither read nor make one. The distributor writes, in a container of
its own beside this one; this process does not see the signing key.

    <account>/token, ca.crt, namespace   the service account's, as Kubernetes projects them; read for every request
"""

from __future__ import annotations

import argparse
import base64
import json
import signal
import ssl
import sys
import time
from collections.abc import Callable, Sequence
from http.client import HTTPException, HTTPSConnection
from pathlib import Path

from services.kernel.errors import Unavailable

_SERVER = "kubernetes.default.svc"
_LOOK_S = 1.0
_TIMEOUT_S = 10.0

#: Takes the name of a Secret and a JSON merge patch (RFC 7396).
Patch = Callable[[str, bytes], None]


class ApiServer:
    """The API server of the cluster, as one service account may use it.

    Args:
        account: Folder with the service account's token, authority and namespace.
    """

    def __init__(self, account: Path, host: str = _SERVER, port: int = 443) -> None:
        self._account = account
        self._host = host
        self._port = port

    def patch_secret(self, name: str, patch: bytes) -> None:
        """Change a Secret.

        Raises:
            Unavailable: It was not changed, or it is not known whether it was.
        """
        try:
            self._patch(name, patch)
        except (OSError, HTTPException) as error:
            raise Unavailable("SECRET_NOT_PUBLISHED", f"the API server does not answer: {error}") from error

    def _patch(self, name: str, patch: bytes) -> None:
        token, namespace = ((self._account / file).read_text().strip() for file in ("token", "namespace"))
        context = ssl.create_default_context(cafile=self._account / "ca.crt")
        connection = HTTPSConnection(self._host, self._port, timeout=_TIMEOUT_S, context=context)
        try:
            connection.request(
                "PATCH",
                f"/api/v1/namespaces/{namespace}/secrets/{name}",
                patch,
                {"Authorization": f"Bearer {token}", "Content-Type": "application/merge-patch+json"},
            )
            status = connection.getresponse().status
        finally:
            connection.close()
        if status != 200:
            raise Unavailable("SECRET_NOT_PUBLISHED", f"the API server answers {status} to a change of {name}")


class SecretPublisher:
    """See the module.

    Args:
        root: Where the readers' folders are.
        readers: Whose are published.
    """

    def __init__(self, root: Path, readers: Sequence[str], patch: Patch) -> None:
        self._root = root
        self._readers = tuple(readers)
        self._patch = patch
        self._published: dict[str, dict[str, str]] = {}

    def publish(self) -> list[str]:
        """Publish what has changed since it was published last; return whose.

        Raises:
            Unavailable: Some of it could not be published, and will be tried again by the next call.
        """
        changed: list[str] = []
        failures: list[Unavailable] = []
        for reader in self._readers:
            data = self._data(reader)
            if not data or data == self._published.get(reader):
                continue
            try:
                self._patch(f"{reader}-secrets", json.dumps({"data": data}).encode())
            except Unavailable as error:
                failures.append(error)
            else:
                self._published[reader] = data
                changed.append(reader)
        if failures:
            raise failures[0]
        return changed

    def _data(self, reader: str) -> dict[str, str]:
        """Return the files of a folder as a Secret has them; drafts, whose names begin with a dot, are left out."""
        folder = self._root / reader
        files = sorted(folder.glob("[!.]*")) if folder.is_dir() else []
        return {file.name: base64.b64encode(file.read_bytes()).decode() for file in files}


def main() -> None:
    """Publish, and again what changes, until a signal."""
    parser = argparse.ArgumentParser(prog="python -m services.devstack.secret_publisher", description=main.__doc__)
    parser.add_argument("--account", type=Path, required=True, help="folder with the service account's token")
    parser.add_argument("root", type=Path, help="where the readers' folders are")
    parser.add_argument("readers", nargs="+", metavar="READER")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # the first process of a container is not ended by it
    publisher = SecretPublisher(given.root, given.readers, ApiServer(given.account).patch_secret)
    while True:
        try:
            for reader in publisher.publish():
                print(f"secret_publisher: {reader}-secrets is published", flush=True)  # noqa: T201
        except (Unavailable, OSError) as error:
            print(f"secret_publisher: {error}; trying again", file=sys.stderr, flush=True)  # noqa: T201
        time.sleep(_LOOK_S)


if __name__ == "__main__":
    main()
