"""The loss of TID: by hand, to the bit, and what it must not depend on."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tid_core.catalogue import DETECTORS
from tid_core.detectors.outputs import DenseOutputs
from tid_core.distillers.tid import TidDistiller
from tid_core.methods import TidSpec
from tid_core.spec import LossSpec

TINY = DETECTORS["fcos_conv5_tiny"]


def distiller(tid: TidSpec | None = None, loss: LossSpec | None = None) -> TidDistiller:
    return TidDistiller(tid or TidSpec(), loss or LossSpec(), student=TINY, teacher=TINY)


@pytest.fixture
def by_hand(make_outputs: Callable[..., DenseOutputs]) -> dict[str, Any]:
    """Four points on stride 8, one each of key+weak, key only, weak only and neither; a dead level and one constant.

    The teacher's features are +2, -2 in the two channels of every point: mean 0, variance 4. The student differs from
    them by (2, 0), (2, 2), (1, 1), (3, 1): mean squared differences 2, 4, 1, 5.
    """
    whole, none = [0.0, 0.0, 8.0, 8.0], [90.0, 90.0, 98.0, 98.0]
    some = [0.0, 0.0, 8.0, 3.6]
    right, wrong = [0.0, 1.0], [1.0, 0.0]
    teacher_features = torch.tensor([2.0, -2.0]).view(1, 2, 1, 1).expand(1, 2, 2, 2)
    away = torch.tensor([[2.0, 2.0, 1.0, 3.0], [0.0, 2.0, 1.0, 1.0]]).view(1, 2, 2, 2)
    levels = {"grid": [(2, 2), (1, 1), (1, 1)], "strides": [8, 16, 32]}
    rest = [torch.full((1, 2, 1, 1), 7.0)] * 2
    teacher = make_outputs(
        **levels,
        features=[teacher_features, *rest],
        logits_NLK=torch.tensor([[right, right, wrong, wrong, wrong, wrong]]),
        boxes_NL4=torch.tensor([[whole, whole, whole, none, none, none]]),
    )
    student = make_outputs(
        **levels,
        features=[teacher_features + away, *rest],
        logits_NLK=torch.tensor([[right, right, wrong, wrong, wrong, wrong]]),
        boxes_NL4=torch.tensor([[some, whole, none, none, none, none]]),
    )
    targets = [{"boxes": torch.tensor([whole]), "labels": torch.tensor([1])}]
    return {"student": student, "teacher": teacher, "targets": targets}


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        # high holds 2 (weight 2), medium 4 and 1 (weight 1), low 5 (weight .1); all over the variance of 4. The weights
        # of the four points are 4.1 together
        ({}, [2 * 2 / 4.1 / 4, (4 + 1) / 4.1 / 4, 0.1 * 5 / 4.1 / 4]),
        ({"weight": 3.0}, [3 * 2 * 2 / 4.1 / 4, 3 * (4 + 1) / 4.1 / 4, 3 * 0.1 * 5 / 4.1 / 4]),
        ({"norm": "region_mean"}, [2 * 2 / 4, 1 * 2.5 / 4, 0.1 * 5 / 4]),
        ({"distance": "mse", "norm": "region_mean"}, [4.0, 2.5, 0.5]),
        # mean absolute differences 1, 2, 1, 2; smooth: d - 1/2 from 1 on, so .75, 1.5, .5, 1.5
        ({"distance": "l1", "norm": "region_mean"}, [2.0, 1.5, 0.2]),
        ({"distance": "smooth_l1", "norm": "region_mean"}, [1.5, 1.0, 0.15]),
        # by all four points of the level instead of 1, 2 and 1
        ({"distance": "mse", "norm": "global_mean"}, [4 / 4, 5 / 4, 0.5 / 4]),
        # sums over two channels, one image
        ({"distance": "mse", "norm": "batch_sum"}, [8.0, 10.0, 1.0]),
    ],
)
def test_terms_by_hand(by_hand: dict[str, Any], settings: dict[str, Any], expected: list[float]) -> None:
    """The two further levels agree and hold only low points: they add nothing."""
    result = distiller(TidSpec(**settings))(**by_hand)
    assert list(result.terms) == ["distill/high", "distill/medium", "distill/low"]
    assert [float(term) for term in result.terms.values()] == pytest.approx(expected)
    assert float(result.total) == pytest.approx(sum(expected))


def test_metrics_by_hand(by_hand: dict[str, Any]) -> None:
    metrics = distiller()(**by_hand).metrics
    shares = [float(metrics[f"areas/{region}/p3"]) for region in ("high", "medium", "low")]
    assert shares == [0.25, 0.5, 0.25]
    assert float(metrics["areas/low/p5"]) == 1
    assert [float(metrics[f"areas/{mask}/{level}"]) for mask in ("key", "weak") for level in ("p3", "p5")] == [
        0.5, 0, 0.5, 0,
    ]  # fmt: skip
    # Teacher 4, 4, .8 and three of .16; student 3, 4 and four of .16
    assert float(metrics["areas/score/teacher"]) == pytest.approx((4 + 4 + 0.8 + 3 * 0.16) / 6)
    assert float(metrics["areas/score/student"]) == pytest.approx((3 + 4 + 4 * 0.16) / 6)


@pytest.mark.parametrize(
    ("norm", "expected"),
    [
        ("weighted_mean", ("0x1.ef9cf60000000p+1", "0x1.292aa00000000p+0", "0x1.c3ff000000000p-2")),
        ("region_mean", ("0x1.65a4700000000p+3", "0x1.2dfab60000000p+2", "0x1.c50c2e0000000p-1")),
    ],
)
def test_loss_to_the_bit(make_scene: Callable[..., Any], norm: Any, expected: tuple[str, str, str]) -> None:
    """Pinned, so that a change of the code is a change of the code only. All values, and the weights, are multiples of
    1/8: their sums are exact in any order, on any processor."""
    scene = make_scene(seed=11, grid=((6, 5), (3, 3), (2, 2)))
    exact = [
        replace(side, features=[(f * 8).round() / 8 for f in side.features]) for side in (scene.student, scene.teacher)
    ]
    terms = distiller(TidSpec(norm=norm), LossSpec(low=0.125))(exact[0], exact[1], scene.targets).terms
    assert list(terms) == ["distill/high", "distill/medium", "distill/low"]
    assert tuple(float(term).hex() for term in terms.values()) == expected


def test_gradient_reaches_the_student_only(make_scene: Callable[..., Any]) -> None:
    scene = make_scene(grid=((6, 5), (3, 3), (2, 2)))
    for side in (scene.student, scene.teacher):
        for tensor in (*side.features, side.logits_NLK, side.boxes_NL4):
            tensor.requires_grad_()
    distiller()(scene.student, scene.teacher, scene.targets).total.backward()
    assert all(f.grad is not None and f.grad.abs().sum() > 0 for f in scene.student.features)
    others = [*scene.teacher.features, scene.teacher.logits_NLK, scene.teacher.boxes_NL4]
    others += [scene.student.logits_NLK, scene.student.boxes_NL4]
    assert all(tensor.grad is None for tensor in others)


def _pad(outputs: DenseOutputs, generator: torch.Generator) -> DenseOutputs:
    """The same batch on a larger canvas: two more columns and one more row per level, filled with other things."""
    features, valid, boxes, logits, anchors = [], [], [], [], []
    sizes = [h * w * outputs.num_anchors for h, w in outputs.grid]
    flat = [torch.split(t, sizes, dim=1) for t in (outputs.boxes_NL4, outputs.logits_NLK, outputs.anchors_L4[None])]

    def grow(x: Tensor, fill: Tensor) -> Tensor:
        """(N, H, W, ...) into the corner of `fill`."""
        fill[:, : x.shape[1], : x.shape[2]] = x
        return fill

    for level, (height, width) in enumerate(outputs.grid):
        images, channels = outputs.features[level].shape[:2]
        new = (images, height + 1, width + 2)
        noise = 50 * torch.randn(*new, channels, generator=generator)
        features.append(grow(outputs.features[level].permute(0, 2, 3, 1), noise).permute(0, 3, 1, 2))
        valid.append(grow(outputs.valid[level], torch.zeros(new, dtype=torch.bool)))
        parts = [f[level].view(len(f[level]), height, width, outputs.num_anchors, -1) for f in flat]
        box = torch.tensor([0.0, 0.0, 30.0, 30.0]).expand(*new, outputs.num_anchors, 4).clone()
        boxes.append(grow(parts[0], box).reshape(images, -1, 4))
        junk = torch.randn(*new, outputs.num_anchors, outputs.logits_NLK.shape[-1], generator=generator)
        logits.append(grow(parts[1], junk).reshape(images, -1, outputs.logits_NLK.shape[-1]))
        far = torch.full((1, *new[1:], outputs.num_anchors, 4), 20.0)
        anchors.append(grow(parts[2], far).reshape(-1, 4))
    return replace(
        outputs,
        features=features,
        valid=valid,
        boxes_NL4=torch.cat(boxes, dim=1),
        logits_NLK=torch.cat(logits, dim=1),
        anchors_L4=torch.cat(anchors),
    )


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"norm": "global_mean"},
        {"norm": "batch_sum", "thresholds": "atss"},
        {"distance": "standardised_mse", "key_source": "either", "thresholds": "atss", "weak_signed": False},
        {"partition": "score_bands", "distance": "l1"},
    ],
    ids=str,
)
def test_padding_does_not_count(make_scene: Callable[..., Any], settings: dict[str, Any]) -> None:
    scene = make_scene(seed=5, grid=((6, 5), (3, 3), (2, 2)))
    generator = torch.Generator().manual_seed(0)
    padded = [_pad(side, generator) for side in (scene.student, scene.teacher)]
    loss = distiller(TidSpec(**settings))
    tight, loose = loss(scene.student, scene.teacher, scene.targets), loss(padded[0], padded[1], scene.targets)
    for name, term in tight.terms.items():
        assert term > 0
        torch.testing.assert_close(loose.terms[name], term)
    torch.testing.assert_close(loose.metrics, tight.metrics)


def test_scale_of_the_features_does_not_count(make_scene: Callable[..., Any]) -> None:
    """Unless `mse` asks for it; a level that does not vary at all teaches nothing instead of dividing by zero."""
    scene = make_scene(grid=((6, 5), (3, 3), (2, 2)))

    def total(factor: float, distance: Any) -> float:
        sides = [replace(s, features=[factor * f for f in s.features]) for s in (scene.student, scene.teacher)]
        return float(distiller(TidSpec(distance=distance))(sides[0], sides[1], scene.targets).total)

    assert total(1e-3, "normalised_mse") == pytest.approx(total(1, "normalised_mse"), rel=1e-4)
    assert total(10, "mse") == pytest.approx(100 * total(1, "mse"), rel=1e-4)
    dead = replace(scene.teacher, features=[torch.full_like(f, 0.3) for f in scene.teacher.features])
    assert float(distiller()(scene.student, dead, scene.targets).total) == 0


def test_autocast_changes_nothing(make_scene: Callable[..., Any]) -> None:
    scene = make_scene(grid=((6, 5), (3, 3), (2, 2)))
    half = [replace(s, features=[f.bfloat16() for f in s.features]) for s in (scene.student, scene.teacher)]
    outside = distiller()(half[0], half[1], scene.targets).total
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = distiller()(half[0], half[1], scene.targets).total
    assert inside.dtype == torch.float32
    assert inside.equal(outside)
