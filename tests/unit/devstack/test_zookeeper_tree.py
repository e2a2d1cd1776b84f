"""With which access control lists the directories in ZooKeeper are created."""

from __future__ import annotations

from kazoo.security import Permissions

from coordination.session.requests import Scope, serialized
from services.devstack.state import INTERFACES
from services.devstack.zookeeper_tree import digest, lists_at_creation
from services.runtime.zookeeper_paths import GENERATION_PATH, LOCKS_ROOT

USERS = {service: f"{service}:secret-of-{service}" for service in INTERFACES}


def test_directory_is_created_with_its_own_list_and_not_with_that_of_one_above() -> None:
    """A directory that was closed first and opened later would refuse a service that starts in between."""
    lists = lists_at_creation(USERS)
    scope = Scope(acls=tuple((path, serialized(acl)) for path, acl in lists.items()))
    assert {path: scope.acl_of(path) for path in lists} == {path: serialized(acl) for path, acl in lists.items()}


def test_services_create_the_first_generation_and_payment_its_locks() -> None:
    lists = lists_at_creation(USERS)
    may_create = {acl.id.id for acl in lists[GENERATION_PATH.rpartition("/")[0]] if acl.perms & Permissions.CREATE}
    assert may_create == {digest(user) for user in USERS.values()}
    assert {acl.id.id for acl in lists[LOCKS_ROOT]} == {digest(USERS["payment"])}


def test_servers_of_postgresql_alone_read_and_change_what_patroni_keeps() -> None:
    """Who is the primary is decided there: who can change it can have two."""
    acls = lists_at_creation(USERS, ["postgres1", "postgres2"])["/patroni"]
    assert {(acl.id.scheme, acl.id.id, acl.perms) for acl in acls} == {
        ("x509", "CN=postgres1", Permissions.ALL),
        ("x509", "CN=postgres2", Permissions.ALL),
    }
    assert "/patroni" not in lists_at_creation(USERS)
