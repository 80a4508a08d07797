"""What TID costs: a distillation step over (student step + teacher forward), in the same process, alternating.

    uv run python benchmarks/tid_step.py [--teacher NAME] [--student NAME] [--size 320] [--batch 4] [--repeats 7]

Random weights and images; the target on CPU at 320 pixels is a ratio of at most 1.10.
"""

import argparse
from collections.abc import Callable
from statistics import median
from time import perf_counter

import torch
from torch import Tensor
from torchvision.models.detection.image_list import ImageList

from tid_core.catalogue import DETECTORS
from tid_core.detectors.base import DenseDetector
from tid_core.detectors.build import build_detector
from tid_core.detectors.outputs import DenseOutputs
from tid_core.distillers.tid import TidDistiller
from tid_core.methods import TidSpec
from tid_core.spec import DataSpec, LossSpec

NUM_CLASSES = 91
TARGET = 1.10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", default="retinanet_resnet50_fpn", choices=sorted(DETECTORS))
    parser.add_argument("--student", default="fcos_resnet18_fpn", choices=sorted(DETECTORS))
    parser.add_argument("--size", type=int, default=320)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--boxes", type=int, default=8, help="ground truths per image")
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    data = DataSpec(min_size=[options.size], max_size=options.size)
    student = build_detector(options.student, num_classes=NUM_CLASSES, data=data).train().to(device)
    teacher = (
        build_detector(options.teacher, num_classes=NUM_CLASSES, data=data).eval().to(device).requires_grad_(False)
    )
    images, targets = student.transform(*_batch(options.batch, options.size, options.boxes, device))
    steps = _steps(student, teacher, images, targets)
    times = _time(steps, options.repeats, device)
    _report(times, f"{options.student} from {options.teacher}, {options.batch} x {options.size} px on {device}")


def _batch(batch: int, size: int, boxes: int, device: torch.device) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    images = [torch.rand(3, size, size, device=device) for _ in range(batch)]
    targets = []
    for _ in range(batch):
        corner = torch.rand(boxes, 2, device=device) * size * 0.6
        side = (0.05 + 0.35 * torch.rand(boxes, 2, device=device)) * size
        labels = torch.randint(NUM_CLASSES, (boxes,), device=device)
        targets.append({"boxes": torch.cat([corner, corner + side], dim=1), "labels": labels})
    return images, targets


def _steps(
    student: DenseDetector, teacher: DenseDetector, images: ImageList, targets: list[dict[str, Tensor]]
) -> dict[str, Callable[[], None]]:
    """Forward and backward, without the optimiser, which is the same on both sides."""
    distiller = TidDistiller(
        TidSpec(),
        LossSpec(),
        student=student.info,
        teacher=teacher.info,
        student_matcher=student.matcher_thresholds,
        teacher_matcher=teacher.matcher_thresholds,
    ).to(images.tensors.device)

    def look() -> DenseOutputs:
        with torch.no_grad():
            return teacher.dense_forward(images)

    def plain() -> None:
        look()
        torch.autograd.backward(_task(student.dense_forward(images, targets)))

    def distilled() -> None:
        taught, outputs = look(), student.dense_forward(images, targets)
        result = distiller(outputs, taught, targets)
        torch.autograd.backward(_task(outputs) + result.total)

    return {"plain": plain, "tid": distilled}


def _task(outputs: DenseOutputs) -> Tensor:
    return torch.stack(list(outputs.losses.values())).sum()


def _time(steps: dict[str, Callable[[], None]], repeats: int, device: torch.device) -> dict[str, list[float]]:
    """Seconds per step; the two take turns, so that what slows the machine slows both."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for repeat in range(repeats + 1):
        for name, step in steps.items():
            start = perf_counter()
            step()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if repeat:  # the first warms up
                times[name].append(perf_counter() - start)
    return times


def _report(times: dict[str, list[float]], title: str) -> None:
    plain, tid = median(times["plain"]), median(times["tid"])
    ratios = [t / p for t, p in zip(times["tid"], times["plain"], strict=True)]
    print(f"{title}, {torch.get_num_threads()} threads, median of {len(ratios)}")
    print(f"  student step + teacher forward  {plain * 1e3:9.1f} ms")
    print(f"  the same with TID               {tid * 1e3:9.1f} ms")
    print(f"  ratio                           {median(ratios):9.3f}    (target <= {TARGET:.2f})")


if __name__ == "__main__":
    main()
