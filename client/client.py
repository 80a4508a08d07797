"""The Python client: every verb of the API, typed.

with Client("http://127.0.0.1:8000") as client:
    job = client.submit(load_spec(Path("job.yaml")))
    for event in client.events(job.id):
        ...
    client.download(job.id, "best", path=Path("student.safetensors"))
"""

import codecs
import os
import secrets
import time
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self
from urllib.parse import quote

import httpx
from pydantic import BaseModel

from api import schemas
from api.gate import schemas as key_schemas
from api.sweeps import schemas as sweep_schemas
from client import sse
from client.answers import Answer, understood
from client.credentials import find_key
from client.datasets import OnProgress, upload, wait_until_ready
from client.download import OnBytes, fetch
from client.errors import ApiError, NoSuchJob, NoSuchSweep, ServerUnreachable
from client.transport import Transport, unreachable
from tid_core.data.options import IndexOptions, OurSplit
from tid_core.spec import JobSpec
from tid_core.sweep import SweepSpec

DEFAULT_URL = "http://127.0.0.1:8000"
PAGE = 100
Format = Literal["auto", "coco", "voc", "yolo"]
Start = Literal["checkpoint", "fresh"]
SILENCE = 60.0
"""Seconds without a byte, heartbeats included, after which a stream of events counts as lost."""
SUBMISSION = 120.0
"""Seconds that the server may take to check every job of a sweep."""
DELETION = 900.0
"""Seconds that the server may take to delete the files of a dataset or a job."""
LOST_STREAMS = 5
"""Streams lost in a row, without an event between, before it gives up."""
Event = schemas.StateEvent | schemas.Progress | schemas.MetricsEvent | schemas.EndEvent
EVENTS: dict[str, type[Event]] = {
    "state": schemas.StateEvent,
    "progress": schemas.Progress,
    "metrics": schemas.MetricsEvent,
    "end": schemas.EndEvent,
}
Spec = JobSpec | dict[str, Any]
Sweep = SweepSpec | dict[str, Any]


