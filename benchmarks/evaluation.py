"""COCO evaluation of 5,000 images and 500,000 detections: our evaluator with hotcoco beside it with pycocotools.

    uv run python benchmarks/evaluation.py

The time of an evaluation holds everything between the detections as tensors and the twelve numbers. pycocotools takes
about a minute and 2.5 GB; `--fast` leaves it out.
"""

import argparse
import time
from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor

from tid_core.evaluation import Evaluation, GroundTruth, evaluate
from tid_core.spec import EvaluationSpec

IMAGES, CLASSES, BOXES_PER_IMAGE, DETECTIONS_PER_IMAGE = 5_000, 80, 7, 100
WIDTH, HEIGHT = 640, 480


def make_truth(random: np.random.Generator, images: int = IMAGES) -> GroundTruth:
    count = images * BOXES_PER_IMAGE
    size_B2 = np.exp(random.uniform(np.log(8), np.log(300), (count, 2)))
    corner_B2 = random.uniform(0, 1, (count, 2)) * (np.array([WIDTH, HEIGHT]) - size_B2)
    return GroundTruth(
        classes=[f"class {i}" for i in range(CLASSES)],
        category_ids=list(range(1, CLASSES + 1)),
        image_ids=list(range(images)),
        sizes=[(HEIGHT, WIDTH)] * images,
        image_B=np.repeat(np.arange(images), BOXES_PER_IMAGE),
        label_B=random.integers(CLASSES, size=count),
        xywh_B4=np.hstack([corner_B2, size_B2]),
        area_B=size_B2.prod(1) * 0.6,
        crowd_B=(random.random(count) < 0.01).astype(np.int64),
    )


def make_detections(truth: GroundTruth, random: np.random.Generator) -> list[Mapping[str, Tensor]]:
    """Around a third of the detections lie near a ground-truth box, most of those with its label."""
    return [_found(truth, i, random) for i in range(len(truth.sizes))]


def _found(truth: GroundTruth, image: int, random: np.random.Generator) -> Mapping[str, Tensor]:
    part = slice(image * BOXES_PER_IMAGE, (image + 1) * BOXES_PER_IMAGE)
    pick = random.integers(BOXES_PER_IMAGE, size=DETECTIONS_PER_IMAGE)
    xywh_D4, labels_D = truth.xywh_B4[part][pick], truth.label_B[part][pick]
    near_D = random.random(DETECTIONS_PER_IMAGE) < 0.33
    spread_D1 = np.where(near_D, 0.1, 2.0)[:, None]
    xywh_D4 = xywh_D4 + random.normal(size=xywh_D4.shape) * spread_D1 * xywh_D4[:, [2, 3, 2, 3]] * 0.5
    wrong_D = random.random(DETECTIONS_PER_IMAGE) < np.where(near_D, 0.2, 0.8)
    labels_D = np.where(wrong_D, random.integers(CLASSES, size=DETECTIONS_PER_IMAGE), labels_D)
    scores_D = np.clip(random.beta(1, 4, DETECTIONS_PER_IMAGE) + 0.4 * near_D, 0.05, 1).round(3)
    corner_D2, size_D2 = xywh_D4[:, :2], np.maximum(xywh_D4[:, 2:], 1.0)
    boxes_D4 = torch.from_numpy(np.hstack([corner_D2, corner_D2 + size_D2])).float()
    return {
        "boxes": boxes_D4,
        "scores": torch.from_numpy(scores_D).float(),
        "labels": torch.from_numpy(labels_D),
    }


def timed(work: Callable[[], Evaluation], repeats: int) -> tuple[float, Evaluation]:
    """Seconds of the fastest of `repeats`, and what came out."""
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        result = work()
        best = min(best, time.perf_counter() - start)
    return best, result


def main() -> None:
    parser = argparse.ArgumentParser(description="Times the COCO evaluation.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--fast", action="store_true", help="without pycocotools")
    arguments = parser.parse_args()
    random = np.random.default_rng(arguments.seed)
    truth = make_truth(random)
    detections = make_detections(truth, random)
    num_detections = IMAGES * DETECTIONS_PER_IMAGE
    print(f"{IMAGES:,} images, {len(truth.label_B):,} boxes, {num_detections:,} detections, seed {arguments.seed}")
    ours, fast = timed(lambda: evaluate(detections, truth, EvaluationSpec(backend="hotcoco")), 3)
    print(f"hotcoco      {ours:7.2f} s   AP {fast.stats['AP']:.6f}   (goal: at most 1 s)")
    if arguments.fast:
        return
    peer, slow = timed(lambda: evaluate(detections, truth, EvaluationSpec(backend="pycocotools")), 1)
    print(f"pycocotools  {peer:7.2f} s   AP {slow.stats['AP']:.6f}")
    print(f"ratio        {peer / ours:7.1f}     all numbers equal: {fast == slow}")


if __name__ == "__main__":
    main()
