"""deploy/docker-compose.ha.yml and Patroni's configuration, read: all name the same servers and their rights."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from sqlalchemy import make_url

from services.chaos.targets.compose import REPLICA_PORTS, named
from services.chaos.targets.replicas import REPLICAS
from services.devstack import zookeeper_tree
from services.devstack.state import INTERFACES
from services.devstack.zookeeper_tree import lists_at_creation
from tests.unit.deploy.test_compose_file import FOLDER, SERVICES, ZOOKEEPERS, parsed


class Loader(yaml.SafeLoader):
    """Reads compose's tags as what they stand before."""


def _value(loader: yaml.SafeLoader, node: yaml.Node) -> Any:
    if isinstance(node, yaml.MappingNode):
        return loader.construct_mapping(node, deep=True)
    if isinstance(node, yaml.SequenceNode):
        return loader.construct_sequence(node, deep=True)
    return None


for _tag in ("!reset", "!override"):
    Loader.add_constructor(_tag, _value)

DOCUMENT: dict[str, Any] = yaml.load((FOLDER / "docker-compose.ha.yml").read_text(), Loader)  # noqa: S506  a SafeLoader
OVERLAY: dict[str, Any] = DOCUMENT["services"]
PATRONI: dict[str, Any] = yaml.safe_load((FOLDER / "postgres" / "patroni.yml").read_text())
every_replica = pytest.mark.parametrize("name", REPLICAS)


@every_replica
def test_server_has_no_more_rights_than_needed(name: str) -> None:
    """And its own key, its own data, and a port that is open to this machine only."""
    service = OVERLAY[name]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["read_only"] is True
    assert {"mem_limit", "cpus", "pids_limit", "logging"} <= set(service)
    assert service["volumes"] == [
        f"{name}-secrets:/run/secrets:ro",
        f"{name}-data:/var/lib/postgresql/data",
        f"{name}-socket:/var/run/postgresql",
    ]
    assert service["ports"] == [f"127.0.0.1:${{COUNTINGHOUSE_PORTS:-218}}{REPLICA_PORTS[name]}:5432"]
    assert service["environment"] == {"REPLICA": name}


def test_servers_replace_the_one_of_the_deployment() -> None:
    assert {name for name, service in OVERLAY.items() if service is None} == {"postgres", "postgres-certificate"}
    assert [name for name in OVERLAY if name in REPLICAS] == list(REPLICAS)


def test_books_are_copied_in_a_network_of_the_servers_alone() -> None:
    assert {name for name, service in OVERLAY.items() if service and "replication" in service.get("networks", ())} == {
        *REPLICAS
    }
    subnets = [network["ipam"]["config"][0]["subnet"] for network in DOCUMENT["networks"].values()]
    chaos = yaml.safe_load((FOLDER / "docker-compose.chaos.yml").read_text())
    subnets += [network["ipam"]["config"][0]["subnet"] for network in chaos["networks"].values()]
    assert len(set(subnets)) == len(subnets)


def test_url_of_each_database_names_every_server_and_the_same_role() -> None:
    """The password and the check of the server's name stay as they were, too."""
    variable = "COUNTINGHOUSE_DATABASE_URL"
    before = {name: make_url(each["environment"][variable]) for name, each in SERVICES.items() if _has(each, variable)}
    after = {name: make_url(each["environment"][variable]) for name, each in OVERLAY.items() if _has(each, variable)}
    assert after.keys() == before.keys()
    hosts = tuple(f"{name}:5432" for name in REPLICAS)
    for name, url in after.items():
        assert url.query["host"] == hosts, name
        assert url.difference_update_query(["host"]).set(host="postgres") == before[name], name


def _has(service: dict[str, Any] | None, variable: str) -> bool:
    return service is not None and variable in service.get("environment", {})


def test_zookeeper_differs_in_asking_for_a_certificate_alone() -> None:
    (ours,) = {OVERLAY[name]["environment"]["ZOO_CFG_EXTRA"] for name in ZOOKEEPERS}
    (theirs,) = {SERVICES[name]["environment"]["ZOO_CFG_EXTRA"] for name in ZOOKEEPERS}
    assert set(ours.split()) ^ set(theirs.split()) == {
        "ssl.clientAuth=none",
        "ssl.clientAuth=want",
        "authProvider.x509=org.apache.zookeeper.server.auth.X509AuthenticationProvider",
        "maxSessionTimeout=8000",
    }


