"""What can go wrong with what is remembered. Each text says what is wrong and what would be right."""

from pathlib import Path


class StoreError(Exception):
    """Base of the errors below; `code` is stable, for programs."""

    code = "store_error"


class NotFound(StoreError):
    code = "not_found"

    def __init__(self, kind: str, name: str, where: str = "") -> None:
        super().__init__(f"there is no {kind} {name!r} {where}".rstrip())
        self.kind = kind
        self.name = name


class LeaseLost(StoreError):
    """The job has another owner or none: stop its training and write nothing more."""

    code = "lease_lost"

    def __init__(self, job_id: str, attempt: int) -> None:
        super().__init__(f"attempt {attempt} no longer owns job {job_id}")
        self.job_id = job_id
        self.attempt = attempt


class IdempotencyConflict(StoreError):
    code = "idempotency_conflict"

    def __init__(self, key: str, row_id: str, kind: str = "job") -> None:
        super().__init__(f"the Idempotency-Key was used for {kind} {row_id} with another request; use a new key")
        self.key = key
        self.row_id = row_id


class IdempotencyInFlight(StoreError):
    """Another request with the same Idempotency-Key is at work: ask again in a moment for its answer."""

    code = "idempotency_in_flight"

    def __init__(self, kind: str) -> None:
        super().__init__(f"another request with this Idempotency-Key is making its {kind}; send it again in a second")


class TeacherNotReady(StoreError):
    """The job named as a teacher (or as initial weights) has no such checkpoint to give."""

    code = "teacher_not_ready"


class JobInUse(StoreError):
    """Jobs that have not ended need its weights."""

    code = "job_in_use"

    def __init__(self, job_id: str, user_ids: list[str]) -> None:
        super().__init__(f"the weights of job {job_id} are needed by {', '.join(user_ids)}; cancel them, or wait")
        self.user_ids = user_ids


class NameTaken(StoreError):
    code = "name_taken"

    def __init__(self, name: str, holder_id: str, state: str) -> None:
        ways = {
            "uploading": " (uploading); send its archive with the same options, delete it, or choose another name",
            "invalid": " (invalid); delete it, or choose another name",
        }
        super().__init__(f"the name {name!r} belongs to dataset {holder_id}{ways.get(state, '; choose another name')}")
        self.name = name
        self.holder_id = holder_id


class OutsideRoots(StoreError):
    code = "outside_roots"

    def __init__(self, path: Path, roots: tuple[Path, ...]) -> None:
        allowed = ", ".join(str(root) for root in roots) or "none is set"
        where = f"the real path of {path}" if path.is_absolute() else f"{path}, which is not an absolute path,"
        super().__init__(f"{where} is not under an allowed root (TID_DATA_ROOTS: {allowed})")
        self.path = path
        self.roots = roots


class DatasetInUse(StoreError):
    code = "dataset_in_use"

    def __init__(self, name: str, job_ids: list[str]) -> None:
        listed = ", ".join(job_ids)
        super().__init__(f"the dataset {name!r} is part of the record of jobs ({listed}) and stays with them")
        self.job_ids = job_ids


class NotUploading(StoreError):
    """An archive for a dataset that takes none (any more)."""

    code = "dataset_not_uploading"

    def __init__(self, name: str, state: str) -> None:
        super().__init__(f"the dataset {name!r} is {state}; only one that is `uploading` takes an archive")
        self.state = state


class UploadInProgress(StoreError):
    code = "upload_in_progress"

    def __init__(self, name: str) -> None:
        super().__init__(f"the archive of dataset {name!r} is being sent by another request; try again when it ended")


class HoldLost(StoreError):
    """The dataset was deleted, or another process works on it: stop and write nothing more."""

    code = "hold_lost"

    def __init__(self, dataset_id: str) -> None:
        super().__init__(f"this process no longer works on dataset {dataset_id}")


class QuotaExceeded(StoreError):
    """403 and not 429: to ask again helps only once jobs have ended."""

    code = "quota_exceeded"

    def __init__(self, name: str, what: str, number: int, limit: int) -> None:
        detail = f"with this request the key {name!r} would have {number} {what}; its quota is {limit}"
        super().__init__(f"{detail}; wait until jobs have ended, cancel some, or ask for a key with a larger quota")


class KeyUnfit(StoreError):
    """Something that was made elsewhere cannot be an API key here. The text never repeats it."""

    code = "key_unfit"


class DatabaseUnfit(StoreError):
    """There is no database, or it is of another version."""

    code = "database_unfit"


class BackupError(StoreError):
    """A backup cannot be made or restored."""

    code = "backup_error"
