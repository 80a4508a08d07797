"""The evaluator: both backends give the same numbers, and those are right where they can be known."""

import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor

from tid_core.data.annotations import read_coco
from tid_core.evaluation import GroundTruth, evaluate, ground_truth, to_coco_results
from tid_core.spec import EvaluationSpec
from tid_core.training.products import evaluation_values

torch.set_num_threads(1)
Backend = Literal["hotcoco", "pycocotools"]
BACKENDS: list[Backend] = ["hotcoco", "pycocotools"]
Found = dict[str, Tensor]


def found(*rows: list[float]) -> Found:
    """Rows of x1, y1, x2, y2, score, label."""
    table = torch.tensor(rows, dtype=torch.float32).reshape(-1, 6)
    return {"boxes": table[:, :4], "scores": table[:, 4], "labels": table[:, 5].long()}


def write_coco(path: Path, random: np.random.Generator, images: int = 60) -> None:
    """Boxes of all sizes, some crowds, areas of masks, empty images, ids out of order and one class unused."""
    ids = random.permutation(1000)[:images].tolist()
    annotations: list[dict[str, Any]] = []
    for identity in ids[5:]:
        for _ in range(random.integers(1, 9)):
            width, height = np.exp(random.uniform(np.log(5), np.log(250), 2)).round(1).tolist()
            x, y = (random.uniform(0, 1, 2) * [640 - width, 480 - height]).round(1).tolist()
            entry = {"id": len(annotations) + 1, "image_id": identity, "category_id": int(random.integers(1, 5)) * 3}
            size = {"area": width * height * 0.7, "iscrowd": int(random.random() < 0.05)}
            annotations.append({**entry, **size, "bbox": [x, y, width, height]})
    coco = {
        "images": [{"id": i, "file_name": f"{i}.jpg", "width": 640, "height": 480} for i in ids],
        "annotations": annotations,
        "categories": [{"id": i * 3, "name": f"class {i}"} for i in range(1, 6)],
    }
    path.write_text(json.dumps(coco))


def make_detections(truth: GroundTruth, random: np.random.Generator) -> list[Found]:
    """Shifted copies of the boxes, with wrong labels, duplicates, strays and tied scores; some images without any."""
    detections = []
    for i in range(len(truth.sizes)):
        own = truth.image_B == i
        if random.random() < 0.1 or not own.any():
            detections.append(found())
            continue
        pick = random.integers(own.sum(), size=40)
        xywh, labels = truth.xywh_B4[own][pick], truth.label_B[own][pick]
        corner = xywh[:, :2] + random.normal(size=(40, 2)) * 0.1 * xywh[:, 2:]
        size = xywh[:, 2:] * np.exp(random.normal(size=(40, 2)) * 0.15)
        labels = np.where(random.random(40) < 0.2, random.integers(4, size=40), labels)
        columns = [corner, corner + size, random.random((40, 1)).round(2), labels[:, None]]
        detections.append(found(*np.hstack(columns).tolist()))
    return detections


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, GroundTruth, list[Found]]:
    path = tmp_path_factory.mktemp("evaluation") / "val.json"
    random = np.random.default_rng(0)
    write_coco(path, random)
    truth = ground_truth(read_coco(path))
    return path, truth, make_detections(truth, random)


@pytest.mark.parametrize("limit", [1, 7, 20, 100, 300])
def test_both_backends_agree_in_every_bit(case: tuple[Path, GroundTruth, list[Found]], limit: int) -> None:
    _, truth, detections = case
    fast, slow = (
        evaluate(detections, truth, EvaluationSpec(backend=backend, max_detections=limit)) for backend in BACKENDS
    )
    assert fast == slow
    assert 0.02 < (fast.stats["AP"] or 0) < 0.95
    assert fast.per_class["class 5"] is None


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_numbers_are_those_of_pycocotools_on_the_files(
    case: tuple[Path, GroundTruth, list[Found]], backend: Backend
) -> None:
    path, truth, detections = case
    # Quarters of a pixel survive the rounding of the results file.
    exact = [{**one, "boxes": (one["boxes"] * 4).round() / 4} for one in detections]
    ours = evaluate(exact, truth, EvaluationSpec(backend=backend))
    gt = COCO(path)
    judge = COCOeval(gt, gt.loadRes(to_coco_results(exact, truth)), "bbox")
    judge.evaluate()
    judge.accumulate()
    judge.summarize()
    assert list(ours.stats) == ["AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl"]
    assert list(ours.stats.values()) == pytest.approx(judge.stats.tolist(), abs=1e-6)


