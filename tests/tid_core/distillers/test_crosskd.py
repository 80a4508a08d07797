"""Cross-head distillation: by hand, against plain loops, between families, and what it must leave alone."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import conv2d, group_norm, relu

from tests.tid_core.distillers.real_batch import DATA, SIZES, on_towers, some_targets
from tests.tid_core.distillers.test_tid_reference import _overlap
from tid_core.detectors.atss_matcher import assign
from tid_core.detectors.base import DenseDetector, select_classes
from tid_core.detectors.build import build_detector
from tid_core.detectors.one_anchor import BINS
from tid_core.detectors.outputs import DenseOutputs, Towers
from tid_core.distillers import build_distiller
from tid_core.distillers.base import Distiller
from tid_core.distillers.crosskd import CrosskdDistiller
from tid_core.methods import CrosskdSpec
from tid_core.spec import JobSpec
from tid_core.truth import pad_truth


def build(name: str, classes: int = 3, seed: int = 0) -> DenseDetector:
    """With layers of an ordinary size, so that the answers differ from point to point."""
    torch.manual_seed(seed)
    detector = build_detector(name, num_classes=classes, data=DATA, norm="group")
    for key, parameter in detector.model.head.named_parameters():
        if parameter.dim() == 4:
            torch.nn.init.normal_(parameter, std=0.05)
        elif "bias" in key and "cls_logits" not in key:
            torch.nn.init.normal_(parameter, std=0.3)
    torch.nn.init.constant_(detector.model.head.classification_head.cls_logits.bias, -2.0)
    return detector


def method(student: DenseDetector, teacher: DenseDetector, index_K: Tensor | None = None, **settings: Any) -> Distiller:
    document = {
        "student": {"detector": student.info.name},
        "teacher": {"detector": teacher.info.name, "weights": {"file": "teacher.pt"}},
        "dataset": "d",
        "method": "crosskd",
        "crosskd": settings,
    }
    distiller = build_distiller(JobSpec.model_validate(document), student, teacher, index_K)
    assert isinstance(distiller, CrosskdDistiller)
    return distiller


def look(student: DenseDetector, teacher: DenseDetector) -> tuple[DenseOutputs, DenseOutputs, list[dict[str, Tensor]]]:
    """Both on four padded images."""
    generator = torch.Generator().manual_seed(2)
    images, targets = student.transform([torch.rand(3, *size, generator=generator) for size in SIZES], some_targets())
    with torch.no_grad():
        taught = teacher.dense_forward(images)
    return student.dense_forward(images), taught, targets


def numbers(values: dict[str, Tensor]) -> dict[str, float]:
    return {name: value.item() for name, value in values.items()}


@pytest.mark.parametrize(
    ("family", "box"), [("gfl", math.log(17 / 8)), ("atss", 0.75), ("fcos", 0.75), ("retinanet", 0.75)]
)
def test_by_hand(make_outputs: Callable[..., Any], family: str, box: float) -> None:
    """One location, one positive; output layers of the teacher that say the same whatever comes in.

    Cross-head: .5 for both classes; the teacher: .75 and .5. |p_T - p| BCE = .25 log 2 for the first.
    GFL: cross-head even distributions, of the teacher's left side 16/32 for the first of 17 bins and 1/32 for each
    other, KL log(17/8); mean over four sides, weight 4. Others: cross-head the anchor itself, the teacher's box twice
    as wide and high, GIoU 1/4. The weights w / sum of w are 1.
    """
    names = f"{family}_conv5_tiny", f"{'gfl' if family == 'gfl' else 'fcos'}_conv5_tiny"
    teacher, student = (build(name, classes=2) for name in names)
    head = teacher.model.head
    for layer in (head.classification_head.cls_logits, head.regression_head.bbox_reg):
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.constant_(layer.bias, 0.5 if family == "fcos" and layer.out_channels == 4 else 0.0)
    if hasattr(head.regression_head, "scales"):
        head.regression_head.scales = head.regression_head.scales[:1]
    distiller = method(student, teacher)
    anchors = teacher.info.anchors_per_location
    features = {"features": [torch.zeros(1, 96, 1, 1)]}
    codes = torch.zeros(1, anchors, 4 * BINS)
    codes[:, :, 0] = math.log(16)
    sides = []
    for num_anchors, logit in ((student.info.anchors_per_location, 0.0), (anchors, math.log(3))):
        rest = {"logits_NLK": torch.tensor([[[logit, 0.0]]]).expand(1, num_anchors, 2), "num_anchors": num_anchors}
        wide = torch.tensor([[[-64.0, -64.0, 64.0, 64.0]]]).expand(1, num_anchors, 4)
        outputs = make_outputs(grid=[(1, 1)], strides=[8], boxes_NL4=wide, **features, **rest)
        towers = Towers(1, [torch.randn(1, 96, 1, 1)], [torch.randn(1, 96, 1, 1)])
        heads = {"bbox_regression": codes}
        sides.append(replace(outputs, anchors_L4=wide[0] / 2, head_outputs=heads, towers=towers))
    target = {"boxes": torch.tensor([[-32.0, -32.0, 32.0, 32.0]]), "labels": torch.tensor([1])}
    terms = distiller(sides[0], sides[1], [target]).terms
    expected = {"distill/class": anchors * 0.25 * math.log(2), "distill/box": box}
    assert numbers(terms) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    "name", ["gfl_conv5_tiny", "atss_conv5_tiny", "fcos_conv5_tiny", "retinanet_conv5_tiny", "fcos_resnet18_fpn_mm"]
)
@pytest.mark.parametrize("settings", [{}, {"align": False, "convs": 0}], ids=str)
def test_a_student_like_its_teacher_has_nothing_to_learn(name: str, settings: dict[str, Any]) -> None:
    detector, other = build(name).eval(), build(name, seed=1).eval()
    distiller = method(detector, detector, **settings)
    assert distiller.tap == settings.get("convs", detector.info.tower_convs - 1)
    result = distiller(*look(detector, detector))
    assert numbers(result.terms) == pytest.approx({"distill/class": 0.0, "distill/box": 0.0}, abs=2e-5)
    method(other, detector, **settings)
    assert all(value > 1e-3 for value in numbers(distiller(*look(other, detector)).terms).values())


def plain_align(student: list[Tensor], teacher: list[Tensor], valid: list[Tensor]) -> list[Tensor]:
    """Channel by channel, over the valid points alone."""
    aligned = []
    for feat, goal, inside in zip(student, teacher, valid, strict=True):
        out = goal.clone()
        for channel in range(feat.shape[1]):
            here, there = feat[:, channel][inside], goal[:, channel][inside]
            unit = (here - here.mean()) / here.std(correction=0)
            out[:, channel][inside] = unit * there.std(correction=0) + there.mean()
        aligned.append(out)
    return aligned


def plain_head(teacher: DenseDetector, classes: list[Tensor], boxes: list[Tensor]) -> tuple[Tensor, Tensor]:
    """The second convolution of RetinaNet v2's towers and the output layers, on maps before the first's ReLU."""
    state, found = teacher.model.head.state_dict(), []
    for part, output, width, maps in (
        ("classification", "cls_logits", -1, classes),
        ("regression", "bbox_reg", 4, boxes),
    ):
        levels = []
        for level in maps:
            key = f"{part}_head"
            x = conv2d(relu(level), state[f"{key}.conv.1.0.weight"], padding=1)
            x = group_norm(x, 32, state[f"{key}.conv.1.1.weight"], state[f"{key}.conv.1.1.bias"])
            x = conv2d(relu(x), state[f"{key}.{output}.weight"], state[f"{key}.{output}.bias"], padding=1)
            number = x.shape[1] // 9 if width < 0 else width
            rows = [x[:, a * number : (a + 1) * number].flatten(2).transpose(1, 2) for a in range(9)]
            levels.append(torch.stack(rows, dim=2).flatten(1, 2))
        found.append(torch.cat(levels, dim=1))
    return found[0], found[1]


@pytest.mark.parametrize(
    "settings",
    [{}, {"divisor": "teacher", "beta": 2.0, "class_weight": 3.0, "box_weight": 0.5, "weight": 2.0}],
    ids=str,
)
@torch.no_grad()
def test_one_anchor_at_a_time(settings: dict[str, Any]) -> None:
    """A student of one anchor per location and three classes, a teacher of nine and of five in another order."""
    student, teacher = build("fcos_conv5_tiny").eval(), build("retinanet_conv5_tiny", classes=5).eval()
    index_K = torch.tensor([3, 0, 2])
    distiller = method(student, teacher, index_K, **settings)
    outputs, raw, targets = look(student, teacher)
    taught = select_classes(raw, index_K)
    terms = numbers(distiller(outputs, taught, targets).terms)

    crosskd, valid = CrosskdSpec(**settings), outputs.valid
    entering = [
        plain_align(getattr(outputs.towers, task), getattr(taught.towers, task), valid)
        for task in ("classification", "regression")
    ]
    logits, regression = plain_head(teacher, *entering)
    boxes = teacher.decode(regression, taught.anchors_L4)
    classes = box_sum = scores = 0.0
    valid_NL = outputs.all_valid.repeat_interleave(9, dim=1)
    for image, place in valid_NL.nonzero().tolist():
        goal = taught.logits_NLK[image, place].double().sigmoid().tolist()
        found = logits[image, place, index_K].double().sigmoid().tolist()
        for t, s in zip(goal, found, strict=True):
            classes += abs(t - s) ** crosskd.beta * -(t * math.log(s) + (1 - t) * math.log(1 - s))
        pair = boxes[image, place].tolist(), taught.boxes_NL4[image, place].tolist()
        has_area = min(pair[1][2] - pair[1][0], pair[1][3] - pair[1][1]) > 0
        box_sum += max(goal) * (1 - _overlap(*pair, "giou")[1]) * has_area
        scores += max(goal)
    truth = pad_truth(targets)
    positives = int((assign(outputs.centres, valid, truth, strides=outputs.strides) >= 0).sum())
    assert positives > 1
    count = positives if crosskd.divisor == "positives" else scores
    expected = {
        "distill/class": crosskd.weight * crosskd.class_weight * classes / count,
        "distill/box": crosskd.weight * crosskd.box_weight * box_sum / scores,
    }
    assert terms == pytest.approx(expected, rel=1e-3)
    assert all(value > 1e-3 for value in expected.values())


def test_padding_does_not_count() -> None:
    """Whatever the student makes of it, and no gradient arrives there."""
    student, teacher = build("gfl_conv5_tiny").eval(), build("gfl_conv10_small").eval()
    distiller = method(student, teacher)
    outputs, taught, targets = look(student, teacher)
    noise = torch.Generator().manual_seed(5)
    by_size = {v.shape[-2:]: v[:, None] for v in outputs.valid}

    def fill(feat: Tensor) -> Tensor:
        junk = 50 * torch.randn(feat.shape, generator=noise)
        return torch.where(by_size[feat.shape[-2:]], feat, junk).detach().requires_grad_()

    filled = replace(outputs, towers=on_towers(outputs.towers, fill))
    result = distiller(filled, taught, targets)
    torch.testing.assert_close(result.terms, distiller(outputs, taught, targets).terms)
    result.total.backward()
    assert filled.towers is not None
    for feat in (*filled.towers.classification, *filled.towers.regression):
        assert feat.grad is not None
        assert float((feat.grad * ~by_size[feat.shape[-2:]]).abs().max()) == 0
        assert float(feat.grad.abs().max()) > 0


def test_the_scale_of_the_students_channels_does_not_count() -> None:
    """Nor their offset; unless the features are taken as they are."""
    student, teacher = build("gfl_conv5_tiny").eval(), build("gfl_conv10_small").eval()
    gain, offset = 1 + torch.rand(96)[:, None, None], torch.randn(96)[:, None, None]
    for align in (True, False):
        distiller = method(student, teacher, align=align)
        outputs, taught, targets = look(student, teacher)
        other = replace(outputs, towers=on_towers(outputs.towers, lambda feat: feat * gain + offset))
        one, two = (distiller(side, taught, targets).total.item() for side in (outputs, other))
        assert (one == pytest.approx(two, rel=1e-3)) == align


def test_gradient_reaches_the_student_up_to_the_cut() -> None:
    """Not its own layers behind the cut, and not the teacher, also where that comes unfrozen."""
    student, teacher = build("atss_conv5_tiny").train(), build("gfl_conv10_small").train()
    distiller = method(student, teacher)
    distiller(*look(student, teacher)).total.backward()
    assert all(p.grad is None for p in teacher.parameters())
    for name, parameter in student.model.named_parameters():
        before = name.startswith("backbone.") or ".conv.0." in name
        assert (parameter.grad is not None and bool(parameter.grad.any())) == before, name


def test_the_teacher_is_no_part_of_it() -> None:
    """It is not trained, saved or moved twice, and stays the one that the training moves and asks."""
    student, teacher = build("gfl_conv5_tiny"), build("gfl_conv10_small")
    distiller = method(student, teacher)
    assert isinstance(distiller, CrosskdDistiller)
    assert distiller.teacher is teacher
    assert not distiller.state_dict()
    assert not list(distiller.parameters())
    assert teacher not in list(distiller.modules())
    outputs, taught, targets = look(student, teacher)
    before = distiller(outputs, taught, targets).total
    with torch.no_grad():
        teacher.model.head.classification_head.cls_logits.bias.add_(1.0)
    assert distiller(outputs, taught, targets).total.item() != pytest.approx(before.item(), rel=1e-2)


def test_what_does_not_fit_is_refused() -> None:
    student, teacher = build("gfl_conv5_tiny"), build("gfl_conv10_small")
    distiller = method(student, teacher)
    teacher.tap = None
    with pytest.raises(ValueError, match="set the `tap` of both to 1"):
        distiller(*look(student, teacher))
    narrow = build("gfl_conv5_tiny")
    narrow.info = replace(narrow.info, name="gfl_narrow", channels=64)
    with pytest.raises(ValueError, match="gfl_narrow has 64 channels and gfl_conv10_small has 96 channels"):
        method(narrow, teacher)
