"""The manifests of docker/kubernetes: rendered by kubectl itself, valid by the schemas of Kubernetes, and in agreement
with each other, with the images, and with the settings and routes of the service. No cluster is needed.
"""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from api.gate.access import SCOPES
from store import keys
from store.db import Database
from store.upgrade import upgrade
from worker.settings import WorkerSettings

ROOT = Path(__file__).resolve().parents[2]
KUBECTL = Path(sys.executable).with_name("kubectl")
OVERLAYS = ("cpu", "gpu")
NEWEST, OLDEST = kubernetes_validate.latest_version(), "1.33"
"""The oldest release that its makers still looked after when this was written."""
Resource = dict[str, Any]


@pytest.fixture(scope="session")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Resource]]:
    """Each overlay as a cluster gets it, with the secrets that docker/init.sh makes."""
    root = tmp_path_factory.mktemp("checkout")
    shutil.copytree(ROOT / "docker/kubernetes", root / "docker/kubernetes", ignore=shutil.ignore_patterns("secrets"))
    for name in ("docker/init.sh", ".env.example"):
        shutil.copy(ROOT / name, root / name)
    subprocess.run(["sh", root / "docker/init.sh"], check=True, capture_output=True)
    return {name: list(_render(root, name)) for name in OVERLAYS}


def _render(root: Path, overlay: str) -> Iterator[Resource]:
    folder = root / "docker/kubernetes/overlays" / overlay
    shutil.copytree(root / "docker/secrets", folder / "secrets")
    done = subprocess.run([KUBECTL, "kustomize", folder], check=True, capture_output=True, text=True)
    yield from yaml.safe_load_all(done.stdout)


@pytest.fixture(params=OVERLAYS)
def resources(rendered: dict[str, list[Resource]], request: pytest.FixtureRequest) -> list[Resource]:
    return rendered[request.param]


def of_kind(resources: list[Resource], *kinds: str) -> list[Resource]:
    return [resource for resource in resources if resource["kind"] in kinds]


def named(resources: list[Resource], kind: str, name: str) -> Resource:
    (found,) = (one for one in of_kind(resources, kind) if one["metadata"]["name"] == name)
    return found


def pods(resources: list[Resource]) -> dict[str, Resource]:
    """The templates, by the name of what makes pods of them."""
    makers = of_kind(resources, "Deployment", "StatefulSet", "Job")
    return {maker["metadata"]["name"]: maker["spec"]["template"] for maker in makers}


def containers(pod: Resource) -> list[Resource]:
    return [*pod["spec"].get("initContainers", ()), *pod["spec"]["containers"]]


def selected(resources: list[Resource], labels: dict[str, str]) -> list[Resource]:
    return [pod for pod in pods(resources).values() if labels.items() <= pod["metadata"]["labels"].items()]


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
def test_kubernetes_knows_every_field(resources, version):
    for resource in resources:
        kubernetes_validate.validate(resource, version, strict=True)


def test_every_setting_exists(resources):
    known = {f"TID_{name.upper()}" for name in WorkerSettings.model_fields}
    config = [one for one in of_kind(resources, "ConfigMap") if one["metadata"]["name"].startswith("tid-settings")]
    (settings,) = (one["data"] for one in config)
    named = {entry["name"] for pod in pods(resources).values() for c in containers(pod) for entry in c.get("env", ())}
    assert {name for name in {*settings, *named} if name.startswith("TID_")} <= known
    (secrets,) = (one for one in of_kind(resources, "Secret") if one["metadata"]["name"].startswith("tid-secrets"))
    assert {name.upper() for name in secrets["data"]} - {"TID_ADMIN_KEY"} <= known


