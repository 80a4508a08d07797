"""Somebody who follows a job by server-sent events, whatever becomes of the API."""

import json
import threading
import time

import httpx

from benchmarks.fire.results import Result
from client import sse

_SILENCE_SECONDS = 30.0
_PAUSE_SECONDS = 0.3
_LAST_WORD_SECONDS = 60.0


class Listener:
    """Listens in a thread from the beginning of a job to its end, and comes back with `Last-Event-ID`."""

    def __init__(self, url: str, job_id: str) -> None:
        self._url = f"{url}/jobs/{job_id}/events"
        self._heard: set[tuple[str, int]] = set()
        self._last_id = "0"
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def complaints(self, reference: Result) -> list[str]:
        """After the end of the job: what was not heard of it."""
        self._thread.join(_LAST_WORD_SECONDS)
        if self._thread.is_alive():
            return ["its events never ended"]
        missing = sorted(reference.curves.keys() - self._heard)
        return [f"points that no event told of: {missing}"] if missing else []

    def _run(self) -> None:
        with httpx.Client(timeout=_SILENCE_SECONDS) as http:
            while not self._listen(http):
                time.sleep(_PAUSE_SECONDS)

    def _listen(self, http: httpx.Client) -> bool:
        """Whether the job has ended."""
        try:
            with http.stream("GET", self._url, headers={"Last-Event-ID": self._last_id}) as answer:
                if not answer.is_success:
                    return False
                for event in sse.parse(answer.iter_lines()):
                    self._last_id = event.id or self._last_id
                    if self._is_last(event.name, event.data):
                        return True
        except httpx.TransportError:
            pass
        return False

    def _is_last(self, name: str, data: str) -> bool:
        if name == "metrics":
            told = json.loads(data)
            self._heard |= {(series, told["step"]) for series in told["values"]}
        return name == "end" and json.loads(data)["reason"] == "ended"
