"""How the processes of the house connect to ZooKeeper: over TLS, each service as a user of its own.

A user's name and password are in a file, `name:password`, which is read again for each new client. What a user may do
is said by the access control lists of the directories, which the operator makes (`devstack/zookeeper_tree.py`): to
create and to delete a node takes a right to its directory. A node may be changed by the user who created it, and read
by every client. There are two exceptions: a lock is read by its own user alone, and the generation is changed by the
operator alone.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final

from kazoo.security import ACL, Id, Permissions

from coordination.session.security import Security
from services.runtime.authority_file import AuthorityFile
from services.runtime.zookeeper_paths import GENERATION_PATH, LOCKS_ROOT, SERVER_NAME

_EVERY_ONE: Final = Id("world", "anyone")
READABLE: Final = (ACL(Permissions.READ, _EVERY_ONE),)
_PRIVATE: Final = (ACL(Permissions.ALL, Id("auth", "")),)
_OWNED: Final = (*_PRIVATE, *READABLE)
_ACLS: Final = {LOCKS_ROOT: _PRIVATE, GENERATION_PATH: READABLE}


def secured(ca_file: Path, user_file: Path | None) -> Security:
    """Return how a service's session connects to the house's ensemble.

    Args:
        ca_file: The authorities of its servers, PEM; read again when it changes.
        user_file: None: the session may read what every client may.

    Raises:
        CountinghouseError: TLS_FILE_MISSING, TLS_FILE_INVALID.
    """
    authorities = AuthorityFile(ca_file)
    authorities.context()
    if user_file is None:
        return Security(authorities.context, SERVER_NAME)
    return Security(authorities.context, SERVER_NAME, partial(_user_in, user_file), _OWNED, _ACLS)


def secured_for_operator(ca_file: Path, user_file: Path | None) -> Security:
    """Return how the operator's session connects: what it creates is the operator's, and every client reads it.

    Arguments and exceptions as `secured`.
    """
    return replace(secured(ca_file, user_file), acl=READABLE, acls={})


def _user_in(file: Path) -> str:
    return file.read_text().strip()