def test_all_who_are_told_of_the_servers_are_told_of_the_same() -> None:
    listed = ",".join(REPLICAS)
    assert f"--databases {listed} " in OVERLAY["operator"]["command"]
    assert f"--replicas {listed} " in OVERLAY["tree"]["command"]
    handed = [volume for volume in OVERLAY["operator"]["volumes"] if volume.endswith(tuple(REPLICAS))]
    assert handed == [f"{name}-secrets:/secrets/{name}" for name in REPLICAS]
    sockets = re.findall(r"host=/sockets/(\w+)", OVERLAY["roles"]["command"])
    assert sockets == list(REPLICAS)
    assert set(DOCUMENT["volumes"]) == {f"{name}-{what}" for name in REPLICAS for what in ("secrets", "data", "socket")}


def test_commands_differ_from_those_of_the_deployment_in_the_servers_alone() -> None:
    for name in ("operator", "tree"):
        ours = re.sub(r"--(databases|replicas) \S+ ", "", OVERLAY[name]["command"])
        assert ours.split() == SERVICES[name]["command"].split()


def test_patroni_keeps_the_primary_where_its_servers_alone_may_change_it() -> None:
    users = {service: f"{service}:secret" for service in INTERFACES}
    owners = lists_at_creation(users, REPLICAS)[PATRONI["namespace"]]
    assert {acl.id.id for acl in owners} == set(PATRONI["zookeeper"]["set_acls"])
    assert {tuple(rights) for rights in PATRONI["zookeeper"]["set_acls"].values()} == {("ALL",)}
    assert PATRONI["zookeeper"]["hosts"] == [f"{name}:2181" for name in ZOOKEEPERS]
    assert PATRONI["zookeeper"]["verify"] is True
    assert PATRONI["namespace"] == zookeeper_tree._PATRONI


def test_acknowledged_commit_is_on_two_disks() -> None:
    settings = PATRONI["bootstrap"]["dcs"]
    assert settings["synchronous_mode"] is True
    assert settings["synchronous_mode_strict"] is True
    assert settings["ttl"] >= settings["loop_wait"] + 2 * settings["retry_timeout"]  # what Patroni takes
    assert "synchronous_commit" not in PATRONI["postgresql"]["parameters"]  # on


def test_superuser_has_no_way_in_from_outside_and_servers_come_by_certificate() -> None:
    rules = [line.split() for line in PATRONI["postgresql"]["pg_hba"]]
    assert ["host", "all", "postgres", "all", "reject"] in rules
    assert {rule[0] for rule in rules if rule[-1] != "reject"} == {"local", "hostssl"}
    for user in ("replicator", "rewinder"):
        assert [rule[-2:] for rule in rules if rule[2] == user and rule[0] == "hostssl"] == [["cert", "map=servers"]]
    patterns = [line.split()[1].removeprefix("/") for line in PATRONI["postgresql"]["pg_ident"]]
    for name in (*REPLICAS, "postgres4", "order-1", "xpostgres1"):
        assert all(bool(re.fullmatch(pattern, name)) is (name in REPLICAS) for pattern in patterns)


def test_servers_take_changes_from_each_other_by_certificate_and_not_by_address() -> None:
    """It has one in each network: a primary without ZooKeeper was refused by it when it asked whether to stay."""
    api = PATRONI["restapi"]
    assert (api["verify_client"], api["cafile"]) == ("optional", "/run/secrets/ca.pem")
    assert not [name for name in api if "allowlist" in name]


def test_no_password_is_in_the_configuration() -> None:
    for name in ("docker-compose.ha.yml", "postgres/patroni.yml", "postgres/run-replica.sh", "postgres/Dockerfile"):
        assert not re.search(r"password\s*[:=](?!_encryption)", (FOLDER / name).read_text(), re.IGNORECASE)


def test_chaos_run_starts_the_overlay_beside_its_own() -> None:
    files = named("project", 199, replicated=True)["COMPOSE_FILE"].split(":")
    assert [Path(file).name for file in files] == [
        "docker-compose.yml",
        "docker-compose.chaos.yml",
        "docker-compose.ha.yml",
    ]
    assert not {*REPLICAS} & set(parsed()["services"])
