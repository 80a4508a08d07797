"""`python -m worker.doctor`: what a worker would find here, a JSON object a line; for `tid doctor`."""

import json
import os
import sys

from store.settings import SettingsError, load_as
from store.upkeep.starting import told, why_not_writable
from worker.cuda import gpus_in_use, installed_torch
from worker.settings import WorkerSettings
from worker.shares import divide, gpus_there


def tell(what: str, state: str, found: str, remedy: str = "") -> None:
    sys.stdout.write(json.dumps({"what": what, "state": state, "found": found, "remedy": remedy}) + "\n")


def main() -> int:
    try:
        settings = load_as(WorkerSettings)
    except SettingsError as error:
        tell("worker settings", "fail", str(error))
        return 0
    if (refusal := why_not_writable(settings.home)) is not None:
        found, _, remedy = told(refusal, settings).rpartition("; ")
        tell("home", "fail", found, remedy)
    torch = installed_torch()
    if torch is None:
        tell("torch", "warn", "no training here: it is not installed", 'pip install "tid-service[worker]"')
    else:
        built = f"for CUDA {torch.cuda}" if torch.cuda else "without CUDA"
        tell("torch", "ok", f"{torch.version}, built {built}")
    _gpus()
    _crew(settings)
    return 0


def _gpus() -> None:
    found = gpus_in_use()
    for gpu in found["gpus"]:
        name = f"{gpu['name']}, {gpu['memory_total_mib']} MiB, driver {found['driver']}"
        if gpu["problem"]:
            tell("GPU", "fail", f"{name}: {gpu['problem'].partition(': ')[0]}", gpu["problem"].partition(": ")[2])
        else:
            tell("GPU", "ok", name)
    if not found["gpus"]:
        hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
        if hidden is not None:
            why, remedy = f"CUDA_VISIBLE_DEVICES={hidden} leaves none", "unset it where trainings shall use a GPU"
        else:
            why = "none is seen"
            remedy = "where there is one: install NVIDIA's driver, and see that `nvidia-smi` lists it"
        tell("GPU", "warn", f"{why}; trainings use the CPU", remedy)


def _crew(settings: WorkerSettings) -> None:
    try:
        divide(settings.gpus, gpus_there(settings.gpus))
    except SettingsError as error:
        tell("TID_GPUS", "warn", str(error), "`python -m worker.crew` does not start with it; nothing else reads it")


if __name__ == "__main__":
    sys.exit(main())
