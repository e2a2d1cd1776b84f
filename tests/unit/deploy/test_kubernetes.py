"""deploy/kubernetes, rendered: valid for Kubernetes, and nothing has more rights, secrets or ways than it needs."""

from __future__ import annotations

import itertools
import os
import re
import shutil
import stat
import subprocess
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from prometheus_client import CollectorRegistry

from services.devstack.authority import Authority
from services.devstack.files import SUPERUSER, zookeeper_user_file
from services.devstack.keys import CALLEES, ZOOKEEPER
from services.devstack.secret_distributor import SecretDistributor
from services.devstack.state import ACQUIRER, INTERFACES
from services.kernel.clock import SystemClock
from services.runtime.grpc.identity import Identity, server_name
from services.runtime.grpc.tls import TlsFiles
from services.runtime.metrics import CallMetrics
from services.runtime.settings import Settings
from services.runtime.zookeeper_paths import SERVER_NAME
from tests.fakes.clock import ManualClock

FOLDER = Path(__file__).parents[3] / "deploy" / "kubernetes"
#: Against whose schemas the objects are validated: the newest release that kubernetes-validate has.
RELEASE = "1.37"
NAME, COMPONENT = "app.kubernetes.io/name", "app.kubernetes.io/component"
JOBS = [*(f"{service}-{job}" for service in INTERFACES for job in ("migrate", "prune")), "roles"]
#: What people make beforehand: README.md lists it.
MADE_BEFORE = {"acquirer-credential", "postgresql-administrator"}
OUR_IMAGE = "countinghouse"

Object = dict[str, Any]


def loaded(folder: str) -> list[Object]:
    """The objects of a kustomization without other folders, as they stand in its files."""
    kustomization = yaml.safe_load((FOLDER / folder / "kustomization.yaml").read_text())
    objects: list[Object] = []
    for file in kustomization["resources"]:
        objects += yaml.safe_load_all((FOLDER / folder / file).read_text())
    return objects


