"""`tid check --measure`: a few steps of the job on this machine, by a child process that has torch."""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from os import getpid
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import TypeAdapter, ValidationError

from client.console import escaped, out, plain_table, size, span
from client.errors import ClientError
from tid_core.measurement import ANSWER, Measurement, Refusal
from tid_core.spec import JobSpec, JobWeights

if TYPE_CHECKING:
    from rich.table import Table

    from tid_core.measurement import RunCost

_ANSWER: TypeAdapter[Measurement | Refusal] = TypeAdapter(Measurement | Refusal)
_KILLED = "the system's out-of-memory killer ends processes this way: lower training.batch_size or data.min_size"


def measure(path: Path, spec: JobSpec, *, dataset: Path | None, options: str | None, steps: int) -> Measurement:
    """Measure in a folder that is gone afterwards; the dataset is only read.

    Raises:
        ClientError: it cannot be measured here, with the reason.
    """
    folder = _dataset(spec, dataset)
    _refuse_jobs(spec)
    if find_spec("torch") is None:
        raise ClientError('--measure needs torch: pip install "tid-service[worker]"')
    with tempfile.TemporaryDirectory(prefix="tid-measure-", ignore_cleanup_errors=True) as scratch:
        command = [
            sys.executable,
            "-P",
            "-m",
            "tid_core.measure",
            str(path),
            "--out",
            scratch,
            "--dataset",
            str(folder),
        ]
        command += ["--steps", str(steps), "--parent-pid", str(getpid())]
        command += ["--dataset-options", options] if options is not None else []
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return _answer(Path(scratch) / ANSWER, done)


def _answer(path: Path, done: subprocess.CompletedProcess[str]) -> Measurement:
    try:
        answer = _ANSWER.validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        if done.returncode == -signal.SIGKILL:
            raise ClientError(f"the measuring process was killed; {_KILLED}") from error
        tail = "\n".join(done.stderr.strip().splitlines()[-20:])
        raise ClientError(f"the measuring process ended with code {done.returncode} and no answer\n{tail}") from error
    if isinstance(answer, Refusal):
        raise ClientError(f"could not be measured ({answer.reason}): {answer.detail}")
    return answer


def _dataset(spec: JobSpec, dataset: Path | None) -> Path:
    folder = (dataset or Path(spec.dataset)).expanduser()
    if folder.is_dir():
        return folder
    if dataset is None:
        raise ClientError(f"the dataset {spec.dataset!r} is no folder on this machine; add --dataset FOLDER to measure")
    raise ClientError(f"--dataset {dataset}: no such folder")


def _refuse_jobs(spec: JobSpec) -> None:
    for whose in ("teacher", "student"):
        weights = getattr(getattr(spec, whose), "weights", None)
        if isinstance(weights, JobWeights):
            raise ClientError(
                f"{whose}.weights names job {weights.job}, whose files only the service has; to measure here, "
                f"`tid download {weights.job}` and name them: {{file: PATH}}"
            )


def print_measurement(found: Measurement) -> None:
    out().print(_table(found))
    of = f"one of {found.processes} processes, on its share of a batch, " if found.processes > 1 else ""
    place = f"measured on {of}{found.device}, {found.precision}, {found.steps} steps of each run; the first is apart"
    out().print(f"[dim]{escaped(place)}[/]", soft_wrap=True)
    for warning in found.warnings:
        out().print(f"[yellow]warning:[/] {escaped(warning)}", soft_wrap=True)
    out().print(f"estimate for the whole job: {span(found.seconds)}")


def _table(found: Measurement) -> Table:
    table = plain_table("", *(run.run for run in found.runs), right=tuple(run.run for run in found.runs))
    columns = [_column(run) for run in found.runs]
    for name in columns[0]:
        cells = [column[name] for column in columns]
        if any(cell != "-" for cell in cells):
            table.add_row(name, *cells)
    return table


def _column(run: RunCost) -> dict[str, str]:
    share, cached, cache = run.teacher_share, run.cached_step_seconds, run.cache_bytes
    return {
        "step": f"{run.step_seconds:.3f} s",
        "first step": f"{run.first_step_seconds:.3f} s",
        "step with a warm teacher.cache": "-" if cached is None else f"{cached:.3f} s",
        "images/s": f"{run.images_per_second:.1f}",
        "teacher's part of a step": "-" if share is None else f"{share:.0%}",
        "peak memory": "-" if run.peak_memory_bytes is None else size(run.peak_memory_bytes),
        f"training, {run.total_steps:,} steps": span(run.training_seconds),
        "evaluations": span(run.evaluation_seconds),
        "estimate": span(run.seconds),
        "resume state": size(run.resume_state_bytes),
        "checkpoint, all formats": size(run.checkpoint_bytes),
        "disk at the end": size(run.disk_bytes),
        "teacher.cache meanwhile": "-" if cache is None else size(cache),
    }