def test_the_settings_can_be_used(resources, monkeypatch, tmp_path):
    """Read as in a pod: the variables of its ConfigMap, and the Secret as the kubelet lays it down, by links."""
    (settings,) = (one for one in of_kind(resources, "ConfigMap") if one["metadata"]["name"].startswith("tid-settings"))
    (secrets,) = (one for one in of_kind(resources, "Secret") if one["metadata"]["name"].startswith("tid-secrets"))
    data = tmp_path / "..2026_01_01"
    data.mkdir()
    (tmp_path / "..data").symlink_to(data.name)
    for name in secrets["data"]:
        (data / name).write_text("postgresql://u:p@db/tid" if name == "tid_database_url" else "redis://broker:6379/0")
        (tmp_path / name).symlink_to(f"..data/{name}")
    for name, value in {**settings["data"], "TID_SECRETS_DIR": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    read = WorkerSettings()
    assert (read.database_url, read.broker_url) == ("postgresql+psycopg://u:p@db/tid", "redis://broker:6379/0")
    worker = named(resources, "StatefulSet", "tid-worker")["spec"]["template"]["spec"]
    assert worker["terminationGracePeriodSeconds"] >= read.terminate_grace_seconds + 30
    mounts = [mount["mountPath"] for mount in worker["containers"][0]["volumeMounts"]]
    assert {str(read.home), settings["data"]["TID_SECRETS_DIR"], *map(str, read.data_roots)} <= set(mounts)
    api = named(resources, "Deployment", "tid-api")["spec"]["template"]["spec"]["containers"][0]
    assert str(read.uploads) in [mount["mountPath"] for mount in api["volumeMounts"]]


def test_what_is_referred_to_exists(resources):
    there = {(one["kind"], one["metadata"]["name"]): one for one in resources}
    for pod in pods(resources).values():
        if "serviceAccountName" in pod["spec"]:
            assert ("ServiceAccount", pod["spec"]["serviceAccountName"]) in there
        templates = [t["metadata"]["name"] for t in _claims_of(resources, pod)]
        volumes = {volume["name"] for volume in pod["spec"].get("volumes", ())} | set(templates)
        for volume in pod["spec"].get("volumes", ()):
            for kind, name, items in _sources(volume):
                assert (kind, name) in there
                assert {item["key"] for item in items} <= there[kind, name].get("data", {}).keys()
        for container in containers(pod):
            assert {mount["name"] for mount in container.get("volumeMounts", ())} <= volumes
            for source in container.get("envFrom", ()):
                assert ("ConfigMap", source["configMapRef"]["name"]) in there
    for maker in of_kind(resources, "StatefulSet"):
        assert ("Service", maker["spec"]["serviceName"]) in there


def _claims_of(resources: list[Resource], pod: Resource) -> list[Resource]:
    return [
        claim
        for maker in of_kind(resources, "StatefulSet")
        if maker["spec"]["template"] is pod
        for claim in maker["spec"].get("volumeClaimTemplates", ())
    ]


def _sources(volume: Resource) -> Iterator[tuple[str, str, list[Resource]]]:
    if "secret" in volume:
        yield "Secret", volume["secret"]["secretName"], volume["secret"].get("items", [])
    elif "configMap" in volume:
        yield "ConfigMap", volume["configMap"]["name"], volume["configMap"].get("items", [])
    elif "persistentVolumeClaim" in volume:
        yield "PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"], []


def test_every_selector_finds_its_pods(resources):
    for maker in of_kind(resources, "Deployment", "StatefulSet"):
        assert maker["spec"]["template"] in selected(resources, maker["spec"]["selector"]["matchLabels"])
        assert len(selected(resources, maker["spec"]["selector"]["matchLabels"])) == 1
    for service in of_kind(resources, "Service"):
        (pod,) = selected(resources, service["spec"]["selector"])
        names = {port["name"] for container in containers(pod) for port in container.get("ports", ())}
        assert {port["targetPort"] for port in service["spec"].get("ports", ())} <= names
    for budget in of_kind(resources, "PodDisruptionBudget"):
        assert len(selected(resources, budget["spec"]["selector"]["matchLabels"])) == 1
    for policy in of_kind(resources, "NetworkPolicy"):
        for selector in _pod_selectors(policy["spec"]):
            assert selected(resources, selector.get("matchLabels", {})), policy["metadata"]["name"]