def rendered(folder: str) -> list[Object]:
    """The objects as kubectl renders them; the test is skipped without it."""
    if shutil.which("kubectl") is None:
        pytest.skip("no kubectl here")
    done = subprocess.run(
        ["kubectl", "kustomize", str(FOLDER / folder)], capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
    return list(yaml.safe_load_all(done.stdout))


def name_of(thing: Object) -> str:
    return f"{thing['kind']}/{thing['metadata']['name']}"


BASE = {name_of(each): each for each in loaded("base")}
ENSEMBLE = {name_of(each): each for each in loaded("zookeeper")}


def template_of(workload: Object) -> Object:
    """Its pods' template."""
    spec = workload["spec"]["jobTemplate"]["spec"] if workload["kind"] == "CronJob" else workload["spec"]
    template: Object = spec["template"]
    return template


TEMPLATES: Mapping[str, Object] = {
    name: template_of(each)
    for name, each in {**BASE, **ENSEMBLE}.items()
    if each["kind"] in {"Deployment", "StatefulSet", "Job", "CronJob"}
}
CONTAINERS = {
    f"{name}/{container['name']}": container
    for name, template in TEMPLATES.items()
    for container in (*template["spec"].get("initContainers", ()), *template["spec"]["containers"])
}
every_service = pytest.mark.parametrize("service", INTERFACES)
every_template = pytest.mark.parametrize("name", TEMPLATES)
every_container = pytest.mark.parametrize("name", CONTAINERS)


def pod(service: str) -> Object:
    spec: Object = TEMPLATES[f"Deployment/{service}"]["spec"]
    return spec


def main_container(service: str) -> Object:
    (container,) = pod(service)["containers"]
    return dict(container)


def environment(container: Object) -> dict[str, str]:
    """The variables that have a value of their own."""
    return {each["name"]: each["value"] for each in container.get("env", ()) if "value" in each}


def found_under(thing: Any, key: str) -> Iterator[Any]:
    """Every value that stands under a key, at any depth."""
    if isinstance(thing, dict):
        if key in thing:
            yield thing[key]
        for value in thing.values():
            yield from found_under(value, key)
    elif isinstance(thing, list):
        for value in thing:
            yield from found_under(value, key)


def secrets_of(spec: Object) -> dict[str, set[str]]:
    """The Secrets that a pod mounts or reads, and of each the keys; all of them: `*`."""
    named: dict[str, set[str]] = {}
    for secret in found_under(spec, "secret"):
        name = secret.get("name") or secret["secretName"]
        named.setdefault(name, set()).update({item["key"] for item in secret.get("items", ())} or {"*"})
    for key in ("secretKeyRef", "secretRef", "nodePublishSecretRef"):
        for secret in found_under(spec, key):
            named.setdefault(secret["name"], set()).add(secret.get("key", "*"))
    return named


def certificate_of(spec: Object) -> dict[str, str]:
    """What a pod asks cert-manager's driver for."""
    (volume,) = (each["csi"] for each in spec["volumes"] if "csi" in each)
    assert volume["driver"] == "csi.cert-manager.io"
    return {key.partition("/")[2]: value for key, value in volume["volumeAttributes"].items()}


def selects(selector: Object, labels: Mapping[str, str]) -> bool:
    """Whether a label selector holds for a pod."""
    wanted = selector.get("matchLabels", {}).items() <= labels.items()
    return wanted and all(
        each["operator"] == "In" and labels.get(each["key"]) in each["values"]
        for each in selector.get("matchExpressions", ())
    )


def policies_of(labels: Mapping[str, str]) -> list[Object]:
    return [
        each["spec"]
        for each in (*BASE.values(), *ENSEMBLE.values())
        if each["kind"] == "NetworkPolicy" and selects(each["spec"]["podSelector"], labels)
    ]


def ports_open(rules: list[Object]) -> set[int]:
    return {port["port"] for rule in rules for port in rule["ports"]}


class TestValid:
    """Against the schemas of Kubernetes, in which no unknown field is allowed."""

    @pytest.mark.parametrize("name", [*BASE, *ENSEMBLE])
    def test_object_is_valid(self, name: str) -> None:
        kubernetes_validate.validate({**BASE, **ENSEMBLE}[name], RELEASE, strict=True)

    def test_release_is_the_newest_that_the_validator_has(self) -> None:
        assert kubernetes_validate.latest_version().startswith(f"{RELEASE}.")

    def test_unknown_field_is_invalid(self) -> None:
        wrong = {**BASE["Service/order"], "spec": {"ports": [], "selectors": {}}}
        with pytest.raises(kubernetes_validate.ValidationError):
            kubernetes_validate.validate(wrong, RELEASE, strict=True)

    @pytest.mark.parametrize("folder", ["base", "example"])
    def test_rendered_object_is_valid(self, folder: str) -> None:
        objects = rendered(folder)
        for each in objects:
            kubernetes_validate.validate(each, RELEASE, strict=True)
        expected = {*BASE, *ENSEMBLE} if folder == "example" else set(BASE)
        assert {name_of(each) for each in objects} == expected
        namespaces = {each["metadata"].get("namespace") for each in objects if each["kind"] != "Namespace"}
        assert namespaces == {"countinghouse"}

    def test_example_puts_its_addresses_and_its_image_everywhere(self) -> None:
        objects = {name_of(each): each for each in rendered("example")}
        addresses = objects["ConfigMap/addresses"]["data"]
        assert addresses["zookeeper"] == ",".join(f"zookeeper-{number}.zookeeper:2181" for number in range(3))
        assert addresses["postgresql"] == "database.example:5432"
        images = {str(image).rpartition(":")[0] for image in found_under(list(objects.values()), "image")}
        assert images == {"registry.example/countinghouse", "zookeeper"}

    def test_every_file_is_listed(self) -> None:
        for folder in ("base", "zookeeper"):
            listed = yaml.safe_load((FOLDER / folder / "kustomization.yaml").read_text())["resources"]
            there = {path.name for path in (FOLDER / folder).iterdir()} - {"kustomization.yaml"}
            assert (len(listed), set(listed)) == (len(there), there)


class TestRights:
    """What a container may do on its node."""

    @every_template
    def test_pod_is_not_root_and_has_no_token_of_the_cluster(self, name: str) -> None:
        spec = TEMPLATES[name]["spec"]
        context = spec["securityContext"]
        assert context["runAsNonRoot"] is True
        assert context["runAsUser"] == (1000 if name == "StatefulSet/zookeeper" else 10001)
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}
        assert spec["automountServiceAccountToken"] is False
        assert not {"hostNetwork", "hostPID", "hostIPC", "hostUsers"} & set(spec)
        assert not list(found_under(spec, "hostPath"))

    @every_container
    def test_container_has_no_more_rights_than_needed(self, name: str) -> None:
        assert CONTAINERS[name]["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": name != "StatefulSet/zookeeper/zookeeper",
            "capabilities": {"drop": ["ALL"]},
        }

    @every_container
    def test_container_has_requests_and_limits(self, name: str) -> None:
        resources = CONTAINERS[name]["resources"]
        assert set(resources["requests"]) == set(resources["limits"]) == {"cpu", "memory"}

    def test_namespace_refuses_pods_with_more_rights(self) -> None:
        assert (
            BASE["Namespace/countinghouse"]["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
        )

    def test_operator_may_change_what_it_hands_out_and_nothing_else(self) -> None:
        (rule,) = BASE["Role/operator"]["rules"]
        ours = {each["metadata"]["name"] for each in BASE.values() if each["kind"] == "Secret"}
        assert (rule["resources"], rule["verbs"], set(rule["resourceNames"])) == (["secrets"], ["patch"], ours)
        assert {name for name, each in BASE.items() if each["kind"].startswith("ClusterRole")} == set()
        reading = [
            name
            for name, container in CONTAINERS.items()
            if any(mount["name"] == "account" for mount in container.get("volumeMounts", ()))
        ]
        assert reading == ["Deployment/operator/publisher"]

    def test_only_the_distributor_sees_the_signing_key(self) -> None:
        claims = {name for name in TEMPLATES if list(found_under(TEMPLATES[name], "persistentVolumeClaim"))}
        assert claims == {"Deployment/operator"}
        mounting = [
            name
            for name, container in CONTAINERS.items()
            if any(mount["name"] == "keys" for mount in container.get("volumeMounts", ()))
        ]
        assert mounting == ["Deployment/operator/distributor"]

    def test_image_is_named_once(self) -> None:
        for name, container in CONTAINERS.items():
            assert container["image"] == ("zookeeper" if name.startswith("StatefulSet") else OUR_IMAGE)
        (image,) = yaml.safe_load((FOLDER / "base/kustomization.yaml").read_text())["images"]
        assert image == {"name": OUR_IMAGE, "newTag": _version()}


def _version() -> str:
    return str(tomllib.loads((FOLDER.parents[1] / "pyproject.toml").read_text())["project"]["version"])


class TestSecrets:
    """By reference only, and each for its reader only."""

    def test_no_secret_has_a_value(self) -> None:
        for each in (*BASE.values(), *ENSEMBLE.values()):
            if each["kind"] == "Secret":
                assert set(each) == {"apiVersion", "kind", "metadata", "type"}
        for container in CONTAINERS.values():
            for variable, value in environment(container).items():
                assert not re.search(r"://[^@/]*:[^@/]*@", value), variable
                assert not re.search("PASSWORD|SECRET|TOKEN$", variable)

    @every_service
    def test_service_sees_its_own_secrets_and_no_others(self, service: str) -> None:
        tokens = {f"{callee}.token" for callee in CALLEES.get(service, ()) if callee != ACQUIRER}
        wanted = {f"{service}-secrets": {"verify.jwks", "revoked.json", "pgpass", "zookeeper-user"} | tokens}
        if ACQUIRER in CALLEES.get(service, ()):
            wanted["acquirer-credential"] = {"acquirer.token"}
        assert secrets_of(pod(service)) == wanted

    @pytest.mark.parametrize("job", JOBS)
    def test_job_sees_the_password_it_needs(self, job: str) -> None:
        (template,) = (each for name, each in TEMPLATES.items() if name.partition("/")[2] == job)
        service = job.partition("-")[0]
        owner = {f"{service}-owner-secrets": {"pgpass"}}
        administrator = {"roles-secrets": {"pgpass"}, "postgresql-administrator": {"pgpass"}}
        assert secrets_of(template["spec"]) == (administrator if job == "roles" else owner)

    def test_users_of_zookeeper_are_seen_by_the_job_that_makes_their_directories(self) -> None:
        """The servers have a digest of the superuser's password, and their authority is that of the pods."""
        assert secrets_of(TEMPLATES["Job/tree"]["spec"]) == {"tree-secrets": {SUPERUSER, *INTERFACES}}
        assert secrets_of(TEMPLATES["StatefulSet/zookeeper"]["spec"]) == {"zookeeper-secrets": {"superuser"}}
        (authorities,) = found_under(TEMPLATES["Job/tree"]["spec"], "configMap")
        assert authorities == {"name": "authorities", "items": [{"key": "ca.pem", "path": "ca.pem"}]}

    def test_secret_is_of_one_reader_and_the_operator_fills_it(self) -> None:
        readers = {
            secret: {
                f"{template['metadata']['labels'][NAME]}"
                for template in TEMPLATES.values()
                if secret in secrets_of(template["spec"])
            }
            for secret in {name for template in TEMPLATES.values() for name in secrets_of(template["spec"])}
        }
        assert {len(each) for each in readers.values()} == {1}
        made = {each["metadata"]["name"] for each in BASE.values() if each["kind"] == "Secret"}
        assert set(readers) - MADE_BEFORE == made
        published = CONTAINERS["Deployment/operator/publisher"]["args"][4:]
        assert {f"{reader}-secrets" for reader in published} == made

    def test_operator_hands_out_every_key_that_a_pod_waits_for(self, tmp_path: Path) -> None:
        option, server, _, *given = CONTAINERS["Deployment/operator/distributor"]["args"][3:]
        assert option == "--ensemble"
        counts = {service: int(count) for service, _, count in (each.partition("=") for each in given)}
        assert set(counts) == set(INTERFACES)
        SecretDistributor(tmp_path, counts, ManualClock(), ensemble=[server]).distribute()
        for template in TEMPLATES.values():
            for secret, keys in secrets_of(template["spec"]).items():
                if secret not in MADE_BEFORE:
                    there = {path.name for path in (tmp_path / secret.removesuffix("-secrets")).iterdir()}
                    assert keys <= there, secret

    def test_commands_in_the_operator_are_the_superuser_of_zookeeper(self) -> None:
        """By name: the authority of its servers is not the operator's own."""
        told = environment(CONTAINERS["Deployment/operator/distributor"])
        user = zookeeper_user_file(Path(told["COUNTINGHOUSE_DATA"]), SUPERUSER)
        assert told["COUNTINGHOUSE_ZOOKEEPER_USER_FILE"] == str(user)

    def test_readme_names_what_has_to_be_made_before(self) -> None:
        page = (FOLDER / "README.md").read_text()
        configured = {each["name"] for template in TEMPLATES.values() for each in found_under(template, "configMap")}
        before = configured - {name.partition("/")[2] for name in BASE if name.startswith("ConfigMap/")}
        for name in (MADE_BEFORE | before) - {"kube-root-ca.crt"}:
            assert f"`{name}`" in page

    @every_service
    def test_pod_has_a_certificate_of_its_own(self, service: str) -> None:
        asked = certificate_of(pod(service))
        assert asked["uri-sans"] == Identity(service, "${POD_NAME}").spiffe_id
        assert asked["dns-names"] == server_name(service)
        assert {"server auth", "client auth"} <= set(asked["key-usages"].split(","))
        assert asked["fs-group"] == str(pod(service)["securityContext"]["fsGroup"])


class TestAssemble:
    """The script that writes identity.pem, pgpass and ca.pem, run on folders of the test."""

    def assemble(self, root: Path) -> subprocess.CompletedProcess[str]:
        script = BASE["ConfigMap/assemble"]["data"]["assemble.sh"].replace("/run/", f"{root}/")
        command = ["sh", "-c", script, "assemble.sh", "once"]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)

    @pytest.fixture
    def root(self, tmp_path: Path) -> Path:
        for name in ("secrets", "certificate", "identity", "authority"):
            (tmp_path / name).mkdir()
        authority = Authority(tmp_path / "authority", "cluster", SystemClock())
        key, _, certificate = authority.issue(("order.countinghouse",)).partition(b"-----BEGIN CERTIFICATE")
        (tmp_path / "certificate/tls.key").write_bytes(key)
        (tmp_path / "certificate/tls.crt").write_bytes(b"-----BEGIN CERTIFICATE" + certificate)
        (tmp_path / "secrets/pgpass").write_text("*:*:*:countinghouse_order:pw\n")
        (tmp_path / "secrets/pgpass").chmod(0o440)
        return tmp_path

    def test_files_are_as_the_services_read_them(self, root: Path) -> None:
        assert self.assemble(root).returncode == 0
        assert {path.name for path in (root / "identity").iterdir()} == {"identity.pem", "pgpass"}
        for file in (root / "identity").iterdir():
            assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert (root / "identity/pgpass").read_text() == "*:*:*:countinghouse_order:pw\n"
        TlsFiles(root / "authority/ca.pem", root / "identity/identity.pem")

    def test_file_is_replaced_only_when_its_source_has_changed(self, root: Path) -> None:
        self.assemble(root)
        before = {path.name: path.stat().st_ino for path in (root / "identity").iterdir()}
        (root / "secrets/pgpass").chmod(0o640)
        (root / "secrets/pgpass").write_text("*:*:*:countinghouse_order:other\n")
        assert self.assemble(root).returncode == 0
        after = {path.name: path.stat().st_ino for path in (root / "identity").iterdir()}
        assert after["identity.pem"] == before["identity.pem"]
        assert after["pgpass"] != before["pgpass"]

    def test_job_has_no_certificate(self, root: Path) -> None:
        (root / "certificate/tls.key").unlink()
        assert self.assemble(root).returncode == 0
        assert [path.name for path in (root / "identity").iterdir()] == ["pgpass"]

    def test_zookeeper_has_no_passwords_and_a_copy_of_its_authorities(self, root: Path) -> None:
        (root / "secrets/pgpass").unlink()
        (root / "authorities").mkdir()
        for authorities in ("old", "old and new"):
            (root / "authorities/ca.pem").write_text(authorities)
            assert self.assemble(root).returncode == 0
            assert {path.name for path in (root / "identity").iterdir()} == {"identity.pem", "ca.pem"}
            assert (root / "identity/ca.pem").read_text() == authorities


