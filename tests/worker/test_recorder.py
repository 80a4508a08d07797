"""What the supervisor writes of what it hears."""

from typing import Any

from store import claims
from store.models import Job
from tid_core.events import Progress
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
