"""What is handed out becomes Secrets of Kubernetes."""

from __future__ import annotations

import base64
import json
import ssl
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from services.devstack.authority import Authority
from services.devstack.secret_distributor import SecretDistributor
from services.devstack.secret_publisher import ApiServer, SecretPublisher
from services.kernel.clock import SystemClock
from services.kernel.errors import Unavailable
from tests.fakes.clock import ManualClock


class RecordingSecrets:
    """The Secrets of a cluster.

    Attributes:
        data: By the name of the Secret; what it holds.
        refused: The names of those that are refused.
    """

    def __init__(self) -> None:
        self.data: dict[str, dict[str, bytes]] = {}
        self.refused: set[str] = set()

    def patch(self, name: str, patch: bytes) -> None:
        if name in self.refused:
            raise Unavailable("SECRET_NOT_PUBLISHED", "refused")
        self.data[name] = {key: base64.b64decode(value) for key, value in json.loads(patch)["data"].items()}


def test_every_folder_becomes_the_secret_of_its_reader(tmp_path: Path) -> None:
    SecretDistributor(tmp_path, {"order": 0, "payment": 0}, ManualClock()).distribute()
    secrets = RecordingSecrets()
    readers = ["order", "order-owner", "payment", "roles"]
    assert SecretPublisher(tmp_path, readers, secrets.patch).publish() == readers
    assert set(secrets.data) == {f"{reader}-secrets" for reader in readers}
    for reader in readers:
        for name, content in secrets.data[f"{reader}-secrets"].items():
            assert content == (tmp_path / reader / name).read_bytes()
    assert {"order.token", "ledger.token", "verify.jwks", "revoked.json", "pgpass"} <= set(
        secrets.data["payment-secrets"]
    )


def test_only_what_has_changed_is_published_again(tmp_path: Path) -> None:
    for reader in ("order", "payment"):
        (tmp_path / reader).mkdir()
        (tmp_path / reader / "pgpass").write_text("one")
    publisher = SecretPublisher(tmp_path, ["order", "payment"], RecordingSecrets().patch)
    publisher.publish()
    assert publisher.publish() == []
    (tmp_path / "payment" / "pgpass").write_text("two")
    (tmp_path / "order" / ".pgpass.7").write_text("a draft")
    assert publisher.publish() == ["payment"]


def test_secret_that_is_refused_keeps_no_other_back_and_is_tried_again(tmp_path: Path) -> None:
    secrets = RecordingSecrets()
    for reader in ("order", "payment"):
        (tmp_path / reader).mkdir()
        (tmp_path / reader / "pgpass").write_text(reader)
    publisher = SecretPublisher(tmp_path, ["order", "payment", "not-handed-out-yet"], secrets.patch)
    secrets.refused = {"order-secrets"}
    with pytest.raises(Unavailable):
        publisher.publish()
    assert set(secrets.data) == {"payment-secrets"}
    secrets.refused = set()
    assert publisher.publish() == ["order"]


def authority_in(folder: Path) -> Authority:
    folder.mkdir()
    return Authority(folder, folder.name, SystemClock())


class RecordingApiServer:
    """An API server that records requests.

    Attributes:
        status: With which it answers.
        requests: Method, path, headers and body of each.
        account: Folder of a service account.
    """

    def __init__(self, folder: Path) -> None:
        self.status = 200
        self.requests: list[tuple[str, str, dict[str, str], bytes]] = []
        authority = authority_in(folder / "authority")
        identity = folder / "server.pem"
        identity.write_bytes(authority.issue(("localhost",)))
        self.account = folder / "account"
        self.account.mkdir()
        (self.account / "token").write_text("the token\n")
        (self.account / "namespace").write_text("countinghouse")
        (self.account / "ca.crt").write_bytes(authority.file.read_bytes())
        recorded = self

        class Handler(BaseHTTPRequestHandler):
            def do_PATCH(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                recorded.requests.append((self.command, self.path, dict(self.headers), body))
                self.send_response(recorded.status)
                self.end_headers()

            def log_message(self, *_args: object) -> None:
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(identity)
        self.server.socket = context.wrap_socket(self.server.socket, server_side=True)

    def api(self, host: str = "localhost") -> ApiServer:
        return ApiServer(self.account, host, self.server.server_port)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[RecordingApiServer]:
    served = RecordingApiServer(tmp_path)
    thread = threading.Thread(target=served.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield served
    served.server.shutdown()
    thread.join()
    served.server.server_close()


def test_secret_is_patched_in_the_name_of_the_service_account(cluster: RecordingApiServer) -> None:
    cluster.api().patch_secret("order-secrets", b'{"data": {}}')
    ((method, path, headers, body),) = cluster.requests
    assert (method, path) == ("PATCH", "/api/v1/namespaces/countinghouse/secrets/order-secrets")
    assert headers["Authorization"] == "Bearer the token"
    assert headers["Content-Type"] == "application/merge-patch+json"
    assert body == b'{"data": {}}'


@pytest.mark.parametrize("status", [403, 404, 500])
def test_answer_that_is_not_ok_is_unavailable(cluster: RecordingApiServer, status: int) -> None:
    cluster.status = status
    with pytest.raises(Unavailable, match=f"answers {status} to a change of order-secrets"):
        cluster.api().patch_secret("order-secrets", b"{}")


def test_nothing_is_sent_to_a_server_of_another_authority(cluster: RecordingApiServer, tmp_path: Path) -> None:
    other = authority_in(tmp_path / "other")
    (cluster.account / "ca.crt").write_bytes(other.file.read_bytes())
    with pytest.raises(Unavailable, match="does not answer"):
        cluster.api().patch_secret("order-secrets", b"{}")
    assert cluster.requests == []