class TestServices:
    """The Deployments, and what keeps them serving."""

    @every_service
    def test_variables_are_settings_and_strict(self, service: str, monkeypatch: pytest.MonkeyPatch) -> None:
        container = main_container(service)
        fields = {f"COUNTINGHOUSE_{field.upper()}" for field in Settings.model_fields}
        assert {each["name"] for each in container["env"]} - fields == {"POSTGRESQL"}
        for variable, value in environment(container).items():
            monkeypatch.setenv(variable, value)
        settings = Settings()
        ports = {port["name"]: port["containerPort"] for port in container["ports"]}
        assert ports == {
            "public": settings.listen_port,
            "internal": settings.internal_port,
            "metrics": settings.metrics_port,
        }
        assert (settings.profile, settings.migrate) == ("production", False)
        assert str(settings.identity_file) == "/run/identity/identity.pem"
        assert str(settings.zookeeper_user_file) == "/run/secrets/zookeeper-user"
        mounts = {mount["mountPath"] for mount in container["volumeMounts"]}
        files = [settings.identity_file, settings.ca_file, settings.verify_key_file, settings.revoked_file]
        assert {str(file.parent) for file in files if file} <= mounts
        assert f"//countinghouse_{service}@$(POSTGRESQL)/countinghouse_{service}?" in settings.database_url

    @every_service
    def test_ports_are_those_of_compose(self, service: str) -> None:
        compose = yaml.safe_load((FOLDER.parent / "docker-compose.yml").read_text())["services"]
        here, there = environment(main_container(service)), compose[f"{service}-1"]["environment"]
        for variable in ("COUNTINGHOUSE_LISTEN_PORT", "COUNTINGHOUSE_INTERNAL_PORT", "COUNTINGHOUSE_METRICS_PORT"):
            assert here[variable] == there[variable]

    @every_service
    def test_probes_ask_for_liveness_and_for_readiness(self, service: str) -> None:
        container = main_container(service)
        address = f"127.0.0.1:{environment(container)['COUNTINGHOUSE_LISTEN_PORT']}"
        asked = ["python", "-P", "-m", "services.runtime.grpc.probe", "--name", server_name(service), address]
        assert container["livenessProbe"]["exec"]["command"] == asked
        assert container["startupProbe"]["exec"]["command"] == asked
        assert container["readinessProbe"]["exec"]["command"] == [*asked, INTERFACES[service]]
        assert all(container[each]["timeoutSeconds"] >= 5 for each in ("livenessProbe", "readinessProbe"))

    @every_service
    def test_pod_has_time_to_stop(self, service: str) -> None:
        """The pause before SIGTERM, `drain_s`, and the three seconds besides (`cluster_member.py`)."""
        pause_s = main_container(service)["lifecycle"]["preStop"]["sleep"]["seconds"]
        assert pod(service)["terminationGracePeriodSeconds"] > pause_s + Settings().drain_s + 3

    @every_service
    def test_two_instances_are_on_two_nodes_and_one_goes_at_a_time(self, service: str) -> None:
        deployment = BASE[f"Deployment/{service}"]["spec"]
        labels = TEMPLATES[f"Deployment/{service}"]["metadata"]["labels"]
        assert deployment["replicas"] == 2
        assert deployment["strategy"]["rollingUpdate"] == {"maxUnavailable": 0, "maxSurge": 1}
        spread = {each["topologyKey"]: each for each in pod(service)["topologySpreadConstraints"]}
        assert spread["kubernetes.io/hostname"]["whenUnsatisfiable"] == "DoNotSchedule"
        budget = BASE[f"PodDisruptionBudget/{service}"]["spec"]
        assert budget["maxUnavailable"] == 1
        for selector in (
            budget["selector"],
            deployment["selector"],
            *(each["labelSelector"] for each in spread.values()),
        ):
            selected = {name for name in TEMPLATES if selects(selector, TEMPLATES[name]["metadata"]["labels"])}
            assert selected == {f"Deployment/{service}"}
        assert selects({"matchLabels": BASE[f"Service/{service}"]["spec"]["selector"]}, labels)

    @every_service
    def test_metric_by_which_instances_are_added_is_one_of_the_service(self, service: str) -> None:
        scaler = BASE[f"HorizontalPodAutoscaler/{service}"]["spec"]
        (metric,) = scaler["metrics"]
        registry = CollectorRegistry()
        CallMetrics(registry)
        served = {sample.name for family in registry.collect() for sample in family.samples}
        assert metric["pods"]["metric"]["name"] in served
        assert scaler["scaleTargetRef"]["name"] == service
        assert scaler["minReplicas"] == BASE[f"Deployment/{service}"]["spec"]["replicas"]

    @every_service
    def test_schema_is_changed_and_pruned_by_the_owner(self, service: str) -> None:
        for kind, job in (("Job", "migrate"), ("CronJob", "prune")):
            container = CONTAINERS[f"{kind}/{service}-{job}/{job}"]
            assert container["args"] == [f"services.{service}.main", job]
            url = environment(container)["COUNTINGHOUSE_DATABASE_URL"]
            assert f"//countinghouse_{service}_owner@$(POSTGRESQL)/countinghouse_{service}?" in url
        migrating = environment(CONTAINERS[f"Job/{service}-migrate/migrate"])
        assert migrating["COUNTINGHOUSE_SERVICE_ROLE"] == f"countinghouse_{service}"
        assert migrating["COUNTINGHOUSE_CHECKER_ROLE"] == "countinghouse_checker"

    def test_services_are_alike_but_for_their_names_and_ports(self) -> None:
        """What is changed in one of the three files is changed in all; only the payment service calls others."""
        texts = []
        for service in INTERFACES:
            text = (FOLDER / f"base/{service}.yaml").read_text().partition("\n")[2]
            text = re.sub(rf"\b{service}\b|{service.capitalize()}(?=Service)|countinghouse_{service}", "X", text)
            text = re.sub(r"50[01][567]1|schedule: .*", "N", text)
            texts.append([line for line in text.splitlines() if line.strip()])
        (payment,) = (text for text, service in zip(texts, INTERFACES, strict=True) if service == "payment")
        order, ledger = (text for text, service in zip(texts, INTERFACES, strict=True) if service != "payment")
        assert order == ledger
        remaining = iter(payment)
        assert all(line in remaining for line in order)


