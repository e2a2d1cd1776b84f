"""The authorities by which a server is known: read again when they change, kept while they cannot be read."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.kernel.errors import CountinghouseError
from services.runtime.authority_file import AuthorityFile
from tests.certificates import CertificateIssuer


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return CertificateIssuer(tmp_path / "first").authority.file


def test_context_is_the_same_until_the_file_changes(file: Path, tmp_path: Path) -> None:
    authorities = AuthorityFile(file)
    first = authorities.context()
    assert authorities.context() is first
    file.write_bytes(CertificateIssuer(tmp_path / "second").authority.file.read_bytes() + file.read_bytes())
    second = authorities.context()
    assert (len(first.get_ca_certs()), len(second.get_ca_certs())) == (1, 2)


@pytest.mark.parametrize("content", [None, b"", b"rubbish"])
def test_file_that_never_could_be_used_is_refused(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "ca.pem"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(CountinghouseError) as refusal:
        AuthorityFile(file).context()
    assert refusal.value.reason == ("TLS_FILE_MISSING" if content is None else "TLS_FILE_INVALID")
    assert str(file) in refusal.value.message


def test_changed_file_that_cannot_be_read_is_tried_again(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As when no file descriptor is left: the file itself does not change any more."""
    authorities = AuthorityFile(file)
    first = authorities.context()
    file.write_bytes(file.read_bytes() + b"\n")
    with monkeypatch.context() as patched:
        patched.setattr("ssl.create_default_context", _without_descriptors)
        assert authorities.context() is first
    assert authorities.context() is not first


def _without_descriptors(**_arguments: object) -> None:
    raise OSError(24, "Too many open files")
