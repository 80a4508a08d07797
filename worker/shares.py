"""Which GPUs, and how many cores, each worker of a host gets."""

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from store.settings import SettingsError
from worker.gpus import gpu_facts, parts, visible_gpus
from worker.settings import LONGEST_ID, WorkerSettings

Gpu = dict[str, Any]
_NO_GPU: Final = (
    "no GPU is visible here: `nvidia-smi` shows whether the driver is well; a container needs the NVIDIA Container "
    "Toolkit and a reservation of GPUs; CUDA_VISIBLE_DEVICES may hide them. TID_GPUS=all does with the CPU"
)


class Share(NamedTuple):
    """One worker: its id, what it runs on for people, and the variables in which it differs from the others."""

    worker_id: str
    place: str
    variables: dict[str, str]


def shares(settings: WorkerSettings, there: Sequence[Gpu], *, cores: int, host: str) -> list[Share]:
    """A worker for each part of TID_GPUS, and the cores divided by the GPUs; where there is none, one for the CPU.

    A worker that is started again has the same id, so that it is known at once that its predecessor is gone.

    Raises:
        SettingsError: TID_GPUS names what is not there.
    """
    groups = divide(settings.gpus, there) or [[]]
    name = settings.worker_id if "worker_id" in settings.model_fields_set else host[:100]
    gpus = max(1, sum(len(group) for group in groups))
    found = [_share(name, group, settings.threads or max(1, cores * max(1, len(group)) // gpus)) for group in groups]
    if any(len(share.worker_id) > LONGEST_ID for share in found):
        raise SettingsError(f"TID_WORKER_ID: with the GPU behind it, it has more than {LONGEST_ID} letters")
    return found


def divide(wanted: str, there: Sequence[Gpu]) -> list[list[Gpu]]:
    """The GPUs of each worker; nothing for `all` where there is none.

    Args:
        wanted: `all`, or numbers and identifiers with commas between workers, and + between the GPUs of one.

    Raises:
        SettingsError: there is no such GPU, or one is named twice.
    """
    if wanted == "all":
        return [[gpu] for gpu in there]
    if not there:
        raise SettingsError(f"TID_GPUS is {wanted}, and {_NO_GPU}")
    groups = [[_find(name, there) for name in group.split("+")] for group in wanted.split(",")]
    taken = [gpu["uuid"] for group in groups for gpu in group]
    for gpu in there:
        if taken.count(gpu["uuid"]) > 1:
            raise SettingsError(f"TID_GPUS: {wanted} names GPU {_label(gpu)} twice; a GPU belongs to one worker")
    return groups


def gpus_there(wanted: str) -> list[Gpu]:
    """What CUDA_VISIBLE_DEVICES leaves, and the parts of GPUs (MIG) that are asked for, which no list shows."""
    found = visible_gpus()
    known = {gpu["uuid"] for gpu in found}
    asked = gpu_facts(",".join(parts(wanted.replace("+", ","))))
    return found + [gpu for gpu in asked if gpu["uuid"] not in known and gpu["memory_total_mib"] is not None]


def _find(name: str, there: Sequence[Gpu]) -> Gpu:
    fit = [gpu for gpu in there if name == str(gpu["index"]) or (name[:4] in ("GPU-", "MIG-") and _begins(gpu, name))]
    if len(fit) == 1:
        return fit[0]
    have = ", ".join(f"{_label(gpu)} ({gpu['name']}, {gpu['uuid']})" for gpu in there)
    what = f"there is no GPU {name!r} here" if not fit else f"several GPUs begin with {name!r}"
    raise SettingsError(f"TID_GPUS: {what}; there are: {have}. Or write `all`")


def _begins(gpu: Gpu, name: str) -> bool:
    return str(gpu["uuid"]).startswith(name)


def _label(gpu: Gpu) -> str:
    """Its number, or what tells a part of a GPU from the others."""
    return str(gpu["uuid"]).partition("/")[0] if gpu["index"] is None else str(gpu["index"])


def _share(host: str, group: Sequence[Gpu], threads: int) -> Share:
    if not group:
        return Share(f"{host}-cpu", "the CPU", {"TID_WORKER_ID": f"{host}-cpu", "TID_THREADS": str(threads)})
    labels = "+".join(_label(gpu) for gpu in group)
    worker_id = f"{host}-gpu{labels}"
    visible = ",".join(gpu["uuid"] for gpu in group)
    place = f"GPU {labels} ({group[0]['name']})"
    own = {"TID_WORKER_ID": worker_id, "TID_THREADS": str(threads), "CUDA_VISIBLE_DEVICES": visible}
    return Share(worker_id, place, own)