class TestNetwork:
    """Who may reach whom."""

    def test_everything_is_denied_first(self) -> None:
        policy = BASE["NetworkPolicy/default-deny"]["spec"]
        assert policy == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}

    @every_template
    def test_pod_is_covered_by_a_policy_of_its_own(self, name: str) -> None:
        labels = TEMPLATES[name]["metadata"]["labels"]
        own = [each for each in policies_of(labels) if each["podSelector"]]
        assert len(own) == 1
        assert "Egress" in own[0]["policyTypes"]

    @every_service
    def test_internal_port_is_open_to_the_services_that_call_it_only(self, service: str) -> None:
        internal = int(environment(main_container(service))["COUNTINGHOUSE_INTERNAL_PORT"])
        labels = TEMPLATES[f"Deployment/{service}"]["metadata"]["labels"]
        rules = [rule for policy in policies_of(labels) for rule in policy.get("ingress", ())]
        callers = {
            name
            for rule in rules
            if internal in ports_open([rule])
            for peer, name in itertools.product(rule["from"], TEMPLATES)
            if selects(peer["podSelector"], TEMPLATES[name]["metadata"]["labels"])
        }
        assert callers == {f"Deployment/{caller}" for caller in INTERFACES if service in CALLEES.get(caller, ())}

    @every_service
    def test_service_reaches_what_it_calls_and_no_more(self, service: str) -> None:
        labels = TEMPLATES[f"Deployment/{service}"]["metadata"]["labels"]
        rules = [rule for policy in policies_of(labels) for rule in policy.get("egress", ())]
        wanted = {53, 2181, 5432}
        for callee in CALLEES.get(service, ()):
            internal = callee != ACQUIRER and environment(main_container(callee))["COUNTINGHOUSE_INTERNAL_PORT"]
            wanted.add(int(internal or BASE["ConfigMap/addresses"]["data"]["acquirer"].rpartition(":")[2]))
        assert ports_open(rules) == wanted

    @pytest.mark.parametrize("job", JOBS)
    def test_job_reaches_the_database_and_is_reached_by_none(self, job: str) -> None:
        (labels,) = (each["metadata"]["labels"] for name, each in TEMPLATES.items() if name.partition("/")[2] == job)
        policies = policies_of(labels)
        assert ports_open([rule for policy in policies for rule in policy.get("egress", ())]) == {53, 5432}
        assert not [rule for policy in policies for rule in policy.get("ingress", ())]

    def test_job_of_the_directories_reaches_zookeeper_and_is_reached_by_none(self) -> None:
        policies = policies_of(TEMPLATES["Job/tree"]["metadata"]["labels"])
        assert ports_open([rule for policy in policies for rule in policy.get("egress", ())]) == {53, 2181}
        assert not [rule for policy in policies for rule in policy.get("ingress", ())]


