"""The key that signs tokens, its successor, and the set of public keys that services verify with.

    <folder>/signing.key         private, mode 0600: its reader can sign a token for any caller
    <folder>/signing.next.key    its successor, while one is on its way
    <folder>/verify.jwks         public: the keys that are believed; `nbf`: signs from then on, `exp`: not from then on

    signing ──rotate()──▶ signing, successor published ──advance(), PUBLISHED_S later──▶ the successor signs,
                                                                the old one is believed until its tokens have expired

Invariants
1. A key is in the set for PUBLISHED_S before it signs: every service has read it by then.
2. A key that has signed stays in the set until its last token has expired; unless it was replaced at once, because a
   stranger may have it.
3. Each step can be repeated after a death in the middle of it.
"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coordination.files import sync_directory, write_whole
from services.kernel.clock import Clock
from services.kernel.json_input import parse_json
from services.runtime.grpc.tokens import MAX_TTL_S, TokenSigner
from services.runtime.grpc.trust import key_id, key_set

#: Longer than it takes until a new set has reached every service (`keys.LOOK_S`).
PUBLISHED_S = 60
#: A token that was signed in the last moment lives so long.
_BELIEVED_S = max(MAX_TTL_S.values()) + PUBLISHED_S


@dataclass(frozen=True, slots=True)
class ListedKey:
    """A key that is believed.

    Args:
        kid: Its id.
        signs_from_s: Of a successor, when it signs, Unix seconds; 0: it signs now, or no more.
        believed_until_s: Of one that signs no more, when it is dropped, Unix seconds; 0: it signs now, or will.
    """

    kid: str
    signs_from_s: int
    believed_until_s: int


class SigningKeys:
    """See the module.

    Args:
        folder: Is made, with a first key, if it is not there.
    """

    def __init__(self, folder: Path, clock: Clock) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder = folder
        self._clock = clock
        self._current = folder / "signing.key"
        self._next = folder / "signing.next.key"
        self.verify_file = folder / "verify.jwks"
        self.signer = TokenSigner.from_file(self._current, clock)
        self._publish(self._retired())

    def listed(self) -> list[ListedKey]:
        """Return the keys that are believed."""
        return [ListedKey(each["kid"], each.get("nbf", 0), each.get("exp", 0)) for each in self._published()]

    def rotate(self) -> int:
        """Make a successor and publish it; return when it signs, Unix seconds. One that is on its way stays."""
        TokenSigner.from_file(self._next, self._clock)
        self._publish(self._retired())
        return self._signs_from_s()

    def replace_now(self) -> None:
        """Let a new key sign at once, and believe no other: every token there is becomes invalid."""
        TokenSigner.from_file(self._next, self._clock)
        self._succeed([])

    def advance(self) -> bool:
        """Do what is due: let a successor sign, drop a key whose tokens have expired. True: another key signs now."""
        if self._next.exists() and self._now_s() >= self._signs_from_s():
            old = json.loads(key_set([self.signer.public_key]))["keys"][0] | {"exp": self._now_s() + _BELIEVED_S}
            self._succeed([*self._retired(), old])
            return True
        if key_id(TokenSigner.from_file(self._current, self._clock).public_key) != key_id(self.signer.public_key):
            self.signer = TokenSigner.from_file(self._current, self._clock)  # another process was first
            return True
        self._publish(self._retired())
        return False

    def _succeed(self, believed: list[dict[str, Any]]) -> None:
        """Publish the successor with the keys that are still believed, and put it in the place of the current key."""
        successor = TokenSigner.from_file(self._next, self._clock)
        self._write([*json.loads(key_set([successor.public_key]))["keys"], *believed])
        self._next.replace(self._current)
        sync_directory(self._folder)
        self.signer = successor

    def _publish(self, retired: list[dict[str, Any]]) -> None:
        keys = json.loads(key_set([self.signer.public_key]))["keys"]
        if self._next.exists():
            successor = TokenSigner.from_file(self._next, self._clock)
            (described,) = json.loads(key_set([successor.public_key]))["keys"]
            keys.append(described | {"nbf": self._signs_from_s()})
        mine = {each["kid"] for each in keys}
        self._write([*keys, *(each for each in retired if each["kid"] not in mine)])

    def _write(self, keys: list[dict[str, Any]]) -> None:
        content = json.dumps({"keys": keys}, indent=1).encode()
        if not self.verify_file.exists() or self.verify_file.read_bytes() != content:
            write_whole(self.verify_file, content, mode=0o644)

    def _published(self) -> list[dict[str, Any]]:
        with suppress(FileNotFoundError, ValueError, KeyError, TypeError):
            return list(parse_json(self.verify_file.read_bytes())["keys"])
        return []

    def _retired(self) -> list[dict[str, Any]]:
        """Return the keys that sign no more and are still believed."""
        return [each for each in self._published() if each.get("exp", 0) > self._now_s()]

    def _signs_from_s(self) -> int:
        """Return when the successor signs: PUBLISHED_S after it was published, if that is yet to come."""
        successor = key_id(TokenSigner.from_file(self._next, self._clock).public_key)
        published = [int(each["nbf"]) for each in self._published() if each["kid"] == successor and "nbf" in each]
        return published[0] if published else self._now_s() + PUBLISHED_S

    def _now_s(self) -> int:
        return self._clock.now_ms() // 1000
