"""Why a job or an attempt is in its state: every code of `status_reason` and of `attempts[].reason`, in one table."""

from typing import Final

USER: Final = "user"
RESUMED: Final = "resumed"
RETRIED: Final = "retried"
PAUSED: Final = "paused"
WORKER_STOPPED: Final = "worker_stopped"
WORKER_DRAINED: Final = "worker_drained"
NODES_MISSING: Final = "nodes_missing"
RESTORED: Final = "restored"
WORKER_LOST: Final = "worker_lost"
WORKER_ERROR: Final = "worker_error"
MAX_ATTEMPTS: Final = "max_attempts"

BY_REQUEST: Final[dict[str, str]] = {
    USER: "Somebody asked for it: the job was cancelled or paused.",
    RESUMED: "It was paused and resumed, and waits for a worker.",
    RETRIED: "It had failed or been cancelled, was retried, and waits for a worker.",
    PAUSED: "The attempt saved its state and ended because its job was paused.",
    WORKER_STOPPED: "Its worker was shut down: the attempt saved its state and handed the job back.",
    WORKER_DRAINED: "Its worker was drained: the attempt saved its state and handed the job back.",
    NODES_MISSING: "Not all of the workers that train it together came in time: the attempt handed the job back.",
    RESTORED: "The service was restored from a backup: the attempt that ran then counts no more.",
}
"""Nothing went wrong; none of these counts against `resources.max_attempts`."""

TRIED_AGAIN: Final[dict[str, str]] = {
    WORKER_LOST: "Its worker was silent for longer than its lease.",
    WORKER_ERROR: "The worker itself failed while it ran the job; its log says how.",
    "child_killed": "The training process was killed, most often by the system because memory ran out.",
    "child_crashed": "The training process ended without a result; `detail` has its last words.",
    "device_missing": "The training sees fewer GPUs than its job asks for.",
    "rank_lost": "One of the processes of a run on several GPUs was gone or did not answer.",
    "storage_failed": "The artifact store did not take a checkpoint.",
    "checkpoint_changed": "A checkpoint was not, when it was stored, what the training had announced.",
}
"""Each counts as a failed attempt; another one follows, up to `resources.max_attempts`."""

FINAL: Final[dict[str, str]] = {
    MAX_ATTEMPTS: "As many attempts as `resources.max_attempts` allows ended without a result; `detail` has the last.",
    "batch_exceeds_dataset": "The dataset has fewer images than one batch.",
    "checkpoint_invalid": "A weights file is missing, damaged, or not of the detector that it is for.",
    "classes_missing": "The teacher has no output for a class of the dataset.",
    "dataset_invalid": "The dataset cannot be used (any more); `detail` has why.",
    "disk_full": "No space was left for a file that the training writes. From the artifact store it costs an attempt.",
    "distillation_inactive": "The distillation loss gave the student nothing in the first steps.",
    "inherit_unfit": "A part named in `student.inherit` does not fit the student.",
    "internal_error": "A defect of the training; `detail` and the log have what was raised.",
    "non_finite_loss": "A loss became infinite or not a number.",
    "out_of_memory": "The GPU had too little memory; `detail` says what to lower.",
    "pair_unfit": "Student and teacher do not fit each other.",
    "teacher_not_ready": "The job whose weights it needs has not succeeded, or kept no such checkpoint.",
    "weights_unavailable": "Published weights could not be fetched or read.",
}
"""The job has failed: another attempt would end the same way."""

MEANINGS: Final = BY_REQUEST | TRIED_AGAIN | FINAL
