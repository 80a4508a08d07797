"""Task adaptive regularization: only where the teacher is better, and less and less."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tid_core.catalogue import DETECTORS
from tid_core.detectors.build import build_detector
from tid_core.distillers.tar import TarDistiller
from tid_core.methods import TarSpec
from tid_core.spec import DataSpec

TINY = DETECTORS["fcos_conv5_tiny"]
GRID = ((6, 5), (3, 3), (2, 2))
ALL = {"feature_weight": 1.0, "class_weight": 1.0, "box_weight": 1.0, "distance": "mse"}


def plain(regression_NL4: Tensor, anchors_L4: Tensor) -> Tensor:
    """Boxes as offsets of the anchors' corners."""
    return anchors_L4 + regression_NL4


def with_heads(outputs: Any) -> Any:
    """The same with the codes of its boxes, as `plain` reads them."""
    return replace(outputs, head_outputs={"bbox_regression": outputs.boxes_NL4 - outputs.anchors_L4})


def terms(result: Any) -> dict[str, float]:
    return {name.removeprefix("distill/"): float(term.detach()) for name, term in result.terms.items()}


@pytest.fixture
def by_hand(make_outputs: Callable[..., Any]) -> dict[str, Any]:
    """Points at x = 0, 8, 16, 24; the ground truth, of class 1, is 32 x 8 around (16, 0): it holds the last three."""
    truth = [0.0, -4, 32, 4]
    half, quarter, most = [0.0, -4, 16, 4], [0.0, -4, 8, 4], [0.0, -4, 24, 4]
    levels = {"grid": [(1, 4)], "strides": [8]}
    same, away = torch.rand(1, 2, 1, 4), torch.zeros(1, 2, 1, 4)
    away[0, 0, 0] = torch.tensor([9.0, 1.0, 2.0, 3.0]).sqrt()
    teacher = make_outputs(
        **levels,
        features=[same],
        logits_NLK=torch.tensor([[[0.5, 0.9], [0.5, 0.5], [0.5, 0.5], [0.5, 0.3]]]).logit(),
        boxes_NL4=torch.tensor([[truth, most, half, quarter]]),
    )
    student = make_outputs(
        **levels,
        features=[same + away],
        logits_NLK=torch.tensor([[[0.5, 0.1], [0.5, 0.2], [0.5, 0.6], [0.2, 0.4]]]).logit(),
        boxes_NL4=torch.tensor([[half, quarter, most, most]]),
    )
    targets = [{"boxes": torch.tensor([truth]), "labels": torch.tensor([1])}]
    return {"student": with_heads(student), "teacher": teacher, "targets": targets}


def run(batch: dict[str, Any], **settings: Any) -> dict[str, float]:
    info = replace(TINY, strides=(8,), channels=2)
    distiller = TarDistiller(TarSpec(**{**ALL, **settings}), student=info, teacher=info, decode=plain)
    return terms(distiller(**batch))


def test_features_by_hand(by_hand: dict[str, Any]) -> None:
    """8, 0 and 8 from the middle with a half side of 16: the Gaussian of width 1 is e^-.25, 1, e^-.25."""
    bell = math.exp(-0.25)
    assert run(by_hand, bell_width=1.0)["features"] == pytest.approx((bell * 0.5 + 1 + bell * 1.5) / (2 * bell + 1))


def test_classes_by_hand(by_hand: dict[str, Any]) -> None:
    """Of the three points inside, the teacher gives class 1 more than the student at the first alone: .5 to .2.

    That is ln 1.25. Without that choice: also .5 to .6, -ln(.6 * .4 * 4) / 2, and at the last point both classes.
    """
    assert run(by_hand)["classes"] == pytest.approx(math.log(1.25), rel=1e-5)
    last = math.log(1.25) + 0.3 * math.log(0.3 / 0.4) + 0.7 * math.log(0.7 / 0.6)
    whole = (math.log(1.25) - math.log(0.96) / 2 + last) / 3
    assert run(by_hand, adaptive=False)["classes"] == pytest.approx(whole, rel=1e-5)