def tiny(**columns: Any) -> GroundTruth:
    """Two images and two classes; one box of 50 x 50 pixels on the first image."""
    boxes: dict[str, Any] = {
        "image_B": np.array([0]),
        "label_B": np.array([0]),
        "xywh_B4": np.array([[10.0, 10.0, 50.0, 50.0]]),
        "area_B": np.array([2500.0]),
        "crowd_B": np.array([0]),
    }
    names: dict[str, Any] = {"classes": ["cat", "dog"], "category_ids": [1, 2], "image_ids": [1, 2]}
    return GroundTruth(**names, sizes=[(100, 100)] * 2, **{**boxes, **columns})


RIGHT = [10, 10, 60, 60, 0.9, 0]


@pytest.mark.parametrize("backend", BACKENDS)
def test_known_values(backend: Backend) -> None:
    settings = EvaluationSpec(backend=backend)
    right = evaluate([found(RIGHT), found()], tiny(), settings)
    assert [right.stats[name] for name in ("AP", "APm", "AR1")] == pytest.approx([1, 1, 1])
    assert right.stats["APs"] is right.stats["APl"] is None
    assert right.per_class == {"cat": pytest.approx(1), "dog": None}
    # IoU 0.62: found at .50, .55 and .60 alone.
    partly = evaluate([found([10, 10, 60, 41, 0.9, 0]), found()], tiny(), settings)
    assert partly.stats["AP"] == pytest.approx(0.3)
    assert [partly.stats["AP50"], partly.stats["AP75"]] == pytest.approx([1, 0])
    wrong = evaluate([found([*RIGHT[:5], 1]), found()], tiny(), settings)
    assert wrong.stats["AP"] == 0


def test_vocs_metrics_are_given_where_they_are_asked_for() -> None:
    settings = EvaluationSpec(metrics=["coco", "voc"])
    # IoU 0.62, and a stray that is worse: precision 1 up to recall 1.
    partly = evaluate([found([10, 10, 60, 41, 0.9, 0], [70, 70, 90, 90, 0.1, 0]), found()], tiny(), settings)
    assert (partly.stats["VOC07_mAP"], partly.stats["VOC_mAP"]) == (1, 1)
    assert partly.voc07_per_class == {"cat": 1, "dog": None}
    assert partly.stats["AP"] == pytest.approx(0.3)
    named = evaluation_values(partly, "val")
    assert (named["val/VOC_mAP"], named["val/class/cat/VOC07_AP"]) == (1, 1)
    assert "val/class/dog/VOC07_AP" not in named
    assert "VOC_mAP" not in evaluate([found(), found()], tiny()).stats
    assert evaluate([found(), found()], tiny(), settings).stats["VOC_mAP"] == 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_detection_on_a_crowd_is_not_wrong(backend: Backend) -> None:
    settings = EvaluationSpec(backend=backend)
    crowd = {"image_B": [0, 1], "label_B": [0, 0], "area_B": [2500.0, 9e3], "crowd_B": [0, 1]}
    truth = tiny(xywh_B4=np.array([[10.0, 10, 50, 50], [0, 0, 90, 100]]), **{k: np.array(v) for k, v in crowd.items()})
    stray = found([20, 20, 40, 40, 0.95, 0])
    assert evaluate([found(RIGHT), stray], truth, settings).stats["AP"] == pytest.approx(1)
    assert evaluate([found(RIGHT), stray], tiny(), settings).stats["AP"] == pytest.approx(0.5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_nothing_detected_is_zero_and_nothing_to_detect_is_none(backend: Backend) -> None:
    settings = EvaluationSpec(backend=backend)
    missed = evaluate([found(), found()], tiny(), settings)
    assert (missed.stats["AP"], missed.stats["AR100"], missed.stats["APs"]) == (0, 0, None)
    empty = {"image_B": (0,), "label_B": (0,), "xywh_B4": (0, 4), "area_B": (0,), "crowd_B": (0,)}
    nothing = tiny(**{k: np.zeros(v, dtype=np.int64 if k[0] in "ilc" else np.float64) for k, v in empty.items()})
    for detections in ([found(), found()], [found(RIGHT), found()]):
        assert set(evaluate(detections, nothing, settings).stats.values()) == {None}


@pytest.mark.parametrize("backend", BACKENDS)
def test_only_the_best_detections_of_an_image_count(backend: Backend) -> None:
    better = [[0, 0, 5, 5, 0.95, 1]] * 3
    detections = [found([*RIGHT], *better), found()]
    assert evaluate(detections, tiny(), EvaluationSpec(backend=backend, max_detections=4)).stats["AP"] == pytest.approx(
        1
    )
    assert evaluate(detections, tiny(), EvaluationSpec(backend=backend, max_detections=3)).stats["AP"] == 0


def test_detections_that_do_not_fit_the_split_are_refused() -> None:
    with pytest.raises(ValueError, match="1 images with detections, 2 with ground truth"):
        evaluate([found(RIGHT)], tiny())
    with pytest.raises(ValueError, match=r"labels must lie in 0\.\.1"):
        evaluate([found([*RIGHT[:5], 2]), found()], tiny())
