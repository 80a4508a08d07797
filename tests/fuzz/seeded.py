"""A service with something of everything in it, so that what is fuzzed is more than the answer 404."""

import hashlib
import io
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from schemathesis.python.asgi import ASGIClient

from store import checkpoints, claims, datasets, logs, metrics, outputs, workers
from store.db import Database
from store.fencing import Claim
from store.settings import Settings
from store.states import Outcome
from tests.ready import store_ready

SPEC: dict[str, Any] = {"student": {"detector": "fcos_resnet18_small"}, "dataset": "pets"}


@dataclass(frozen=True)
class Known:
    """Names that lead somewhere, by the parameter of a path that they are for."""

    jobs: Sequence[str]
    datasets: Sequence[str]
    sweeps: Sequence[str]
    root: str
    """Of a folder that can be registered."""
    archive: bytes
    """Of a dataset, though not of a good one."""
    files: Sequence[str] = ("best", "last", "epoch-1", "0001.png", "detections.json")

    def by_parameter(self) -> Mapping[str, Sequence[str]]:
        return {"job_id": self.jobs, "name_or_id": self.datasets, "sweep_id": self.sweeps, "name": self.files}


def seed(client: ASGIClient, settings: Settings, looked_through: tuple[Path, Path]) -> Known:
    """A dataset in each state, a job in each that needs no training process, a sweep, a worker."""
    database: Database = client.app.state.parts.database  # type: ignore[attr-defined]
    names = _datasets(client, database, settings, looked_through)
    jobs = [_job(client, name=name) for name in ("waits", "runs", "succeeded", "failed", "cancelled")]
    _run(_start(database, jobs[1]), database, settings)
    for job_id, outcome in ((jobs[2], Outcome.SUCCEEDED), (jobs[3], Outcome.FAILED)):
        claim = _start(database, job_id)
        _run(claim, database, settings)
        with database.write() as session:
            claims.finish(claim, outcome, reason=None if outcome is Outcome.SUCCEEDED else "oom", session=session)
    assert client.post(f"/jobs/{jobs[4]}/cancel").status_code == 202
    taught = _job(client, teacher={"weights": {"job": jobs[2]}})
    twin = client.get(f"/jobs/{taught}").json()["baseline_job_id"]
    sweep = client.post("/sweeps", json={"name": "s", "base": SPEC, "axes": {"training.lr": [0.1, 0.2]}})
    assert sweep.status_code == 201, sweep.text
    with database.write() as session:
        device = {"kind": "cpu", "name": "CPU"}
        workers.register("worker-1", hostname="host", pid=1, queues=["default"], device=device, session=session)
    root = settings.data_roots[0] / "folder"
    root.mkdir()
    (root / "train.json").write_text("{}")
    return Known([*jobs, taught, twin], names, [sweep.json()["id"]], str(root), _archive())


def _archive() -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("train.json", "{}")
    return content.getvalue()


def _datasets(client: ASGIClient, database: Database, settings: Settings, looked: tuple[Path, Path]) -> list[str]:
    ready = store_ready("pets", database, settings, looked)
    root, _ = looked
    with database.write() as session:
        broken = datasets.register(name="broken", root=root, options={}, roots=[root], session=session)
        hold = datasets.hold(broken.id, "validating", seconds=60, session=session)
        assert hold is not None
        datasets.finish_invalid(hold, [{"code": "no_images", "detail": "there is no image"}], session=session)
    assert client.post("/datasets", json={"name": "waiting"}).status_code == 201
    return ["pets", "broken", "waiting", ready]


def _job(client: ASGIClient, **changes: Any) -> str:
    answer = client.post("/jobs", json={**SPEC, **changes})
    assert answer.status_code == 201, answer.text
    job_id: str = answer.json()["id"]
    return job_id


def _start(database: Database, job_id: str) -> Claim:
    with database.write() as session:
        claim = claims.claim(job_id, "worker-1", lease_seconds=3600, session=session)
        assert claim is not None
        facts = {"student_parameters": 1000, "teacher_parameters": None, "processes": 1}
        claims.mark_started(claim, resumed_from_step=0, total_steps=100, epochs=2, run_facts=facts, session=session)
    return claim


def _run(claim: Claim, database: Database, settings: Settings) -> None:
    """All that a training tells and leaves."""
    named = ("loss/total", "val/AP", "val/AP50", "val/class/cat/AP", "val/error/missed/count", "memory/peak_bytes")
    points = [metrics.Point(name, step, step // 10, step / 100) for name in named for step in range(1, 40)]
    with database.write() as session:
        metrics.record(claim, points, session=session)
        logs.append(claim, "epoch 1: Δ → fine\n" * 50, cap_bytes=1 << 20, session=session)
        progress = {"phase": "training", "done": 1, "total": 2, "images_per_second": 9.5}
        claims.record_progress(claim, step=39, epoch=1, eta_seconds=3.5, progress=progress, session=session)
        claims.add_warning(claim, code="fewer_gpus", detail="one of two", session=session)
    for name in ("best", "last"):
        for file_format in ("safetensors", "pt", "card"):
            _checkpoint(claim, name, file_format, database, settings)
    _output(claim, "map", "0001.png", database, settings)
    _output(claim, "detections", "detections.json", database, settings)


def _checkpoint(claim: Claim, name: str, file_format: str, database: Database, settings: Settings) -> None:
    with database.write() as session:
        checkpoints.record(
            claim, name=name, file_format=file_format, **_stored(claim, f"{name}.{file_format}", settings),
            step=39, epoch=1, ap=0.39, session=session,
        )  # fmt: skip


def _output(claim: Claim, kind: str, name: str, database: Database, settings: Settings) -> None:
    with database.write() as session:
        outputs.record(claim, kind=kind, name=name, **_stored(claim, name, settings), session=session)


def _stored(claim: Claim, name: str, settings: Settings) -> dict[str, Any]:
    content = f"{claim.job_id} {name} ".encode() * 20
    key = f"jobs/{claim.job_id}/{name}"
    path = settings.artifacts / key
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return {"key": key, "sha256": hashlib.sha256(content).hexdigest(), "num_bytes": len(content)}