def test_boxes_by_hand(by_hand: dict[str, Any]) -> None:
    """The teacher's IoUs are 1, .75, .5, .25, the student's .5, .25, .75, .75: better at the first two points.

    There the two boxes have IoUs of 1 / 2 and 1 / 3, and one holds the other: 1 - GIoU = .5 and 2 / 3. As corners they
    are 16 pixels or 2 strides apart in one of four: (2 - .5) / 4 each. From an IoU of .8 on only the first counts;
    without the choice the third does too (.5 is enough), with IoU 2 / 3.
    """
    assert run(by_hand)["boxes"] == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert run(by_hand, box_distance="smooth_l1")["boxes"] == pytest.approx(1.5 / 4)
    assert run(by_hand, iou_from=0.8)["boxes"] == pytest.approx(1 / 2)
    assert run(by_hand, adaptive=False)["boxes"] == pytest.approx((1 / 2 + 2 / 3 + 1 / 3) / 3)


def test_a_better_student_learns_no_boxes(by_hand: dict[str, Any]) -> None:
    swapped = {**by_hand, "student": with_heads(replace(by_hand["student"], boxes_NL4=by_hand["teacher"].boxes_NL4))}
    assert run(swapped)["boxes"] == 0


@pytest.mark.parametrize(
    ("settings", "factors"),
    [
        ({}, {0.0: 1.0, 0.25: 0.75, 1.0: 0.0}),
        ({"decay_end": 0.5}, {0.25: 0.5, 0.5: 0.0, 0.9: 0.0}),
        ({"decay": "cosine", "decay_to": 0.2}, {0.0: 1.0, 0.5: 0.6, 1.0: 0.2}),
        ({"decay": "constant"}, {0.0: 1.0, 1.0: 1.0}),
    ],
)
def test_decay_by_hand(by_hand: dict[str, Any], settings: dict[str, Any], factors: dict[float, float]) -> None:
    info = replace(TINY, strides=(8,), channels=2)
    distiller = TarDistiller(TarSpec(**{**ALL, **settings}), student=info, teacher=info, decode=plain)
    first = terms(distiller(**by_hand))
    for done, factor in factors.items():
        distiller.progress = done
        result = distiller(**by_hand)
        assert terms(result) == pytest.approx({name: factor * term for name, term in first.items()}, abs=1e-6)
        assert float(result.metrics["distill/decay"]) == pytest.approx(factor, abs=1e-6)


def test_gradient_of_the_boxes(by_hand: dict[str, Any]) -> None:
    """Where the teacher's box is better, and nowhere else; down it the student's becomes the teacher's."""
    codes = by_hand["student"].head_outputs["bbox_regression"].clone().requires_grad_()
    info = replace(TINY, strides=(8,), channels=2)
    spec = TarSpec(**{**ALL, "feature_weight": 0.0, "class_weight": 0.0})
    distiller = TarDistiller(spec, student=info, teacher=info, decode=plain)
    student = replace(by_hand["student"], head_outputs={"bbox_regression": codes})
    distiller(student, by_hand["teacher"], by_hand["targets"]).total.backward()
    assert codes.grad is not None
    assert codes.grad[0].abs().sum(dim=1).gt(0).tolist() == [True, True, False, False]
    assert bool((codes.grad[0, :2, 2] < 0).all())  # the right side has to move to the right


