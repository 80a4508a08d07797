"""What keeping the teacher's outputs gains: images/s of a run without teacher.cache, and with it once it is warm.

    uv run python benchmarks/teacher_cache.py [--teacher NAME] [--student NAME] [--size 320] [--batch 4] [--images 16]

Random weights and images of one size, written to a temporary folder. Both take the same steps in the same process, in
turns; the losses are compared, too, and on the CPU must be equal to the last bit.
"""

import argparse
import json
import tempfile
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

from tid_core.catalogue import DETECTORS
from tid_core.detectors.build import build_detector
from tid_core.events import Event
from tid_core.plan import RunPlan, SplitPaths, TeacherPlan
from tid_core.spec import JobSpec
from tid_core.training.precision import choose_precision, numerics
from tid_core.training.trainer import Trainer

CLASSES = ["one", "two"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", default="fcos_resnet50_fpn", choices=sorted(DETECTORS))
    parser.add_argument("--student", default="fcos_resnet18_fpn", choices=sorted(DETECTORS))
    parser.add_argument("--size", type=int, default=320)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--images", type=int, default=16)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tid-teacher-cache-") as name:
        folder = Path(name)
        data = _write_data(folder, options.images, options.size)
        trainers = {kind: _trainer(folder, data, options, cache=kind == "with") for kind in ("without", "with")}
        _report(trainers, _run(trainers), options)


def _write_data(folder: Path, images: int, size: int) -> SplitPaths:
    random = np.random.default_rng(0)
    document: dict[str, Any] = {"images": [], "annotations": [], "categories": []}
    document["categories"] = [{"id": i, "name": name} for i, name in enumerate(CLASSES)]
    for i in range(images):
        Image.fromarray(random.integers(0, 255, (size, size, 3)).astype(np.uint8)).save(folder / f"{i}.png")
        document["images"].append({"id": i, "file_name": f"{i}.png", "width": size, "height": size})
        box = {"id": i, "image_id": i, "category_id": i % 2, "bbox": [8, 8, size // 3, size // 4]}
        document["annotations"].append({**box, "area": 1, "iscrowd": 0})
    (folder / "all.json").write_text(json.dumps(document))
    return SplitPaths(images=folder, annotations=folder / "all.json")


def _trainer(folder: Path, data: SplitPaths, options: argparse.Namespace, *, cache: bool) -> Trainer:
    weights = folder / "teacher.safetensors"
    if not weights.exists():
        torch.manual_seed(0)
        detector = build_detector(options.teacher, num_classes=len(CLASSES))
        save_file(detector.model.state_dict(), weights, metadata={"classes": "\n".join(CLASSES)})
    spec = JobSpec.model_validate(
        {
            "teacher": {"detector": options.teacher, "weights": {"file": str(weights)}, "cache": cache},
            "student": {"detector": options.student},
            "dataset": "random",
            "data": {"min_size": [options.size], "max_size": options.size, "flip": 0},
            "training": {"epochs": 4, "batch_size": options.batch, "lr": 1e-6},
        }
    )
    teacher = TeacherPlan(detector=options.teacher, file=weights)
    out = folder / ("with" if cache else "without")
    plan = RunPlan(spec=spec, train=data, val=data, teacher=teacher, out_dir=out)
    return Trainer(plan, choose_precision(spec.training, gpus=1), _hear, lambda: False)


def _hear(event: Event, /) -> None:
    if event.type == "warning":
        print(f"{event.code}: {event.detail}")


def _run(trainers: dict[str, Trainer]) -> dict[str, list[list[float]]]:
    """Seconds of the steps of each epoch."""
    seconds: dict[str, list[list[float]]] = {name: [] for name in trainers}
    first = next(iter(trainers.values()))
    with numerics(first.spec.training, first.precision.device):
        for epoch in range(first.spec.training.epochs):
            for name, trainer in trainers.items():
                trainer.parts.module.train()
                seconds[name].append([_step(trainer, batch) for batch in trainer.loader.epoch(epoch)])
    return seconds


def _step(trainer: Trainer, batch: Any) -> float:
    start = perf_counter()
    trainer.stepper(batch, measure=False)
    if trainer.precision.device.type == "cuda":
        torch.cuda.synchronize()
    return perf_counter() - start


def _report(trainers: dict[str, Trainer], seconds: dict[str, list[list[float]]], options: argparse.Namespace) -> None:
    losses = {name: trainer.live.window.drain() for name, trainer in trainers.items()}
    device = next(iter(trainers.values())).precision.device_name
    print(f"{options.student} from {options.teacher}, {options.batch} x {options.size} px, {device}, "
          f"{torch.get_num_threads()} threads; all losses equal: {losses['with'] == losses['without']}")  # fmt: skip
    rows = {
        "without teacher.cache": [s for epoch in seconds["without"][1:] for s in epoch],
        "with it, first epoch": seconds["with"][0][1:],
        "with it, later epochs": [s for epoch in seconds["with"][1:] for s in epoch],
    }
    for name, times in rows.items():
        print(f"  {name:<24} {options.batch / median(times):8.2f} images/s   ({median(times):.3f} s a step)")
    gain = median(rows["without teacher.cache"]) / median(rows["with it, later epochs"])
    print(f"  gain                     {gain:8.2f} x")


if __name__ == "__main__":
    main()
