"""What the supervisor writes of what it hears."""

import hashlib
from pathlib import Path
from typing import Any

from store import claims, resume_states
from store.models import Job
from tid_core.events import Checkpoint, Progress, ResumeState
from worker.child import Heard
from worker.recorder import Recorder
from worker.uploads import Storage


def test_the_setup_of_a_resumed_run_leaves_its_progress(lite: Any) -> None:
    """Until the state is read nobody knows the step; 0 would throw the bar back."""
    job_id = lite.submit()
    with lite.database.write() as session:
        claim = claims.claim(job_id, "worker", lease_seconds=60, session=session)
        session.get_one(Job, job_id).step = 40
    storage = Storage(lite.settings, claim)
    recorder = Recorder(claim, storage, lite.settings)
    recorder.hear(Heard([Progress(phase="setup", step=0, epoch=0, done=0, total=1)]))
    with lite.database.write() as session:
        recorder.write(session)
    storage.close()
    assert lite.job(job_id).step == 40


def test_a_state_beyond_a_lost_checkpoint_is_not_recorded(lite: Any, tmp_path: Path) -> None:
    """The next attempt would go on from there, and the job end with the checkpoint of an earlier epoch."""
    job_id = lite.submit()
    claim = lite.claim(job_id, "worker")
    storage = Storage(lite.settings, claim)
    recorder = Recorder(claim, storage, lite.settings)

    def hear(event: Checkpoint | ResumeState) -> list[str]:
        recorder.hear(Heard([event]))
        while storage.busy:
            pass
        recorder.collect()
        with lite.database.write() as session:
            recorder.write(session)
            keys = resume_states.keys(job_id, session=session)
        recorder.clear()
        return [key[-8:] for key in keys]

    def state(step: int) -> ResumeState:
        folder = tmp_path / f"step-{step:08d}"
        folder.mkdir()
        (folder / "manifest.json").write_text("{}")
        return ResumeState(step=step, epoch=1, path=folder)

    file = tmp_path / "last.pt"
    file.write_bytes(b"a student")
    digest = hashlib.sha256(b"a student").hexdigest()
    good = Checkpoint(name="last", step=6, epoch=2, ap=None, files={"pt": file}, sha256={"pt": digest})
    assert hear(state(3)) == ["00000003"]
    assert hear(good.model_copy(update={"sha256": {"pt": "0" * 64}})) == ["00000003"]
    assert hear(state(6)) == ["00000003"]
    assert recorder.lost_checkpoint is not None
    assert hear(good.model_copy(update={"step": 9})) == ["00000003"]
    assert hear(state(9)) == ["00000009", "00000003"]
    storage.close()
    assert recorder.lost_checkpoint is None
    kept = {path.parent.name for path in lite.settings.artifacts.rglob("manifest.json")}
    assert kept == {"step-00000003", "step-00000009"}
