"""What can go wrong for a client, each with a text that says what to do."""

from typing import Any


class ClientError(Exception):
    """Something that the user can act on; `str()` is what to show."""


class EmbeddedError(Exception):
    """The single-machine mode cannot start; the message says why and what to do."""


class ServerUnreachable(ClientError):
    """Nothing answers at the address."""

    def __init__(self, url: str, cause: str = "") -> None:
        why = f" ({cause})" if cause else ""
        super().__init__(f"no server at {url}{why}; start one with `tid up`, or name another with --url or TID_URL")


class ApiError(ClientError):
    """The server's problem+json.

    Attributes:
        status: the HTTP status. code: a stable word such as `job_not_found`. detail: a sentence.
        errors: one mapping per field that is wrong (`field`, `detail`, `expected`). request_id: to find it in the log.
    """

    def __init__(self, status: int, problem: dict[str, Any]) -> None:
        self.status = status
        self.code = str(problem.get("code") or f"http_{status}")
        self.detail = str(problem.get("detail") or problem.get("title") or f"the server answered {status}")
        self.errors: list[dict[str, Any]] = [one for one in problem.get("errors") or [] if isinstance(one, dict)]
        self.request_id = problem.get("request_id")
        self.problem = problem
        super().__init__(self._text())

    def _text(self) -> str:
        return "\n".join([f"{self.detail} [{self.code}]", *(f"  - {describe_error(one)}" for one in self.errors)])


def describe_error(error: dict[str, Any]) -> str:
    """`/student/detector: what is wrong; expected: what would be right`."""
    field = error.get("field") or error.get("pointer") or ""
    said = error.get("detail") or error.get("message") or error.get("code") or "is not valid"
    expected = f"; expected: {error['expected']}" if error.get("expected") else ""
    return f"{field}: {said}{expected}" if field else f"{said}{expected}"


class DownloadError(ClientError):
    """A file did not arrive whole; what did arrive is kept where it can be continued."""


class NoSuchJob(ClientError):
    """A job argument that fits no job, or more than one."""


class NoSuchSweep(ClientError):
    """A sweep argument that fits no sweep, or more than one."""


class DatasetInvalid(ClientError):
    """The server looked through a dataset and cannot use it; `report` has its reasons."""

    def __init__(self, name: str, report: list[tuple[str, str]]) -> None:
        self.report = report
        reasons = "\n".join(f"  - {code}: {detail}" for code, detail in report)
        super().__init__(
            f"the dataset {name} is invalid:\n{reasons}\n"
            f"It stays with this report until it is deleted: `tid datasets delete {name}`, then add it again."
        )


class AnswerNotUnderstood(ClientError):
    """An answer that this client knows no meaning of: the server is likely of another version."""

    def __init__(self, why: str, version: str) -> None:
        super().__init__(
            f"the server's answer does not fit this client, which is {version} ({why}); "
            "install the version of the server, which GET /healthz tells, or update the server"
        )