SERVER = CONTAINERS["StatefulSet/zookeeper/zookeeper"]
SETTINGS = dict(line.split("=", 1) for line in environment(SERVER)["ZOO_CFG_EXTRA"].split())


class TestEnsemble:
    """ZooKeeper's directories, and the optional servers."""

    def test_directories_are_made_by_the_operator_as_in_compose(self) -> None:
        compose = yaml.safe_load((FOLDER.parent / "docker-compose.yml").read_text())["services"]["tree"]
        (container,) = TEMPLATES["Job/tree"]["spec"]["containers"]
        program, option, _, folder = compose["command"].split()
        assert container["args"] == [program, option, "$(ZOOKEEPER)", folder]
        (variable,) = container["env"]
        assert variable == {
            "name": "ZOOKEEPER",
            "valueFrom": {"configMapKeyRef": {"name": "addresses", "key": "zookeeper"}},
        }
        assert folder in {mount["mountPath"] for mount in container["volumeMounts"]}

    def test_every_server_knows_all_three(self) -> None:
        spec = ENSEMBLE["StatefulSet/zookeeper"]["spec"]
        assert spec["serviceName"] == ENSEMBLE["Service/zookeeper"]["metadata"]["name"] == "zookeeper"
        servers = environment(SERVER)["ZOO_SERVERS"].split()
        assert servers == [
            f"server.{number + 1}=zookeeper-{number}.zookeeper:2888:3888" for number in range(spec["replicas"])
        ], "a port after a semicolon would be in plain text"
        assert ENSEMBLE["PodDisruptionBudget/zookeeper"]["spec"]["maxUnavailable"] == 1

    def test_server_starts_with_its_number_and_with_the_digest_of_the_superuser(self, tmp_path: Path) -> None:
        SecretDistributor(tmp_path, {}, ManualClock(), ensemble=[ZOOKEEPER]).distribute()
        script = SERVER["args"][0].replace("/run/secrets", str(tmp_path / ZOOKEEPER))
        script = script.replace("/docker-entrypoint.sh zkServer.sh start-foreground", "env")
        variables = {"PATH": os.environ["PATH"], "HOSTNAME": "zookeeper-2", "ZOO_CFG_EXTRA": "sslQuorum=true"}
        done = subprocess.run(
            [*SERVER["command"], script], env=variables, capture_output=True, text=True, check=True, timeout=30
        )
        seen = dict(line.split("=", 1) for line in done.stdout.splitlines())
        assert seen["ZOO_MY_ID"] == "3"
        given = (tmp_path / ZOOKEEPER / "superuser").read_text()
        assert given.startswith("DigestAuthenticationProvider.superDigest=super:")
        assert seen["ZOO_CFG_EXTRA"] == f"sslQuorum=true {given}"

    def test_clients_and_servers_connect_over_tls_only(self) -> None:
        """What is in plain text is for the probes in the container."""
        (client,) = (port["containerPort"] for port in SERVER["ports"] if port["name"] == "client")
        assert SETTINGS["secureClientPort"] == str(client) == "2181"
        assert (SETTINGS["clientPort"], SETTINGS["clientPortAddress"]) == ("2182", "127.0.0.1")
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            assert "/dev/tcp/127.0.0.1/2182 " in SERVER[probe]["exec"]["command"][2]
        assert (SETTINGS["sslQuorum"], SETTINGS["ssl.quorum.clientAuth"]) == ("true", "need")

    def test_tls_is_as_in_compose_but_for_files_and_names(self) -> None:
        compose = yaml.safe_load((FOLDER.parent / "docker-compose.yml").read_text())["services"]["zoo1"]
        there = dict(line.split("=", 1) for line in compose["environment"]["ZOO_CFG_EXTRA"].split())
        assert {name for name in SETTINGS if SETTINGS[name] != there.get(name)} == {
            *(f"ssl.{store}.location" for store in ("keyStore", "trustStore", "quorum.keyStore", "quorum.trustStore")),
            *("quorumListenOnAllIPs", "ssl.quorum.hostnameVerification", "fips-mode"),
        }
        assert set(there) <= set(SETTINGS)

    def test_server_is_known_by_the_names_in_its_certificate(self) -> None:
        """By one to clients, and by its own to the other servers, which believe the services' authority too."""
        asked = certificate_of(TEMPLATES["StatefulSet/zookeeper"]["spec"])
        own = "${POD_NAME}.zookeeper"
        assert asked["dns-names"].split(",") == [SERVER_NAME, own, f"{own}.${{POD_NAMESPACE}}.svc.cluster.local"]
        assert asked["key-encoding"] == "PKCS8"
        assert {"server auth", "client auth"} <= set(asked["key-usages"].split(","))
        assert asked["fs-group"] == str(TEMPLATES["StatefulSet/zookeeper"]["spec"]["securityContext"]["fsGroup"])
        assert (SETTINGS["ssl.quorum.hostnameVerification"], SETTINGS["fips-mode"]) == ("true", "false")

    def test_services_the_operator_and_its_job_reach_it(self) -> None:
        rules = ENSEMBLE["NetworkPolicy/zookeeper"]["spec"]["ingress"]
        clients = {
            name
            for rule in rules
            if 2181 in ports_open([rule])
            for peer, name in itertools.product(rule["from"], TEMPLATES)
            if selects(peer["podSelector"], TEMPLATES[name]["metadata"]["labels"])
        }
        assert clients == {"Deployment/operator", "Job/tree", *(f"Deployment/{service}" for service in INTERFACES)}
