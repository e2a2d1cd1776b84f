"""deploy/docker-compose.yml and the Dockerfile, read: nobody has more rights, secrets or open ports than they need."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from services.chaos.targets.compose import PORTS, named
from services.chaos.targets.docker import service_name
from services.devstack.options import GATEWAY
from services.devstack.state import ACQUIRER, INTERFACES
from services.runtime.grpc.identity import server_name

FOLDER = Path(__file__).parents[3] / "deploy"
FILE = FOLDER / "docker-compose.yml"
ZOOKEEPERS = ("zoo1", "zoo2", "zoo3")
PROGRAMS = (*INTERFACES, ACQUIRER)
INSTANCES = (*(f"{service}-{number}" for service in INTERFACES for number in (1, 2)), ACQUIRER)
MIGRATIONS = tuple(f"{program}-migrate" for program in PROGRAMS)
ONE_SHOT = ("roles", "tree", *MIGRATIONS)
PRUNES = tuple(f"{service}-prune" for service in INTERFACES)
SECRETS = re.compile(r"^([\w-]+)-secrets:")


def parsed() -> dict[str, Any]:
    """The file, its anchors resolved."""
    document: dict[str, Any] = yaml.safe_load(FILE.read_text())
    return document


SERVICES: dict[str, dict[str, Any]] = parsed()["services"]
every = pytest.mark.parametrize("name", SERVICES)
every_instance = pytest.mark.parametrize("name", INSTANCES)


def secrets_of(name: str) -> Iterator[tuple[str, str]]:
    """The volumes of secrets that a service mounts: whose, and the rest of the line."""
    for volume in SERVICES[name].get("volumes", ()):
        if found := SECRETS.match(volume):
            yield found[1], volume


def service_of(name: str) -> str:
    return name.partition("-")[0]


def test_compose_file_has_every_container() -> None:
    assert set(SERVICES) == {
        "operator",
        "postgres",
        "postgres-certificate",
        *ZOOKEEPERS,
        *ONE_SHOT,
        *PRUNES,
        *INSTANCES,
        GATEWAY,
    }


@every
def test_container_has_no_more_rights_than_needed(name: str) -> None:
    service = SERVICES[name]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert not {"privileged", "cap_add", "devices", "pid", "ipc", "userns_mode"} & set(service)
    assert service.get("network_mode", "none") == "none"
    assert not [volume for volume in service.get("volumes", ()) if "docker.sock" in volume]
    assert service["read_only"] is (name not in ZOOKEEPERS)


@every
def test_container_has_limits(name: str) -> None:
    """Of memory, processors, processes and logs."""
    service = SERVICES[name]
    assert service["cpus"] == "${COUNTINGHOUSE_CPUS:-1}"
    assert re.fullmatch(r"\d+m", service["mem_limit"])
    assert service["pids_limit"] <= 256
    assert {"max-size", "max-file"} <= set(service["logging"]["options"])


@every
def test_service_container_has_a_health_check_and_restarts(name: str) -> None:
    """But the jobs: nobody waits for one that goes on."""
    service = SERVICES[name]
    assert ("healthcheck" in service) is (name not in (*ONE_SHOT, *PRUNES))
    assert service["restart"] == ("no" if name in ONE_SHOT else "unless-stopped")


@every
def test_ports_are_open_to_this_machine_only(name: str) -> None:
    for port in SERVICES[name].get("ports", ()):
        assert re.fullmatch(r"127\.0\.0\.1:\$\{COUNTINGHOUSE_PORTS:-218\}\d\d:\d+", port)


def test_no_port_is_given_twice() -> None:
    ports = [port.split(":")[2] for service in SERVICES.values() for port in service.get("ports", ())]
    assert len(ports) == len(set(ports)) == len(ZOOKEEPERS) + 1 + len(INSTANCES) + 1


@every
def test_container_is_in_the_networks_that_it_needs_and_no_other(name: str) -> None:
    wanted = {
        ("operator", "payment"): ["coordination", "data", "bank"],
        ("order", "ledger"): ["coordination", "data"],
        (*ZOOKEEPERS, "tree"): ["coordination"],
        (*MIGRATIONS[:-1], *PRUNES): ["data"],
        ("postgres",): ["data", "bank-data"],
        ("acquirer",): ["bank", "bank-data"],
        ("acquirer-migrate",): ["bank-data"],
        (GATEWAY,): ["coordination", "front"],
        ("roles", "postgres-certificate"): None,
    }
    kind = service_of(name) if name in INSTANCES else name
    (networks,) = [networks for members, networks in wanted.items() if kind in members]
    assert SERVICES[name].get("networks") == networks
    assert (SERVICES[name].get("network_mode") == "none") is (networks is None)


def test_networks_answer_at_once_for_a_container_that_is_down() -> None:
    """Docker asks outside for its name; where nothing outside answers, the choice of a leader takes 20 s and more."""
    assert parsed()["networks"] == dict.fromkeys(("coordination", "data", "bank", "bank-data", "front"))


def test_chaos_run_gives_each_network_addresses_of_its_own() -> None:
    """A container that was cut off is given the same addresses again, which Docker allows there only."""
    document = yaml.safe_load((FOLDER / "docker-compose.chaos.yml").read_text())
    subnets = [network["ipam"]["config"][0]["subnet"] for network in document["networks"].values()]
    assert set(document["networks"]) == set(parsed()["networks"])
    assert len(set(subnets)) == len(subnets)
    assert all(re.fullmatch(r"\$\{COUNTINGHOUSE_SUBNETS:-10\.218\}\.\d\.0/24", subnet) for subnet in subnets)
    assert "COUNTINGHOUSE_SUBNETS" in named("project", 199)


@pytest.mark.parametrize("name", ["payment-1", "payment-2"])
def test_acquirer_notifies_an_instance_by_its_name_in_their_network(name: str) -> None:
    """It does not reach the address in the registry, which is of another network."""
    environment = SERVICES[name]["environment"]
    assert environment["COUNTINGHOUSE_NOTIFY_ADDRESS"] == f"{name}:{environment['COUNTINGHOUSE_LISTEN_PORT']}"


def test_chaos_run_knows_every_port() -> None:
    """What it takes to be free is what the file publishes."""
    published = {
        name: port.partition("}")[2].partition(":")[0]
        for name, service in SERVICES.items()
        for port in service.get("ports", ())
    }
    assert {service_name(name): ending for name, ending in PORTS.items()} == published


@every
def test_container_waits_until_dependencies_are_healthy(name: str) -> None:
    for other, how in SERVICES[name].get("depends_on", {}).items():
        wanted = "service_completed_successfully" if other in ONE_SHOT else "service_healthy"
        assert how == {"condition": wanted}, other


@every_instance
def test_instance_sees_the_secrets_of_its_service_and_no_others(name: str) -> None:
    service, instance = service_of(name), "acquirer-1" if name == "acquirer" else name
    assert SERVICES[name]["volumes"] == [f"{service}-secrets:/run/secrets:ro", f"{instance}-identity:/run/identity:ro"]
    assert SERVICES[name]["environment"]["COUNTINGHOUSE_IDENTITY_FILE"] == "/run/identity/identity.pem"
    mounting = {
        other
        for other in SERVICES
        for volume in SERVICES[other].get("volumes", ())
        if f"{instance}-identity:" in volume
    }
    assert mounting == {"operator", name}


@pytest.mark.parametrize("name", [*MIGRATIONS, *PRUNES])
def test_only_the_owners_jobs_see_the_owners_password(name: str) -> None:
    """They migrate, and remove what is old."""
    owner = f"{service_of(name)}-owner"
    assert list(secrets_of(name)) == [(owner, f"{owner}-secrets:/run/secrets:ro")]
    jobs = {job for job in (*MIGRATIONS, *PRUNES) if service_of(job) == service_of(name)}
    assert {other for other in SERVICES for whose, _ in secrets_of(other) if whose == owner} == {"operator", *jobs}


@pytest.mark.parametrize("service", INTERFACES)
def test_old_requests_are_removed_once_a_day_by_the_owner(service: str) -> None:
    job = SERVICES[f"{service}-prune"]
    assert job["command"] == f"services.{service}.main prune"
    assert job["environment"]["COUNTINGHOUSE_PRUNE_EVERY_H"] == "24"
    assert f"//countinghouse_{service}_owner@" in job["environment"]["COUNTINGHOUSE_DATABASE_URL"]


def test_only_the_operator_sees_the_signing_key_and_writes_secrets() -> None:
    for name in SERVICES:
        for whose, volume in secrets_of(name):
            assert volume.endswith(":ro") is (name != "operator")
            assert whose != "operator" or name == "operator"
    handed = {whose for whose, _ in secrets_of("operator")}
    owners = (f"{program}-owner" for program in PROGRAMS)
    assert handed == {"operator", "roles", "tree", "postgres", *ZOOKEEPERS, *PROGRAMS, *owners, GATEWAY}


@pytest.mark.parametrize("name", [*ZOOKEEPERS, "tree"])
def test_secrets_of_zookeeper_are_mounted_by_their_reader_alone(name: str) -> None:
    """A server sees its own key; the users of all services are seen by the job that makes their directories."""
    assert [whose for whose, _ in secrets_of(name)] == [name]
    assert {other for other in SERVICES for whose, _ in secrets_of(other) if whose == name} == {"operator", name}


@pytest.mark.parametrize("name", ZOOKEEPERS)
def test_zookeeper_takes_clients_and_servers_over_tls_only(name: str) -> None:
    """What is in plain text is for its own container."""
    environment = SERVICES[name]["environment"]
    settings = dict(line.split("=", 1) for line in environment["ZOO_CFG_EXTRA"].split())
    assert SERVICES[name]["ports"][0].endswith(f":{settings['secureClientPort']}")
    assert settings["clientPort"] != settings["secureClientPort"]
    assert settings["clientPortAddress"] == "127.0.0.1"
    assert settings["sslQuorum"] == "true"
    assert settings["ssl.quorum.clientAuth"] == "need"
    assert ";" not in environment["ZOO_SERVERS"], "it would open a port in plain text"


@every_instance
def test_service_is_a_user_of_zookeeper(name: str) -> None:
    user = SERVICES[name]["environment"].get("COUNTINGHOUSE_ZOOKEEPER_USER_FILE")
    assert user == (None if name == ACQUIRER else "/run/secrets/zookeeper-user")


def test_gateway_has_what_callers_have_and_no_more() -> None:
    """An authority to believe. It calls with the tokens of its callers, and signs none."""
    service = SERVICES[GATEWAY]
    assert service["volumes"] == ["gateway-secrets:/run/secrets:ro"]
    assert service["environment"]["COUNTINGHOUSE_CA_FILE"] == "/run/secrets/ca.pem"
    assert "--no-locks" in service["command"]
    assert not re.search(r"--sign-in|--break-it|USER_FILE|TOKEN", str(service))


@every
def test_no_password_stands_in_the_file(name: str) -> None:
    """The one that the image of PostgreSQL asks for lets nobody in."""
    environment = SERVICES[name].get("environment", {})
    for variable, value in environment.items():
        assert not re.search(r"://[^@/]*:[^@/]*@", str(value)), variable
        assert "PASSWORD" not in variable or (name, value) == ("postgres", "none")
    assert not re.search(r"://[^@/ ]*:[^@/ ]*@", str(SERVICES[name].get("command", "")))
    rules = [line.split() for line in (FOLDER / "postgres/pg_hba.conf").read_text().splitlines() if line[0] != "#"]
    assert rules[:2] == [["local", "all", "postgres", "trust"], ["host", "all", "postgres", "all", "reject"]]
    assert rules[2:] == [["hostssl", "all", "all", "all", "scram-sha-256"]]


@every_instance
def test_instance_is_strict_and_changes_no_schema(name: str) -> None:
    environment = SERVICES[name]["environment"]
    service = service_of(name)
    assert environment["COUNTINGHOUSE_PROFILE"] == "production"
    assert environment["COUNTINGHOUSE_MIGRATE"] == "false"
    assert environment["COUNTINGHOUSE_INSTANCE"] == name
    assert f"//countinghouse_{service}@postgres/countinghouse_{service}?" in environment["COUNTINGHOUSE_DATABASE_URL"]
    assert SERVICES[name]["command"] == f"services.{service}.main"


@every_instance
def test_instance_is_asked_for_its_health_where_it_listens(name: str) -> None:
    """For its liveness: no interface is named. Readiness fails while ZooKeeper is frozen."""
    service = SERVICES[name]
    port = service["environment"]["COUNTINGHOUSE_LISTEN_PORT"]
    program, *given = service["healthcheck"]["test"][4:]
    named = [] if name == "acquirer" else ["--name", server_name(service_of(name))]  # the acquirer is known by its host
    assert (program, given) == ("services.runtime.grpc.probe", [*named, f"127.0.0.1:{port}"])
    assert service["ports"][0].endswith(f":{port}")


def test_every_volume_is_named_once_and_used() -> None:
    used = {volume.split(":")[0] for service in SERVICES.values() for volume in service.get("volumes", ())}
    assert {name for name in used if not name.startswith(".")} == set(parsed()["volumes"])


def test_faults_of_the_chaos_file_are_in_no_other() -> None:
    chaos = yaml.safe_load((FOLDER / "docker-compose.chaos.yml").read_text())["services"]
    assert set(chaos) == set(INSTANCES)
    assert "FAILPOINTS" not in FILE.read_text()


@pytest.mark.parametrize("files", [("docker-compose.yml",), ("docker-compose.yml", "docker-compose.chaos.yml")])
def test_compose_file_is_valid_for_docker_compose(files: tuple[str, ...]) -> None:
    if shutil.which("docker") is None:
        pytest.skip("no docker here")
    if subprocess.run(["docker", "compose", "version"], capture_output=True, check=False).returncode != 0:
        pytest.skip("this docker has no compose")
    named = [part for file in files for part in ("-f", str(FOLDER / file))]
    done = subprocess.run(["docker", "compose", *named, "config", "-q"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.fixture(scope="module")
def stages() -> list[str]:
    """Each stage of the Dockerfile, from its FROM on, comments left out."""
    text = "\n".join(line for line in (FOLDER / "Dockerfile").read_text().splitlines() if not line.startswith("#"))
    return re.split(r"^(?=FROM )", text, flags=re.MULTILINE)[1:]


class TestImage:
    """The Dockerfile."""

    def test_image_runs_as_an_unprivileged_user(self, stages: list[str]) -> None:
        assert re.findall(r"^USER (.*)$", stages[-1], re.MULTILINE) == ["countinghouse"]
        assert "--uid 10001" in stages[-1]

    def test_image_installs_pinned_packages_and_names_no_index(self, stages: list[str]) -> None:
        assert "--require-hashes" in stages[0]
        assert "requirements-runtime.lock" in stages[0]
        assert not re.search(r"://|--(extra-)?index|--trusted-host|--find-links", "".join(stages))

    def test_image_has_no_compiler(self, stages: list[str]) -> None:
        assert "--only-binary :all:" in stages[0]
        assert not re.search(r"apt-get|gcc|build-essential|pip", stages[-1])

    def test_image_is_bound_to_no_architecture(self, stages: list[str]) -> None:
        """The same file for amd64 and arm64."""
        assert [stage.split()[1] for stage in stages] == ["${PYTHON_IMAGE}"] * 2
        assert "\nARG PYTHON_IMAGE=python:3.13-slim\n" in (FOLDER / "Dockerfile").read_text()
        assert not re.search(r"amd64|arm64|x86_64|aarch64|--platform", "".join(stages))

    def test_every_volume_of_secrets_has_its_folder(self, stages: list[str]) -> None:
        """A volume takes its owner from there; without it only root could write."""
        folders = re.search(r"for reader in ([^;]*);", stages[-1])
        assert folders
        wanted = {volume.split(":")[1].removeprefix("/secrets/") for _, volume in secrets_of("operator")}
        assert wanted <= set(folders[1].split())