@pytest.mark.parametrize("family", ["retinanet", "fcos", "gfl", "atss"])
def test_every_family_decodes_single_anchors(family: str) -> None:
    """The boxes of some anchors, or of none, are those that they have among all."""
    detector = build_detector(f"{family}_conv5_tiny", num_classes=3, data=DataSpec(min_size=[64], max_size=64))
    images, _ = detector.transform([torch.rand(3, 64, 64)] * 2)
    with torch.no_grad():
        outputs = detector.dense_forward(images)
    codes = outputs.head_outputs["bbox_regression"]
    codes = codes + torch.rand(codes.shape, generator=torch.Generator().manual_seed(0))
    boxes = detector.decode(codes, outputs.anchors_L4)
    for image, anchor in (
        (torch.tensor([0, 1, 1]), torch.tensor([7, 0, 30])),
        (torch.tensor([], dtype=torch.long),) * 2,
    ):
        some = detector.decode(codes[image, anchor][None], outputs.anchors_L4[anchor])[0]
        torch.testing.assert_close(some, boxes[image, anchor])


def _iou(a: list[float], b: list[float]) -> float:
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    return width * height / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - width * height)


def _giou(a: list[float], b: list[float]) -> float:
    hull = (max(a[2], b[2]) - min(a[0], b[0])) * (max(a[3], b[3]) - min(a[1], b[1]))
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])
    union /= 1 + _iou(a, b)
    return _iou(a, b) - (hull - union) / hull


def _divergence(student: list[float], teacher: list[float]) -> float:
    pairs = [(1 / (1 + math.exp(-s)), 1 / (1 + math.exp(-t))) for s, t in zip(student, teacher, strict=True)]
    return sum(t * math.log(t / s) + (1 - t) * math.log((1 - t) / (1 - s)) for s, t in pairs)


def _real(target: dict[str, Tensor]) -> list[tuple[list[float], int]]:
    crowd = target.get("iscrowd", torch.zeros(len(target["labels"]))).tolist()
    rows = zip(target["boxes"].tolist(), target["labels"].tolist(), crowd, strict=True)
    return [(box, label) for box, label, is_crowd in rows if not is_crowd]


def _class_loss(scene: Any, image: int, anchor: int, place: tuple[float, float]) -> float | None:
    around = [
        ((box[2] - box[0]) * (box[3] - box[1]), label)
        for box, label in _real(scene.targets[image])
        if box[0] < place[0] < box[2] and box[1] < place[1] < box[3]
    ]
    said, taught = (side.logits_NLK[image, anchor].tolist() for side in (scene.student, scene.teacher))
    if not around or taught[min(around)[1]] <= said[min(around)[1]]:
        return None
    return _divergence(said, taught)


def _box_loss(scene: Any, image: int, anchor: int) -> float | None:
    said, taught = (side.boxes_NL4[image, anchor].tolist() for side in (scene.student, scene.teacher))
    ious = [(_iou(taught, box), box) for box, _ in _real(scene.targets[image])]
    best = max(ious, default=(0.0, []))
    if best[0] < 0.5 or best[0] <= _iou(said, best[1]):
        return None
    return 1 - _giou(said, taught)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_heads_against_loops(make_scene: Callable[..., Any], seed: int) -> None:
    scene = make_scene(seed=seed, grid=GRID, anchors=(2, 2))
    grids = zip(scene.student.grid, scene.student.strides, strict=True)
    places = [(x * s, y * s) for (rows, columns), s in grids for y in range(rows) for x in range(columns)]
    found: dict[str, list[float]] = {"classes": [], "boxes": []}
    for image, location in scene.student.all_valid.nonzero().tolist():
        for anchor in (2 * location, 2 * location + 1):
            losses = {
                "classes": _class_loss(scene, image, anchor, places[location]),
                "boxes": _box_loss(scene, image, anchor),
            }
            for name, loss in losses.items():
                if loss is not None:
                    found[name].append(loss)
    assert all(found.values())
    info = replace(TINY, anchors_per_location=2)
    distiller = TarDistiller(TarSpec(**ALL), student=info, teacher=info, decode=plain)
    result = terms(distiller(with_heads(scene.student), scene.teacher, scene.targets))
    for name, losses in found.items():
        assert result[name] == pytest.approx(sum(losses) / len(losses), rel=1e-4)
