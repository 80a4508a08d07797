"""What each method costs: its step over (student step + teacher forward), all in one process, taking turns.

    uv run python benchmarks/method_step.py [--teacher NAME] [--student NAME] [--size 320] [--batch 4] [--repeats 7]

Random weights and images; the target on CPU at 320 pixels is a ratio of at most 1.25. Methods that the pair cannot
carry are listed with the reason.
"""

import argparse
from collections.abc import Callable
from statistics import median
from time import perf_counter

import torch
from torch import Tensor

from tid_core.catalogue import DETECTORS
from tid_core.detectors.build import build_detector
from tid_core.distillers import BUILDERS, build_distiller
from tid_core.preflight import check
from tid_core.spec import JobSpec
from tid_core.training.precision import Precision
from tid_core.training.step import Teacher, TrainingStep

NUM_CLASSES = 80
TARGET = 1.25
PLAIN = "none"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", default="gfl_resnet50_fpn", choices=sorted(DETECTORS))
    parser.add_argument("--student", default="gfl_resnet18_fpn", choices=sorted(DETECTORS))
    parser.add_argument("--methods", nargs="+", default=list(BUILDERS), choices=list(BUILDERS))
    parser.add_argument("--size", type=int, default=320)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--boxes", type=int, default=8, help="ground truths per image")
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    specs = {name: _spec(options, name) for name in options.methods}
    refused = {name: told for name, spec in specs.items() if (told := _refusal(spec))}
    methods = [name for name in specs if name not in refused]
    steps = _steps([_spec(options, PLAIN), *(specs[name] for name in methods)], options, device)
    times = _time(steps, options.repeats, device)
    _report(times, f"{options.student} from {options.teacher}, {options.batch} x {options.size} px on {device}")
    for name, told in refused.items():
        print(f"  {name:<10} not this pair: {told}")


def _spec(options: argparse.Namespace, method: str) -> JobSpec:
    return JobSpec.model_validate(
        {
            "teacher": {"detector": options.teacher, "weights": {"file": "random.pt"}},
            "student": {"detector": options.student},
            "dataset": "random",
            "method": method,
            "data": {"min_size": [options.size], "max_size": options.size},
        }
    )


def _refusal(spec: JobSpec) -> str:
    return "; ".join(p.detail for p in check(spec, dataset=None, teacher=None) if p.severity == "error")


def _batch(options: argparse.Namespace, device: torch.device) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    size, boxes = options.size, options.boxes
    images = [torch.rand(3, size, size, device=device) for _ in range(options.batch)]
    targets = []
    for _ in range(options.batch):
        corner = torch.rand(boxes, 2, device=device) * size * 0.6
        side = (0.05 + 0.35 * torch.rand(boxes, 2, device=device)) * size
        labels = torch.randint(NUM_CLASSES, (boxes,), device=device)
        targets.append({"boxes": torch.cat([corner, corner + side], dim=1), "labels": labels})
    return images, targets


def _steps(specs: list[JobSpec], options: argparse.Namespace, device: torch.device) -> dict[str, Callable[[], None]]:
    """Forward of the teacher, forward and backward of the student: the training's own step, without the optimiser.

    All methods share student and teacher.
    """
    torch.manual_seed(0)
    precision = Precision(device, "fp32")
    student = build_detector(options.student, num_classes=NUM_CLASSES, data=specs[0].data).train().to(device)
    network = build_detector(options.teacher, num_classes=NUM_CLASSES, data=specs[0].data).to(device)
    teacher = Teacher(network, torch.arange(NUM_CLASSES), precision)
    images, targets = student.transform(*_batch(options, device))

    def make(spec: JobSpec) -> Callable[[], None]:
        module = TrainingStep(student, build_distiller(spec, student, network), spec.loss, precision).to(device)

        def step() -> None:
            losses = module(images, targets, teacher(images), 1.0)
            torch.autograd.backward(losses.total)
            module.zero_grad()

        return step

    return {spec.method_name: make(spec) for spec in specs}


def _time(steps: dict[str, Callable[[], None]], repeats: int, device: torch.device) -> dict[str, list[float]]:
    """Seconds per step; all take turns, so that what slows the machine slows all."""
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
    plain = times.pop(PLAIN)
    print(f"{title}, {torch.get_num_threads()} threads, median of {len(plain)}")
    print(f"  student step + teacher forward: {median(plain) * 1e3:.0f} ms")
    print(f"  {'method':<10} {'step, ms':>9} {'ratio':>7} {'range':>13}   (target <= {TARGET:.2f})")
    for name, seconds in times.items():
        ratios = sorted(s / p for s, p in zip(seconds, plain, strict=True))
        spread = f"{ratios[0]:.2f} to {ratios[-1]:.2f}"
        print(f"  {name:<10} {median(seconds) * 1e3:9.0f} {median(ratios):7.3f} {spread:>13}")


if __name__ == "__main__":
    main()
