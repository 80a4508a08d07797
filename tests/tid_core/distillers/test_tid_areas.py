"""Scores, key and weak points and regions: by hand, by property, and on real detectors."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tid_core import truth
from tid_core.detectors.build import build_detector
from tid_core.detectors.outputs import DenseOutputs
from tid_core.distillers.areas import find_areas
from tid_core.methods import TidSpec
from tid_core.spec import DataSpec

# One ground truth, 8 x 8, of class 1. Overlaps with it: all, half (4 rows), 0.45 (3.6 rows), none.
WHOLE, HALF, SOME, NONE = [0.0, 0.0, 8.0, 8.0], [0.0, 0.0, 8.0, 4.0], [0.0, 0.0, 8.0, 3.6], [90.0, 90.0, 98.0, 98.0]
RIGHT, UNSURE, WRONG = [-1.0, 2.0], [-2.0, -1.0], [3.0, -3.0]
TARGETS = [{"boxes": torch.tensor([WHOLE]), "labels": torch.tensor([1])}]


@pytest.fixture
def outputs_2x2(make_outputs: Callable[..., DenseOutputs]) -> Callable[..., DenseOutputs]:
    """A detector with four locations (one level of 2 x 2, stride 8) that predicts these boxes and logits."""

    def build(boxes: list[list[float]], logits: list[list[float]], num_anchors: int = 1) -> DenseOutputs:
        return make_outputs(
            grid=[(2, 2)],
            strides=[8],
            features=[torch.zeros(1, 2, 2, 2)],
            logits_NLK=torch.tensor([logits]),
            boxes_NL4=torch.tensor([boxes]),
            num_anchors=num_anchors,
        )

    return build


def test_scores_and_regions_by_hand(outputs_2x2: Callable[..., DenseOutputs]) -> None:
    """Teacher: whole box, right class 2*2 = 4; IoU exactly t_pos, right 2*2 = 4; 0.45, wrong 1.5*.4 = .6; none .4*.4.

    Student: 4; 0.45, right 1.5*2 = 3; whole, wrong 2*.4 = .8; no overlap but the class of ground truth 0: still .16.
    Key is where the teacher exceeds 1: points 0, 1. Weak is where it exceeds the student: 4 > 3 at point 1 only.
    """
    teacher = outputs_2x2([WHOLE, HALF, SOME, NONE], [RIGHT, RIGHT, WRONG, WRONG])
    student = outputs_2x2([WHOLE, SOME, WHOLE, NONE], [RIGHT, RIGHT, WRONG, RIGHT])
    areas = find_areas(student, teacher, TARGETS, TidSpec())
    torch.testing.assert_close(areas.score_teacher_NP, torch.tensor([[4.0, 4.0, 0.6, 0.16]]))
    torch.testing.assert_close(areas.score_student_NP, torch.tensor([[4.0, 3.0, 0.8, 0.16]]))
    assert areas.key_NP.tolist() == [[True, True, False, False]]
    assert areas.weak_NP.tolist() == [[False, True, False, False]]
    high, medium, low = areas.split(areas.regions_RNP)[0]
    assert high.tolist() == [[[False, True], [False, False]]]
    assert medium.tolist() == [[[True, False], [False, False]]]
    assert low.tolist() == [[[False, False], [True, True]]]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"cls_score": "three_level"}, [4.0, 2 * 1.5, 0.6, 0.16]),
        # sigmoid(2) and sigmoid(-1) times 2, sigmoid(-3) times 1.5; no ground truth to have a probability of: 0
        ({"cls_score": "prob"}, [2 * 0.880797, 2 * 0.268941, 1.5 * 0.047426, 0.0]),
        ({"tasks": "cls"}, [2.0, 2.0, 0.4, 0.4]),
        ({"tasks": "reg"}, [2.0, 2.0, 1.5, 0.4]),
        ({"t_pos": 0.6, "t_neg": 0.48}, [4.0, 3.0, 0.16, 0.16]),
        # the box of half the height lies in a hull as large as the ground truth, so GIoU = IoU = .5 there; its
        # centre is 2 of a diagonal of sqrt(128) away, so DIoU = .5 - 4 / 128 = .469 is between the thresholds
        ({"iou": "giou"}, [4.0, 4.0, 0.6, 0.16]),
        ({"iou": "diou"}, [4.0, 3.0, 0.6, 0.16]),
        (
            {"score_pos": 3.0, "score_mid": 1.0, "score_neg": 0.5, "cls_right": 5.0, "cls_wrong": 0.1},
            [15, 15, 0.1, 0.05],
        ),
    ],
)
def test_settings_of_the_scores(
    outputs_2x2: Callable[..., DenseOutputs], settings: dict[str, Any], expected: list[float]
) -> None:
    teacher = outputs_2x2([WHOLE, HALF, SOME, NONE], [RIGHT, UNSURE, WRONG, RIGHT])
    areas = find_areas(teacher, teacher, TARGETS, TidSpec(**settings))
    torch.testing.assert_close(areas.score_teacher_NP, torch.tensor([expected]), rtol=1e-5, atol=1e-6)


def test_both_tasks_must_be_met_by_one_anchor(outputs_2x2: Callable[..., DenseOutputs]) -> None:
    """Best box 2*.4 = .8 and best class .4*2 are of different anchors: the location has .8, not 4."""
    two = outputs_2x2([WHOLE, SOME, *[NONE] * 6], [WRONG, WRONG, *[RIGHT] * 6], num_anchors=2)
    one = outputs_2x2([NONE] * 4, [RIGHT] * 4)
    areas = find_areas(one, two, TARGETS, TidSpec())
    torch.testing.assert_close(areas.score_teacher_NP, torch.tensor([[0.8, 0.16, 0.16, 0.16]]))


def test_each_detector_keeps_its_own_thresholds(outputs_2x2: Callable[..., DenseOutputs]) -> None:
    both = outputs_2x2([WHOLE, HALF, SOME, NONE], [RIGHT] * 4)
    ask = {"student_matcher": (0.4, 0.3), "teacher_matcher": (0.7, 0.5)}
    own = find_areas(both, both, TARGETS, TidSpec(), **ask)
    torch.testing.assert_close(own.score_student_NP, torch.tensor([[4.0, 4.0, 4.0, 0.16]]))
    torch.testing.assert_close(
        own.score_teacher_NP, torch.tensor([[4.0, 0.16, 0.16, 0.16]]) + torch.tensor([0, 0.64, 0.64, 0])
    )
    fixed = find_areas(both, both, TARGETS, TidSpec(thresholds="fixed"), **ask)
    torch.testing.assert_close(fixed.score_student_NP, torch.tensor([[4.0, 4.0, 3.0, 0.16]]))


@pytest.mark.parametrize(
    ("settings", "high", "medium"),
    [
        ({}, [1, 0, 0, 0], [0, 1, 1, 0]),
        ({"partition": "weak_first"}, [1, 0, 1, 0], [0, 1, 0, 0]),
        ({"partition": "key_first"}, [1, 1, 0, 0], [0, 0, 1, 0]),
        ({"areas": "key"}, [1, 1, 0, 0], [0, 0, 0, 0]),
        ({"areas": "weak", "partition": "key_first"}, [1, 0, 1, 0], [0, 0, 0, 0]),
        ({"partition": "score_bands"}, [1, 1, 0, 0], [0, 0, 1, 0]),
        ({"partition": "score_bands", "tau_key": 3.0}, [1, 0, 0, 0], [0, 1, 1, 0]),
    ],
)
def test_partitions(
    outputs_2x2: Callable[..., DenseOutputs], settings: dict[str, Any], high: list[int], medium: list[int]
) -> None:
    """Points that are key and weak, key only (the student is as good), weak only (.8 against .16), and neither."""
    teacher = outputs_2x2([WHOLE, SOME, WHOLE, NONE], [RIGHT, RIGHT, WRONG, WRONG])
    student = outputs_2x2([NONE, SOME, NONE, NONE], [RIGHT, RIGHT, WRONG, WRONG])
    areas = find_areas(student, teacher, TARGETS, TidSpec(**settings))
    assert areas.weak_NP[0].int().tolist() == [1, 0, 1, 0]
    assert areas.regions_RNP[0, 0].int().tolist() == high
    assert areas.regions_RNP[1, 0].int().tolist() == medium


def test_whose_score_makes_a_point_key(outputs_2x2: Callable[..., DenseOutputs]) -> None:
    teacher = outputs_2x2([WHOLE, NONE, NONE, NONE], [RIGHT] * 4)
    student = outputs_2x2([NONE, WHOLE, NONE, NONE], [RIGHT] * 4)

    def masks(**settings: Any) -> tuple[list[bool], list[bool]]:
        areas = find_areas(student, teacher, TARGETS, TidSpec(**settings))
        return areas.key_NP[0].tolist(), areas.weak_NP[0].tolist()

    assert masks() == ([True, False, False, False], [True, False, False, False])
    assert masks(key_source="student")[0] == [False, True, False, False]
    assert masks(key_source="either")[0] == [True, True, False, False]
    assert masks(weak_signed=False)[1] == [True, True, False, False]
    assert masks(tau_weak=3.9)[1] == [False] * 4


def test_atss_thresholds_by_hand(outputs_2x2: Callable[..., DenseOutputs]) -> None:
    """Stride 8: the candidates are squares of side 64 centred at x, y in {0, 8}; the ground truth is 64 x 64 at (0, 0).

    IoUs: 1 for the centred one; (64 - 8) * 64 = 3584 / (8192 - 3584) = .77778 for two; 56 * 56 = 3136 / 5056 = .62025
    for the diagonal one. Two candidates are (0, 0) and, of the two at the same distance, the one to the left:
    mean .88889, std (unbiased) .15713, together 1.04602: nothing is localised; t_neg = .52301.
    With all four: mean .79395, std .15603, t_pos = .94998 and t_neg = .47499.
    """
    boxes = [
        [-32.0, -32.0, 32.0, 32.0],
        [-32.0, -32.0, 32.0, 1.6],
        [-32.0, -32.0, 32.0, 0.0],
        [-32.0, -32.0, 32.0, -2.0],
    ]
    targets = [{"boxes": torch.tensor(boxes[:1]), "labels": torch.tensor([1])}]
    both = outputs_2x2(boxes, [RIGHT] * 4)  # IoUs with the ground truth: 1, .525, .5, .46875
    four = find_areas(both, both, targets, TidSpec(thresholds="atss"))
    torch.testing.assert_close(four.score_teacher_NP, torch.tensor([[4.0, 3.0, 3.0, 0.8]]))
    two = find_areas(both, both, targets, TidSpec(thresholds="atss", atss_topk=2))
    torch.testing.assert_close(two.score_teacher_NP, torch.tensor([[3.0, 3.0, 0.8, 0.8]]))


def test_the_same_detector_has_no_weak_point(make_scene: Callable[..., Any]) -> None:
    scene = make_scene(anchors=(3, 3))
    areas = find_areas(scene.teacher, scene.teacher, scene.targets, TidSpec())
    assert areas.key_NP.any()
    assert not areas.weak_NP.any()
    assert not areas.regions_RNP[0].any()


def test_a_hopeless_student_makes_every_key_point_high(make_scene: Callable[..., Any]) -> None:
    scene = make_scene()
    astray = replace(scene.student, boxes_NL4=scene.student.boxes_NL4 + 1000)
    areas = find_areas(astray, scene.teacher, scene.targets, TidSpec())
    assert areas.key_NP.any()
    assert areas.regions_RNP[0].equal(areas.key_NP)


@pytest.mark.parametrize(
    "settings", [{}, {"tasks": "reg", "t_pos": 0, "t_neg": 0}, {"cls_score": "prob"}, {"iou": "giou"}]
)
def test_without_ground_truth_all_is_low(make_scene: Callable[..., Any], settings: dict[str, Any]) -> None:
    """In one image of the batch, in all of them, or where crowds are all there is."""
    scene = make_scene()
    tid = TidSpec(**settings)
    areas = find_areas(scene.student, scene.teacher, scene.targets, tid)
    assert areas.regions_RNP[2, 1].equal(areas.valid_NP[1])
    assert not areas.regions_RNP[2, 0].equal(areas.valid_NP[0])
    nothing = [{"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.long)}] * 3
    crowds = [{**t, "iscrowd": torch.ones(len(t["labels"]), dtype=torch.int64)} for t in scene.targets]
    for targets in (nothing, crowds):
        areas = find_areas(scene.student, scene.teacher, targets, tid)
        assert areas.regions_RNP[2].equal(areas.valid_NP)


def test_memory_bound_changes_nothing(make_scene: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    scene = make_scene()
    padded = truth.pad_truth(scene.targets)
    for overlap in ("iou", "diou"):
        monkeypatch.setitem(truth.PAIRS_AT_ONCE, "cpu", 2**20)
        whole = truth.match(scene.teacher.boxes_NL4, padded, overlap)
        monkeypatch.setitem(truth.PAIRS_AT_ONCE, "cpu", 100)
        parts = truth.match(scene.teacher.boxes_NL4, padded, overlap)
        assert whole.value_NL.equal(parts.value_NL)
        assert whole.index_NL.equal(parts.index_NL)
        assert whole.touches_NL.equal(parts.touches_NL)


def test_real_detectors_share_the_grid() -> None:
    """A RetinaNet teacher (9 anchors a location) that predicts its ground truth; an untrained FCOS student."""
    torch.manual_seed(0)
    data = DataSpec(min_size=[64], max_size=96)
    student = build_detector("fcos_conv5_tiny", num_classes=3, data=data).train()
    teacher = build_detector("retinanet_conv5_tiny", num_classes=3, data=data).eval()
    images, targets = student.transform(
        [torch.rand(3, 64, 64), torch.rand(3, 64, 90)],
        [
            {"boxes": torch.tensor([[10.0, 10.0, 50.0, 40.0]]), "labels": torch.tensor([2])},
            {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.long)},
        ],
    )
    seen, taught = student.dense_forward(images, targets), teacher.dense_forward(images)
    boxes_NL4 = taught.boxes_NL4.clone()
    logits_NLK = taught.logits_NLK.clone()
    boxes_NL4[0, 4 * 9 + 7] = targets[0]["boxes"][0]  # anchor 7 of location 4
    logits_NLK[0, 4 * 9 + 7] = torch.tensor([0.0, 0.0, 9.0])
    knowing = replace(taught, boxes_NL4=boxes_NL4, logits_NLK=logits_NLK)
    areas = find_areas(seen, knowing, targets, TidSpec(), teacher_matcher=teacher.matcher_thresholds)
    assert areas.score_teacher_NP[0, 4] == 4
    assert areas.regions_RNP[0, 0, 4]
    assert areas.regions_RNP.sum(dim=0).equal(areas.valid_NP.long())
    assert not areas.valid_NP[0].all(), "the first image is narrower than the batch"


def test_masks_are_disjoint_and_carry_no_gradient(make_scene: Callable[..., Any]) -> None:
    scene = make_scene(seed=3)
    scene.student.logits_NLK.requires_grad_()
    for partition in ("intersection", "weak_first", "key_first", "score_bands"):
        areas = find_areas(scene.student, scene.teacher, scene.targets, TidSpec(partition=partition))
        assert areas.regions_RNP.sum(dim=0).equal(areas.valid_NP.long())
        assert not areas.valid_NP.all()
        scores: list[Tensor] = [areas.score_student_NP, areas.score_teacher_NP]
        assert not any(score.requires_grad for score in scores)