def _pod_selectors(spec: Resource) -> Iterator[Resource]:
    yield spec["podSelector"]
    for rule in (*spec.get("ingress", ()), *spec.get("egress", ())):
        for peer in (*rule.get("from", ()), *rule.get("to", ())):
            if "podSelector" in peer:
                yield peer["podSelector"]


def test_every_pod_is_as_restricted_as_its_namespace_demands(resources):
    assert (
        named(resources, "Namespace", "tid")["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    )
    for pod in pods(resources).values():
        spec = pod["spec"]
        assert spec["securityContext"]["runAsNonRoot"]
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        # A Service tid-api would make TID_API_PORT, which looks like a setting, and POSTGRES_PORT.
        assert (spec["enableServiceLinks"], spec["automountServiceAccountToken"]) == (False, False)
        for container in containers(pod):
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert {"memory"} <= container["resources"]["limits"].keys()


@pytest.mark.parametrize("part", ["api", "worker"])
def test_pods_agree_with_the_images(resources, part):
    maker = named(resources, "Deployment" if part == "api" else "StatefulSet", f"tid-{part}")
    spec = maker["spec"]["template"]["spec"]
    lines = (ROOT / f"docker/{part}.Dockerfile").read_text().splitlines()
    assert f"USER {spec['securityContext']['runAsUser']}:{spec['securityContext']['runAsGroup']}" in lines
    assert all(f"/tid-{part}:" in f"/{container['image']}" for container in containers(maker["spec"]["template"]))
    main = spec["containers"][0]
    for port in main.get("ports", ()):
        assert f"EXPOSE {port['containerPort']}" in lines
        assert {"name": "TID_PORT", "value": str(port["containerPort"])} in main["env"]
    for probe in (main[name] for name in ("startupProbe", "livenessProbe", "readinessProbe") if name in main):
        if "httpGet" in probe:
            assert SCOPES[probe["httpGet"]["path"]]["GET"] == "open"
            assert probe["httpGet"]["port"] in {port["name"] for port in main["ports"]}
        else:
            script = probe["exec"]["command"][-1]
            assert f"COPY docker{script.removeprefix('/opt')} {Path(script).parent}/" in lines


def test_the_images_of_other_services_are_those_of_compose(rendered):
    compose = (ROOT / "docker-compose.yml").read_text()
    others = {
        container["image"]
        for name, pod in pods(rendered["cpu"]).items()
        if not name.startswith("tid-")
        for container in containers(pod)
    }
    assert len(others) == 3
    assert all(f":-{image}}}" in compose for image in others)


def test_a_gpu_is_asked_for_where_there_is_one(rendered):
    worker = {name: named(found, "StatefulSet", "tid-worker") for name, found in rendered.items()}
    limits = {
        name: one["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"] for name, one in worker.items()
    }
    assert limits["gpu"]["nvidia.com/gpu"] == 1
    assert "nvidia.com/gpu" not in limits["cpu"]


def test_secrets_are_not_for_git():
    for overlay in OVERLAYS:
        path = f"docker/kubernetes/overlays/{overlay}/secrets/tid_database_url"
        assert subprocess.run(["git", "check-ignore", "--quiet", path], cwd=ROOT).returncode == 0


def test_nothing_starts_before_the_tables_and_a_key_are_there(postgres_server, tmp_path):
    postgres_server.run("CREATE DATABASE tid_kubernetes")
    url = postgres_server.url("tid_kubernetes")
    environment = {"TID_DATABASE_URL": url, "TID_HOST": "0.0.0.0", "TID_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, ROOT / "docker/kubernetes/base/wait.py", "api"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True) as waiting:
        assert waiting.stdout is not None
        try:
            assert "the database is at revision none" in waiting.stdout.readline()
            upgrade(url)
            assert "this server has no API keys that can be used" in waiting.stdout.readline()
            database = Database(url)
            with database.write() as session:
                keys.create("admin", "admin", session=session)
            database.close()
            assert waiting.wait(60) == 0
        finally:
            waiting.kill()
