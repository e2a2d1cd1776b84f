"""The keys and revocations that a server believes, read from files that change."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from services.kernel.errors import CountinghouseError
from services.runtime.grpc import trust
from services.runtime.grpc.trust import TrustFiles, key_id, key_set, keys_in, revoked_in


def write(file: Path, content: bytes) -> None:
    """Replaces a file, as all of ours are."""
    draft = file.with_suffix(".draft")
    draft.write_bytes(content)
    os.replace(draft, file)


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    file = tmp_path / "verify.jwks"
    write(file, key_set([Ed25519PrivateKey.generate().public_key()]))
    return file


def test_key_id_is_the_thumbprint_of_the_example() -> None:
    """RFC 8037, appendix A.3."""
    listed = {"kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}
    (found,) = keys_in(json.dumps({"keys": [listed]}).encode())
    assert found == "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k"


def test_key_has_the_id_of_its_content_and_not_the_one_that_the_set_says() -> None:
    ours, theirs = (Ed25519PrivateKey.generate().public_key() for _ in range(2))
    document = json.loads(key_set([theirs]))
    document["keys"][0]["kid"] = key_id(ours)
    assert set(keys_in(json.dumps(document).encode())) == {key_id(theirs)}


def test_keys_of_other_kinds_are_passed_over() -> None:
    ours = Ed25519PrivateKey.generate().public_key()
    document = json.loads(key_set([ours]))
    document["keys"] += [{"kty": "RSA", "n": "x", "e": "AQAB"}, {"kty": "OKP", "crv": "X25519", "x": "x"}]
    assert set(keys_in(json.dumps(document).encode())) == {key_id(ours)}


@pytest.mark.parametrize(
    "content",
    [b"", b"rubbish", b"[]", b"{}", b'{"keys": []}', b'{"keys": [{"kty": "OKP", "crv": "Ed25519", "x": "eA"}]}'],
)
def test_set_without_a_key_of_ours_is_refused(keys: Path, content: bytes) -> None:
    write(keys, content)
    with pytest.raises(CountinghouseError) as refusal:
        TrustFiles(keys)
    assert refusal.value.reason == "VERIFY_KEY_INVALID"


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"tokens": 1, "callers": []}', b'{"tokens": {}}'])
def test_list_of_revocations_that_makes_no_sense_is_refused(keys: Path, content: bytes) -> None:
    """A server that starts does not guess who is revoked."""
    revoked = keys.with_name("revoked.json")
    write(revoked, content)
    with pytest.raises(CountinghouseError) as refusal:
        TrustFiles(keys, revoked)
    assert refusal.value.reason == "REVOKED_INVALID"


def test_what_changes_is_read_again(keys: Path) -> None:
    revoked = keys.with_name("revoked.json")
    files = TrustFiles(keys, revoked)
    first = files.current()
    assert first.revoked_callers == frozenset()
    assert files.current() is first, "nothing is read while nothing changes"
    write(revoked, b'{"tokens": {"tok_1": 9}, "callers": ["cashier:li"]}')
    assert files.current().revoked_callers == {"cashier:li"}
    assert files.current().revoked_tokens == {"tok_1"}
    successor = Ed25519PrivateKey.generate().public_key()
    write(keys, key_set([successor]))
    assert set(files.current().keys) == {key_id(successor)}
    assert files.current().revoked_callers == {"cashier:li"}


@pytest.mark.parametrize("content", [b"rubbish", b'{"tokens":' + b"[" * 20_000], ids=["rubbish", "nested too deeply"])
@pytest.mark.parametrize("which", ["verify.jwks", "revoked.json"])
def test_change_that_makes_no_sense_changes_nothing(keys: Path, which: str, content: bytes) -> None:
    """No caller becomes unknown, and none is believed again, by a damaged file."""
    revoked = keys.with_name("revoked.json")
    write(revoked, b'{"tokens": {}, "callers": ["cashier:li"]}')
    files = TrustFiles(keys, revoked)
    before = files.current()
    write(keys.with_name(which), content)
    assert files.current() is before
    keys.unlink()
    assert files.current() is before


def test_files_are_usable_unless_the_newest_cannot_be_read(keys: Path) -> None:
    """Whether or not a call has looked at them."""
    revoked = keys.with_name("revoked.json")
    files = TrustFiles(keys, revoked)
    assert files.usable()
    write(revoked, b"rubbish")
    assert not files.usable()
    assert not files.usable(), "it is not read a second time"
    write(revoked, b'{"tokens": {}, "callers": []}')
    assert files.usable()


def test_threads_read_the_files_one_after_the_other(keys: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page of metrics looks at the files in a thread of its own; no revocation may be lost to an older reading."""
    revoked = keys.with_name("revoked.json")
    files = TrustFiles(keys, revoked)
    has_read, go_on, overlapped = threading.Event(), threading.Event(), threading.Event()

    def slow_first(document: bytes) -> tuple[frozenset[str], frozenset[str]]:
        found = revoked_in(document)
        if not has_read.is_set():
            has_read.set()
            assert go_on.wait(10)
        elif not go_on.is_set():
            overlapped.set()
        return found

    monkeypatch.setattr(trust, "revoked_in", slow_first)
    write(revoked, b'{"tokens": {}, "callers": []}')
    first = threading.Thread(target=files.current)
    first.start()
    assert has_read.wait(10)
    write(revoked, b'{"tokens": {}, "callers": ["cashier:li"]}')
    second = threading.Thread(target=files.current)
    second.start()
    assert not overlapped.wait(0.2)  # without a lock it reads at once
    go_on.set()
    first.join(10)
    second.join(10)
    assert files.current().revoked_callers == {"cashier:li"}


def test_too_many_revocations_are_refused() -> None:
    many = json.dumps({"tokens": {}, "callers": [f"cashier:{number}" for number in range(100_001)]}).encode()
    with pytest.raises(CountinghouseError, match="more than 100000"):
        revoked_in(many)
