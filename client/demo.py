"""`tid demo`: from nothing to a distilled detector, through the HTTP API that everyone uses."""

import shutil
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from api.schemas import TERMINAL_STATES, Job, Report
from client import demo_places, demo_specs
from client.board import Board, fraction
from client.client import Client
from client.console import FAILED, complain, out, span
from client.demo_results import Pair, print_summary, write_results
from client.demo_specs import DemoSize
from client.errors import ClientError
from client.machine import lock_home

MADE = ("service", "data", "maps", "report.json", "curves.png", "detections.png", "student.safetensors", "student.pt",
        "model_card.json", "data.tar")  # fmt: skip


class JobFailed(ClientError):
    """A job of the demo ended without a result."""


@dataclass
class Demo:
    """One run of the demo: which jobs there are, and how far they are."""

    client: Client
    dataset: str
    board: Board
    size: DemoSize
    seeds: int
    began: float = field(default_factory=time.monotonic)
    done: float = 0.0
    """Expected part of the whole time that lies behind, 0..1."""

    def teach(self) -> Job:
        """Train the teacher."""
        job = self.client.submit(demo_specs.teacher_spec(self.dataset, self.size))
        self.follow({"teacher": (job.id, self.size.split(self.seeds)[0])})
        return self.client.job(job.id)

    def distil(self, teacher: Job) -> list[Pair]:
        """Train each seed's student and its twin without distillation."""
        pairs, rows = list[Pair](), dict[str, tuple[str, float]]()
        _, student_share, baseline_share = self.size.split(self.seeds)
        for seed in range(self.seeds):
            job = self.client.submit(demo_specs.student_spec(self.dataset, teacher.id, self.size, seed))
            if job.baseline_job_id is None:
                raise JobFailed(f"job {job.id} has no baseline beside it")
            pairs.append(Pair(seed=seed, student=job.id, baseline=job.baseline_job_id))
            rows[self.label("student", seed)] = (job.id, student_share / self.seeds)
            rows[self.label("baseline", seed)] = (job.baseline_job_id, baseline_share / self.seeds)
        self.follow(rows)
        return pairs

    def follow(self, rows: dict[str, tuple[str, float]]) -> None:
        """Show the jobs until all have succeeded.

        Raises:
            JobFailed: one did not; the text has its reason and the end of its log.
        """
        before, waiting = self.done, dict(rows)
        while waiting:
            jobs = {label: self.client.job(job_id) for label, (job_id, _) in rows.items()}
            for label, job in jobs.items():
                self.board.update(label, job)
                if job.state in TERMINAL_STATES:
                    waiting.pop(label, None)
                if job.state in ("failed", "cancelled"):
                    raise JobFailed(_failure(self.client, job))
            self.done = before + sum(rows[label][1] * fraction(job) for label, job in jobs.items())
            self.board.foot(self.clock())
            if waiting:
                time.sleep(0.5)

    def clock(self) -> str:
        elapsed = time.monotonic() - self.began
        if self.done < 0.02:
            return f"{span(elapsed)} elapsed"
        return f"{span(elapsed)} elapsed, about {span(elapsed * (1 - self.done) / self.done)} to go"

    def labels(self) -> list[str]:
        """Of every job, in the order in which they will run."""
        roles = ("student", "baseline")
        return ["teacher", *(self.label(role, seed) for seed in range(self.seeds) for role in roles)]

    def label(self, role: str, seed: int) -> str:
        return role if self.seeds == 1 else f"{role}, seed {seed}"


def run_demo(folder: Path, *, seeds: int, images: int | None, quick: bool, force: bool, remote: bool = False) -> int:
    """Run the demo into `folder`, with a service of its own or at the server that TID_URL names (`remote`).

    Returns:
        The exit code of the command.

    Raises:
        ClientError: the folder is in use. EmbeddedError: the service cannot start.
    """
    size = demo_specs.chosen(quick=quick, images=images)
    _prepare(folder, force)
    signal.signal(signal.SIGTERM, _as_interrupt)
    began = time.monotonic()
    try:
        reports = _run(folder, size, seeds, remote)
    except JobFailed as error:
        complain(str(error) if remote else f"{error}\nlogs of the service: {folder / 'service' / 'logs'}")
        return FAILED
    except KeyboardInterrupt:
        stopped = "the server goes on with its jobs, `tid cancel` ends them" if remote else "everything is stopped"
        complain(f"interrupted; {stopped}. `tid demo --out {folder} --force` starts over")
        raise
    print_summary(reports, folder, seconds=time.monotonic() - began, quick=quick, remote=remote)
    return 0


def _run(folder: Path, size: DemoSize, seeds: int, remote: bool) -> list[Report]:
    place = demo_places.remote_server if remote else demo_places.own_service
    with place(folder, size) as (client, dataset):
        with Board(out()) as board:
            demo = Demo(client, dataset, board, size, seeds)
            for label in demo.labels():
                board.add(label)
            teacher = demo.teach()
            pairs = demo.distil(teacher)
        return write_results(client, folder, teacher, pairs)


def _prepare(folder: Path, force: bool) -> None:
    """An empty place for the results; what an earlier demo left goes only when `force` says so."""
    if folder.exists() and not folder.is_dir():
        raise ClientError(f"{folder} is a file; choose another --out")
    if folder.exists() and any(folder.iterdir()) and not force:
        raise ClientError(f"{folder} is not empty; --force replaces the demo in it, --out names another folder")
    if (folder / "service").is_dir():
        lock_home(folder / "service").close()  # refuses while another demo works there
    for name in MADE:
        path = folder / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    folder.mkdir(parents=True, exist_ok=True)


def _failure(client: Client, job: Job) -> str:
    """Why the job ended, and the end of what its training said."""
    text, offset, more = "", 0, True
    while more:
        chunk = client.logs(job.id, offset=offset)
        text, offset, more = (text + chunk.text)[-4000:], chunk.next_offset, chunk.truncated
    tail = "\n".join(f"  {line}" for line in text.splitlines()[-15:])
    return f"job {job.id} ({job.name}) {job.state}: {job.status_reason}: {job.detail or 'no detail'}\n{tail}"


def _as_interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt
