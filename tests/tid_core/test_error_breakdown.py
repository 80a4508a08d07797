"""Kinds of errors and what mending them gains, against values worked out by hand; boxes are 20 pixels square."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tid_core import error_breakdown as module
from tid_core.error_breakdown import KINDS, ErrorKind, error_breakdown
from tid_core.evaluation import GroundTruth, evaluate
from tid_core.spec import EvaluationSpec

CAT, DOG = 0, 1
SIDE = 20.0
Place = tuple[float, float]


def make_truth(*boxes: tuple[Place, int], crowd: tuple[int, ...] = (), images: int = 1) -> GroundTruth:
    """Boxes (corner, label), all on the first image; those at the places `crowd` are crowds."""
    return GroundTruth(
        classes=["cat", "dog"],
        category_ids=[1, 2],
        image_ids=list(range(images)),
        sizes=[(500, 500)] * images,
        image_B=np.zeros(len(boxes), dtype=np.int64),
        label_B=np.array([label for _, label in boxes], dtype=np.int64),
        xywh_B4=np.array([[*corner, SIDE, SIDE] for corner, _ in boxes]).reshape(-1, 4),
        area_B=np.full(len(boxes), SIDE * SIDE),
        crowd_B=np.array([int(i in crowd) for i in range(len(boxes))], dtype=np.int64),
    )


def found(*rows: tuple[Place, int, float]) -> dict[str, Tensor]:
    """Detections (corner, label, score) of one image."""
    corners = torch.tensor([corner for corner, _, _ in rows], dtype=torch.float64).reshape(-1, 2)
    return {
        "boxes": torch.cat([corners, corners + SIDE], dim=1),
        "labels": torch.tensor([label for _, label, _ in rows], dtype=torch.int64),
        "scores": torch.tensor([score for _, _, score in rows], dtype=torch.float64),
    }


def counts(errors: dict[str, ErrorKind]) -> dict[str, int]:
    return {kind: found.count for kind, found in errors.items() if found.count}


def test_each_kind_once() -> None:
    """Five cats, of which one is found first, one last; a dog that is found. Recalls are counted in hundredths.

    Cats, by falling score: right, duplicate, localisation, background, both, right. So the precision is 1 up to a
    recall of .2 (21 recalls), 2/6 up to .4 (20 recalls), 0 beyond; the dogs' AP is 1, and AP50 the mean of the two.
    """
    cats: list[Place] = [(0, 0), (100, 0), (200, 0), (300, 0), (400, 0)]
    truth = make_truth(*((corner, CAT) for corner in cats), ((0, 200), DOG))
    detections = [
        found(
            ((0, 0), CAT, 0.95),
            ((0, 0), CAT, 0.90),  # duplicate
            ((110, 0), CAT, 0.85),  # localisation: IoU 1/3 with the second cat
            ((300, 300), CAT, 0.80),  # background
            ((10, 200), CAT, 0.75),  # both: IoU 1/3 with the dog
            ((400, 0), CAT, 0.10),
            ((0, 200), DOG, 0.95),
            ((200, 0), DOG, 0.70),  # classification: on the third cat; the fourth is missed
        )
    ]
    before = 21 + 20 * 2 / 6
    assert evaluate(detections, truth).stats["AP50"] == pytest.approx((before / 101 + 1) / 2)
    cats_mended = {
        "classification": 21 + 40 * 3 / 7,  # right .70 and .10, at ranks 6 and 7: 3/7 up to .6
        "localisation": 21 + 20 * 2 / 3 + 20 * 3 / 6,  # the third is right: 2/3 up to .4, 3/6 up to .6
        "both": 21 + 20 * 2 / 5,
        "duplicate": 21 + 20 * 2 / 5,
        "background": 21 + 20 * 2 / 5,
        "missed": 26 + 25 * 2 / 6,  # four cats: recalls up to .25 and .5
    }
    errors = error_breakdown(detections, truth, 100)
    assert {kind: one.count for kind, one in errors.items()} == dict.fromkeys(KINDS, 1)
    gains = {kind: one.dap50 for kind, one in errors.items()}
    assert gains == pytest.approx({kind: (after - before) / 101 / 2 for kind, after in cats_mended.items()})


def test_an_error_about_a_box_that_was_found_goes_away_when_mended() -> None:
    """Two cats. Beside the second lies a better scored detection than the right one: 2/3 up to recall 1, then 1."""
    truth = make_truth(((0, 0), CAT), ((100, 0), CAT))
    for label, kind in ((CAT, "localisation"), (DOG, "classification")):
        wrong = ((110, 0), CAT, 0.8) if kind == "localisation" else ((100, 0), label, 0.8)
        errors = error_breakdown([found(((0, 0), CAT, 0.9), wrong, ((100, 0), CAT, 0.7))], truth, 100)
        assert counts(errors) == {kind: 1}
        # A dog where there is none costs no AP: the mean is over the classes that are there.
        assert errors[kind].dap50 == pytest.approx(50 / 3 / 101 if kind == "localisation" else 0)


def test_of_several_errors_about_one_box_the_best_scored_becomes_right() -> None:
    truth = make_truth(((0, 0), CAT))
    tries = [((10.0, 0.0), CAT, 0.5), ((0.0, 10.0), CAT, 0.9), ((11.0, 0.0), CAT, 0.7)]
    errors = error_breakdown([found(*tries, ((300, 0), CAT, 0.8))], truth, 100)
    assert counts(errors) == {"localisation": 3, "background": 1}
    assert errors["localisation"].dap50 == pytest.approx(1)  # right .9, then the stray
    assert errors["background"].dap50 == 0


def test_a_class_of_which_all_is_missed() -> None:
    """Without anything to find it is perfect where nothing was detected, and worthless where something was."""
    truth = make_truth(((0, 0), CAT), ((100, 0), DOG))
    right = ((0.0, 0.0), CAT, 0.9)
    errors = error_breakdown([found(right)], truth, 100)
    assert counts(errors) == {"missed": 1}
    assert errors["missed"].dap50 == pytest.approx(0.5)
    assert error_breakdown([found(right, ((300, 0), DOG, 0.5))], truth, 100)["missed"].dap50 == 0


def test_where_two_kinds_would_do_the_first_of_the_papers_code_is_taken() -> None:
    """Half on a cat, wholly on a dog: localisation comes before classification, and that before duplicate."""
    truth = make_truth(((0, 0), CAT), ((10, 0), DOG))
    assert counts(error_breakdown([found(((10, 0), CAT, 0.9))], truth, 100)) == {"localisation": 1, "missed": 1}
    close = make_truth(((0, 0), CAT), ((2, 0), DOG))
    twice = [found(((0, 0), CAT, 0.9), ((1, 0), CAT, 0.8))]
    assert counts(error_breakdown(twice, close, 100)) == {"classification": 1}


def test_what_lies_on_a_crowd_is_no_error_and_a_crowd_is_not_missed() -> None:
    truth = make_truth(((0, 0), CAT), ((100, 0), CAT), crowd=(1,))
    on_crowd = [((100.0, 0.0), CAT, 0.95), ((110.0, 0.0), CAT, 0.94)]
    errors = error_breakdown([found(((0, 0), CAT, 0.9), *on_crowd)], truth, 100)
    assert counts(errors) == {}
    assert counts(error_breakdown([found(((100, 0), DOG, 0.9))], truth, 100)) == {"background": 1, "missed": 1}


def test_only_the_best_detections_of_an_image_count() -> None:
    rows = [((0.0, 0.0), CAT, 0.5), *(((300.0, 0.0), CAT, 0.6 + i / 10) for i in range(3))]
    truth = make_truth(((0, 0), CAT), images=2)
    assert counts(error_breakdown([found(*rows), found()], truth, 4)) == {"background": 3}
    assert counts(error_breakdown([found(*rows), found()], truth, 3)) == {"background": 3, "missed": 1}


def test_nothing_detected_and_nothing_to_detect() -> None:
    all_missed = error_breakdown([found()], make_truth(((0, 0), CAT)), 100)
    assert counts(all_missed) == {"missed": 1}
    assert all_missed["missed"].dap50 == 1
    nothing = error_breakdown([found(((0, 0), CAT, 0.9))], make_truth(), 100)
    assert counts(nothing) == {"background": 1}
    assert {one.dap50 for one in nothing.values()} == {None}


def random_case(images: int = 60) -> tuple[GroundTruth, list[dict[str, Tensor]]]:
    """Boxes and crowds of four classes, one of them without any; detections near them, tied scores, empty images."""
    random = np.random.default_rng(4)
    image_B = np.repeat(np.arange(images), random.integers(0, 8, images))
    size_B2 = np.exp(random.uniform(np.log(20), np.log(150), (len(image_B), 2)))
    columns: dict[str, Any] = {
        "label_B": random.integers(0, 3, len(image_B)),
        "xywh_B4": np.hstack([random.uniform(0, 300, (len(image_B), 2)), size_B2]),
        "area_B": size_B2.prod(1),
        "crowd_B": (random.random(len(image_B)) < 0.1).astype(np.int64),
    }
    names: dict[str, Any] = {"classes": list("abcd"), "category_ids": [1, 2, 3, 4], "image_ids": list(range(images))}
    truth = GroundTruth(**names, sizes=[(640, 640)] * images, image_B=image_B, **columns)
    detections = []
    for i in range(images):
        (own,) = np.nonzero(image_B == i)
        picked = random.choice(own, 20) if len(own) else own
        xywh = truth.xywh_B4[picked] * np.exp(random.normal(size=(len(picked), 4)) * 0.15)
        labels = np.where(random.random(len(picked)) < 0.3, random.integers(0, 4, len(picked)), truth.label_B[picked])
        detections.append(
            {
                "boxes": torch.from_numpy(np.hstack([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]])),
                "scores": torch.from_numpy(random.random(len(picked)).round(1)),
                "labels": torch.from_numpy(labels),
            }
        )
    return truth, detections


@pytest.mark.parametrize("limit", [10, 100])
def test_every_detection_has_one_verdict_and_mending_never_harms(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    truth, detections = random_case()
    errors = error_breakdown(detections, truth, limit)
    assert all(one.count > 0 for one in errors.values())
    assert all(one.dap50 is not None and 0 <= one.dap50 < 1 for one in errors.values())
    verdicts = module._judge(detections, truth, limit)
    detected = sum(one.count for kind, one in errors.items() if kind != "missed")
    assert detected + int((~verdicts.counted_D).sum() + verdicts.right_D.sum()) == len(verdicts.label_D)
    monkeypatch.setattr(module, "PAIRS_AT_ONCE", 7)
    assert error_breakdown(detections, truth, limit) == errors


@pytest.mark.parametrize("limit", [10, 100])
def test_what_is_mended_is_cocos_ap50(limit: int) -> None:
    truth, detections = random_case()
    verdicts = module._judge(detections, truth, limit)
    wanted = np.bincount(truth.label_B[truth.crowd_B == 0], minlength=4)
    assert module._ap50(verdicts, wanted) == pytest.approx(
        evaluate(detections, truth, EvaluationSpec(max_detections=limit)).stats["AP50"]
    )


def test_perfect_detections_have_no_errors() -> None:
    truth, _ = random_case()
    perfect = []
    for i in range(len(truth.sizes)):
        own = (truth.image_B == i) & (truth.crowd_B == 0)
        xywh = truth.xywh_B4[own]
        boxes = torch.from_numpy(np.hstack([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]]))
        perfect.append(
            {"boxes": boxes, "scores": torch.ones(len(boxes)), "labels": torch.from_numpy(truth.label_B[own])}
        )
    assert set(error_breakdown(perfect, truth, 100).values()) == {ErrorKind(0, 0.0)}
