"""How a database's URL asks for TLS."""

from __future__ import annotations

import os
import ssl
from pathlib import Path

import pytest
from sqlalchemy import make_url

from services.kernel.errors import CountinghouseError, Unavailable
from services.runtime.database.postgresql_tls import ServerTls, libpq_parameters, parse_url
from tests.certificates import CertificateIssuer

PLAIN = "postgresql+asyncpg://li@db:5432/orders?passfile=/keys/li.pgpass"


@pytest.fixture
def ca_file(tmp_path: Path) -> Path:
    return CertificateIssuer(tmp_path / "ours").authority.file


@pytest.mark.parametrize("mode", ["", "&sslmode=verify-full"])
def test_server_is_verified_by_the_file_that_the_url_names(ca_file: Path, mode: str) -> None:
    """Its host as well. The driver gets the rest of the URL."""
    tls = ServerTls(make_url(f"{PLAIN}&sslrootcert={ca_file}{mode}"))
    assert tls.url == make_url(PLAIN)
    context = tls.connect_args()["ssl"]
    assert (context.verify_mode, context.check_hostname) == (ssl.CERT_REQUIRED, True)
    assert len(context.get_ca_certs()) == 1
    assert libpq_parameters(make_url(f"{PLAIN}&sslrootcert={ca_file}{mode}")) == {
        "sslmode": "verify-full",
        "sslrootcert": str(ca_file),
    }


def test_url_without_it_leaves_the_matter_to_the_driver() -> None:
    tls = ServerTls(make_url(PLAIN))
    assert (tls.url, tls.connect_args(), libpq_parameters(tls.url)) == (make_url(PLAIN), {}, {})


@pytest.mark.parametrize("parameters", ["&sslmode=verify-full", "&sslmode=require", "&sslmode=disable&sslrootcert=x"])
def test_mode_that_proves_less_is_refused(parameters: str) -> None:
    with pytest.raises(CountinghouseError) as refused:
        ServerTls(make_url(f"{PLAIN}{parameters}"))
    assert refused.value.reason == "DATABASE_URL"


@pytest.mark.parametrize("parameters", ["&sslrootcert=", "&sslmode=", "&sslmode=&sslrootcert=x", "&sslrootcert"])
def test_parameter_without_a_value_is_refused(parameters: str) -> None:
    """A variable that is not set must not end in a connection that proves nothing."""
    with pytest.raises(CountinghouseError) as refused:
        parse_url(f"{PLAIN}{parameters}")
    assert refused.value.reason == "DATABASE_URL"


def test_file_is_read_again_when_it_has_changed(ca_file: Path, tmp_path: Path) -> None:
    """An authority that is believed no more is not believed by the next connection."""
    tls = ServerTls(make_url(f"{PLAIN}&sslrootcert={ca_file}"))
    before = tls.connect_args()["ssl"]
    assert tls.connect_args()["ssl"] is before
    other = CertificateIssuer(tmp_path / "other").authority.file
    os.replace(other, ca_file)
    after = tls.connect_args()["ssl"]
    assert after.get_ca_certs() != before.get_ca_certs()
    assert len(after.get_ca_certs()) == 1
    ca_file.write_text("rubbish")
    assert tls.connect_args()["ssl"] is after, "a damaged file changes nothing"


@pytest.mark.parametrize(("content", "reason"), [(None, "TLS_FILE_MISSING"), ("rubbish", "TLS_FILE_INVALID")])
def test_file_that_cannot_be_used_is_named(tmp_path: Path, content: str | None, reason: str) -> None:
    file = tmp_path / "authorities.pem"
    if content is not None:
        file.write_text(content)
    with pytest.raises(Unavailable, match="authorities") as refused:
        ServerTls(make_url(f"{PLAIN}&sslrootcert={file}")).connect_args()
    assert refused.value.reason == reason