class Client:
    """A server, seen from outside. Close it, or use it in a `with` statement.

    Args:
        url: the server; by default TID_URL, else http://127.0.0.1:8000.
        api_key: by default TID_API_KEY, else the content of the file TID_API_KEY_FILE, else none.
        timeout: seconds to wait for an answer to begin.
        retries: how often a request that may be repeated is tried again on a lost connection or a busy server.
        backoff: the first pause between tries, in seconds; each next one is twice as long.

    Raises (every method):
        ServerUnreachable: nothing answers. ApiError: the server answers with a problem.
    """

    def __init__(
        self,
        url: str | None = None,
        timeout: float = 30.0,
        *,
        api_key: str | None = None,
        retries: int = 3,
        backoff: float = 0.2,
    ) -> None:
        self.url = (url or os.environ.get("TID_URL") or DEFAULT_URL).rstrip("/")
        key = find_key(api_key)
        self._transport = Transport(self.url, api_key=key, timeout=timeout, retries=retries, backoff=backoff)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._transport.close()

    # Jobs

    def submit(self, spec: Spec, *, idempotency_key: str | None = None) -> schemas.Job:
        """POST a job. The key, random by default, makes a repeated POST answer with the same job."""
        headers = {"Idempotency-Key": idempotency_key or secrets.token_hex(16)}
        response = self._transport.request("POST", "/jobs", json=_as_json(spec), headers=headers)
        return understood(schemas.Job, response.content)

    def dry_run(self, spec: Spec) -> schemas.DryRun:
        """What `submit` would say, without making a job."""
        response = self._transport.request("POST", "/jobs", params={"dry_run": "true"}, json=_as_json(spec))
        return understood(schemas.DryRun, response.content)

    def jobs(
        self,
        *,
        state: str | list[str] | None = None,
        method: str | list[str] | None = None,
        search: str | None = None,
        sweep: str | None = None,
        limit: int | None = None,
    ) -> Iterator[schemas.JobSummary]:
        """Jobs, newest first, page after page; `search` is part of a name, `sweep` an id, `limit` ends the list."""
        wanted = {"state": state, "method": method, "search": search, "sweep": sweep}
        yield from self._pages("/jobs", schemas.JobSummary, wanted, limit)

    def job(self, job_id: str) -> schemas.Job:
        return self._get(f"/jobs/{job_id}", schemas.Job)

    def find(self, job: str) -> schemas.JobSummary:
        """The job with this id, with an id that begins so, or with this name.

        Raises:
            NoSuchJob: none fits, or several do; the text names them.
        """
        if len(job) == 12 and job.isalnum():
            try:
                return self.job(job)
            except ApiError as error:
                if error.status != 404:
                    raise
        known = list(self.jobs())
        fits = [one for one in known if one.id.startswith(job)] or [one for one in known if one.name == job]
        if len(fits) == 1:
            return fits[0]
        raise NoSuchJob(_no_single("job", job, fits, "`tid jobs` lists them"))

    def cancel(self, job_id: str) -> schemas.Job:
        """Stop a job, and its baseline twin, for good."""
        return self._ask(f"/jobs/{job_id}/cancel", schemas.Job)

    def pause(self, job_id: str) -> schemas.Job:
        """Save the state of a job, and of its baseline twin, and free the GPU until it is resumed."""
        return self._ask(f"/jobs/{job_id}/pause", schemas.Job)

    def resume(self, job_id: str) -> schemas.Job:
        """Queue a paused job, and its baseline twin, again."""
        return self._ask(f"/jobs/{job_id}/resume", schemas.Job)

    def retry(self, job_id: str, *, start: Start = "checkpoint") -> schemas.Job:
        """Another attempt at a job that failed or was cancelled; `fresh` forgets what the earlier ones reached."""
        return self._ask(f"/jobs/{job_id}/retry", schemas.Job, {"from": start}, repeatable=False)

    def set_priority(self, job_id: str, priority: int) -> schemas.Job:
        """0 first .. 9: the place of a job, and of its baseline twin, in the queue."""
        response = self._transport.request("PATCH", f"/jobs/{job_id}", json={"priority": priority})
        return understood(schemas.Job, response.content)

    def delete(self, job_id: str) -> None:
        """Forget a job that has ended, with everything it wrote."""
        self._transport.request("DELETE", f"/jobs/{job_id}", repeatable=False, timeout=DELETION)

    def metrics(
        self, job_id: str, *names: str, since_step: int | None = None, max_points: int | None = None
    ) -> schemas.Metrics:
        """The series named (all, if none) after `since_step`, and the latest values and best mAP of the job."""
        params = {"name": list(names) or None, "since_step": since_step, "max_points": max_points}
        return self._get(f"/jobs/{job_id}/metrics", schemas.Metrics, params)

    def metrics_csv(self, job_id: str, *names: str, since_step: int | None = None) -> str:
        params = {"name": list(names) or None, "since_step": since_step, "format": "csv"}
        headers = {"Accept": "text/csv"}
        return self._transport.request("GET", f"/jobs/{job_id}/metrics", params=params, headers=headers).text

    def events(self, job_id: str, *, last_event_id: str | None = None) -> Generator[Event]:
        """The job's present state, then every change and metric as it comes, and an `EndEvent` when it has ended.

        A stream that breaks, or that the server closes after its longest time, is taken up again where it stopped.
        """
        failures = 0
        while failures <= LOST_STREAMS:
            headers = {"Accept": "text/event-stream"}
            if last_event_id is not None:
                headers["Last-Event-ID"] = last_event_id
            try:
                with self._transport.stream(f"/jobs/{job_id}/events", headers=headers, timeout=SILENCE) as response:
                    for raw in sse.parse(response.iter_lines()):
                        failures, last_event_id = 0, raw.id or last_event_id
                        event = _event(raw)
                        if event is not None:
                            yield event
                        if isinstance(event, schemas.EndEvent):
                            return
            except httpx.TransportError as error:
                lost = unreachable(self.url, error)
            else:
                lost = ServerUnreachable(self.url, "the stream of events ended early")
            self._transport.pause(failures)
            failures += 1
        raise lost

    def wait(self, job_id: str, *, timeout: float | None = None, poll: float = 1.0) -> schemas.Job:
        """Ask until the job has ended.

        Raises:
            TimeoutError: it has not ended after `timeout` seconds.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while (job := self.job(job_id)).state not in schemas.TERMINAL_STATES:
            if deadline is not None and time.monotonic() > deadline:
                raise TimeoutError(f"job {job_id} is {job.state} after {timeout:g} s")
            time.sleep(poll)
        return job

    def logs(self, job_id: str, *, offset: int = 0, attempt: int | None = None) -> schemas.LogChunk:
        return self._get(f"/jobs/{job_id}/logs", schemas.LogChunk, {"offset": offset, "attempt": attempt})

    def follow_logs(self, job_id: str, *, offset: int = 0) -> Iterator[str]:
        """The log from `offset` on, as it is written, until the job ends; a stream that breaks is taken up again."""
        failures, decoder = 0, codecs.getincrementaldecoder("utf-8")("replace")
        while failures <= LOST_STREAMS:
            offset -= len(decoder.getstate()[0])  # of a character that was cut in two
            decoder.reset()
            has_ended = self.job(job_id).state in schemas.TERMINAL_STATES
            wanted = {"follow": "true", "offset": offset}
            try:
                with self._transport.stream(
                    f"/jobs/{job_id}/logs", params=wanted, headers={"Accept": "text/plain"}, timeout=SILENCE
                ) as response:
                    offset = int(response.headers["X-Log-Offset"])
                    for piece in response.iter_raw():
                        failures, offset = 0, offset + len(piece)
                        yield decoder.decode(piece)
            except httpx.ReadTimeout:  # a training may be silent for long
                continue
            except httpx.TransportError as error:
                lost = unreachable(self.url, error)
                self._transport.pause(failures)
                failures += 1
                continue
            if has_ended:
                return
        raise lost

    def attempts(self, job_id: str) -> list[schemas.Attempt]:
        return self._items(f"/jobs/{job_id}/attempts", schemas.Attempt)

    def report(self, job_id: str) -> schemas.Report:
        return self._get(f"/jobs/{job_id}/report", schemas.Report)

    # Sweeps

    def submit_sweep(self, sweep: Sweep, *, idempotency_key: str | None = None) -> sweep_schemas.Sweep:
        """POST a sweep. The key, random by default, makes a repeated POST answer with the same sweep."""
        headers = {"Idempotency-Key": idempotency_key or secrets.token_hex(16)}
        response = self._transport.request("POST", "/sweeps", json=_as_json(sweep), headers=headers, timeout=SUBMISSION)
        return understood(sweep_schemas.Sweep, response.content)

    def dry_run_sweep(self, sweep: Sweep) -> sweep_schemas.SweepDryRun:
        """What `submit_sweep` would say, and the jobs that it would make."""
        response = self._transport.request(
            "POST", "/sweeps", params={"dry_run": "true"}, json=_as_json(sweep), timeout=SUBMISSION
        )
        return understood(sweep_schemas.SweepDryRun, response.content)

    def sweeps(self, *, search: str | None = None, limit: int | None = None) -> Iterator[sweep_schemas.SweepSummary]:
        """Sweeps, newest first, page after page."""
        yield from self._pages("/sweeps", sweep_schemas.SweepSummary, {"search": search}, limit)

    def sweep(self, sweep_id: str) -> sweep_schemas.Sweep:
        return self._get(f"/sweeps/{sweep_id}", sweep_schemas.Sweep)

    def find_sweep(self, sweep: str) -> sweep_schemas.SweepSummary:
        """The sweep with this id, with an id that begins so, or with this name.

        Raises:
            NoSuchSweep: none fits, or several do; the text names them.
        """
        known = list(self.sweeps())
        fits = [one for one in known if one.id.startswith(sweep)] or [one for one in known if one.name == sweep]
        if len(fits) == 1:
            return fits[0]
        raise NoSuchSweep(_no_single("sweep", sweep, fits, "`tid sweep list` lists them"))

    def cancel_sweep(self, sweep_id: str) -> sweep_schemas.Sweep:
        response = self._transport.request("POST", f"/sweeps/{sweep_id}/cancel")
        return understood(sweep_schemas.Sweep, response.content)

    def sweep_report(self, sweep_id: str) -> sweep_schemas.SweepReport:
        return self._get(f"/sweeps/{sweep_id}/report", sweep_schemas.SweepReport)

    def sweep_report_csv(self, sweep_id: str) -> str:
        headers = {"Accept": "text/csv"}
        return self._transport.request("GET", f"/sweeps/{sweep_id}/report", headers=headers).text

    # Files

    def checkpoints(self, job_id: str) -> list[schemas.CheckpointOut]:
        return self._items(f"/jobs/{job_id}/checkpoints", schemas.CheckpointOut)

    def maps(self, job_id: str) -> list[schemas.ArtifactOut]:
        return self._items(f"/jobs/{job_id}/maps", schemas.ArtifactOut)

    def artifacts(self, job_id: str) -> list[schemas.ArtifactOut]:
        return self._items(f"/jobs/{job_id}/artifacts", schemas.ArtifactOut)

    def download(
        self,
        job_id: str,
        name: str = "best",
        format: str = "safetensors",  # noqa: A002
        *,
        path: Path,
        on_bytes: OnBytes | None = None,
    ) -> str:
        """A checkpoint into the file `path`; continues a broken download, checks and returns its sha256.

        Raises:
            DownloadError: the bytes are not the server's, the disk is full, or the connection keeps breaking.
        """
        where = f"/jobs/{job_id}/checkpoints/{name}"
        return fetch(self._transport, where, path, params={"format": format}, on_bytes=on_bytes)

    def fetch(self, file: schemas.ArtifactOut | schemas.CheckpointFile, path: Path) -> str:
        """A listed file into the file `path`, as `download` does."""
        return fetch(self._transport, file.url, path)

    # Datasets, and what the server has

    def datasets(self) -> list[schemas.Dataset]:
        return list(self._pages("/datasets", schemas.Dataset, {}, None))

    def dataset(self, name_or_id: str) -> schemas.Dataset:
        return self._get(f"/datasets/{name_or_id}", schemas.Dataset)

    def add_dataset(
        self,
        name: str,
        folder: Path | str | None = None,
        archive: Path | str | None = None,
        *,
        format: Format = "auto",  # noqa: A002
        splits: dict[OurSplit, str] | None = None,
        val_fraction: float | None = None,
        val_seed: int = 0,
        wait: bool = True,
        on_bytes: OnBytes | None = None,
        on_progress: OnProgress | None = None,
    ) -> schemas.Dataset:
        """Register `folder`, which the server can read, or `archive`, a local file that is sent to it.

        Sending the same name again continues with a dataset whose archive did not arrive.

        Args:
            format: coco, voc or yolo; auto = told by the files.
            splits: our split to the dataset's own, several joined by `+`; None = found by the layout.
            val_fraction: part of `train` that becomes `val`, drawn with `val_seed`.
            wait: until it is ready; else it may still be `validating`.
            on_bytes: told how much of the archive is sent. on_progress: told how far the server is.

        Raises:
            DatasetInvalid: it cannot be used. UploadError: the archive cannot be read or sent.
        """
        options = IndexOptions(format=format, splits=splits, val_fraction=val_fraction, val_seed=val_seed)
        if (folder is None) == (archive is None):
            raise ValueError("give either a folder of the server or an archive")
        if archive is None:
            body = {"name": name, "root": str(folder), "options": options.model_dump(mode="json")}
            response = self._transport.request("POST", "/datasets", json=body, repeatable=False)
            dataset = understood(schemas.Dataset, response.content)
        else:
            dataset = upload(self._transport, name, Path(archive), options, on_bytes)
        return self.wait_for_dataset(dataset.id, on_progress=on_progress) if wait else dataset

    def wait_for_dataset(self, name_or_id: str, *, on_progress: OnProgress | None = None) -> schemas.Dataset:
        """Until the server has looked through a dataset.

        Raises:
            DatasetInvalid: it cannot be used.
        """
        return wait_until_ready(self._transport, name_or_id, on_progress)

    def delete_dataset(self, name_or_id: str) -> None:
        """Forget a dataset that no job names, with what was uploaded for it."""
        self._transport.request("DELETE", f"/datasets/{name_or_id}", repeatable=False, timeout=DELETION)

    def dataset_sample(self, name_or_id: str) -> bytes:
        """A JPEG with some of the training images and their boxes."""
        return self._transport.request("GET", f"/datasets/{name_or_id}/sample").content

    def detectors(self) -> list[schemas.DetectorOut]:
        return self._items("/detectors", schemas.DetectorOut)

    def methods(self) -> list[schemas.MethodOut]:
        return self._items("/methods", schemas.MethodOut)

    def recipes(self) -> list[schemas.RecipeOut]:
        return self._items("/recipes", schemas.RecipeOut)

    def workers(self) -> list[schemas.Worker]:
        return self._items("/workers", schemas.Worker)

    def drain(self, worker_id: str, *, wait: bool = False) -> schemas.Worker:
        """Let a worker take no more jobs; its present one goes back to the queue or, with `wait`, is finished first."""
        return self._ask(f"/workers/{quote(worker_id, safe='')}/drain", schemas.Worker, {"wait": wait})

    def undrain(self, worker_id: str) -> schemas.Worker:
        """Let a worker take jobs again."""
        return self._ask(f"/workers/{quote(worker_id, safe='')}/undrain", schemas.Worker)

    def ready(self) -> schemas.Readiness:
        """Whether the server can work; not ready is an answer here, not an error."""
        response = self._transport.request("GET", "/readyz", accept=(503,))
        return understood(schemas.Readiness, response.content)

    # Who may ask

    def create_key(self, name: str, scope: key_schemas.KeyScope, **limits: float | None) -> key_schemas.NewKey:
        """The answer holds the key itself, for this once. `limits` are the further fields of `KeyIn`."""
        body = {"name": name, "scope": scope, **limits}
        response = self._transport.request("POST", "/keys", json=body, repeatable=False)
        return understood(key_schemas.NewKey, response.content)

    def keys(self) -> list[key_schemas.Key]:
        return list(self._pages("/keys", key_schemas.Key, {}, None))

    def revoke_key(self, key_id: str) -> key_schemas.Key:
        response = self._transport.request("DELETE", f"/keys/{key_id}")
        return understood(key_schemas.Key, response.content)

    def audit(
        self, *, key: str | None = None, refused: bool | None = None, limit: int | None = None
    ) -> Iterator[key_schemas.AuditEntry]:
        """What was written and refused, newest first."""
        asked = {"key": key, "refused": None if refused is None else str(refused).lower()}
        yield from self._pages("/audit", key_schemas.AuditEntry, asked, limit)

    def _ask(self, path: str, kind: type[Answer], json: Any = None, *, repeatable: bool = True) -> Answer:
        return understood(kind, self._transport.request("POST", path, json=json, repeatable=repeatable).content)

    def _get(self, path: str, kind: type[Answer], params: dict[str, Any] | None = None) -> Answer:
        return understood(kind, self._transport.request("GET", path, params=params).content)

    def _items(self, path: str, kind: type[Answer]) -> list[Answer]:
        rows = self._transport.request("GET", path).json()["data"]
        return [understood(kind, row) for row in rows]

    def _pages(self, path: str, kind: type[Answer], params: dict[str, Any], limit: int | None) -> Iterator[Answer]:
        cursor, left = None, limit
        while left is None or left > 0:
            size = PAGE if left is None else min(PAGE, left)
            page = self._transport.request("GET", path, params={**params, "cursor": cursor, "limit": size}).json()
            yield from (understood(kind, row) for row in page["data"])
            left = None if left is None else left - len(page["data"])
            cursor = page["next_cursor"]
            if not page["has_more"] or cursor is None:
                return


def _event(raw: sse.RawEvent) -> Event | None:
    """None for an event that means nothing to this client, and for the end of a stream that is to be taken up again."""
    kind = EVENTS.get(raw.name)
    event = understood(kind, raw.data) if kind is not None else None
    return None if isinstance(event, schemas.EndEvent) and event.reason in ("time", "shutdown") else event


def _as_json(spec: Spec | Sweep) -> dict[str, Any]:
    return spec.model_dump(mode="json") if isinstance(spec, BaseModel) else spec


def _no_single(
    kind: str, name: str, fits: Sequence[schemas.JobSummary | sweep_schemas.SweepSummary], where_listed: str
) -> str:
    if not fits:
        return f"no {kind} has the id or name {name!r}; {where_listed}"
    listed = "\n".join(f"  {one.id}  {one.name}  {one.state}  {one.created_at:%Y-%m-%d %H:%M}" for one in fits[:10])
    more = f"\n  and {len(fits) - 10} more" if len(fits) > 10 else ""
    return f"{name!r} fits {len(fits)} {kind}s; say which by its id:\n{listed}{more}"
