"""One dense forward must say what torchvision itself says, bit for bit."""

import pytest
import torch
from torch import Tensor

from tid_core.detectors.base import DenseDetector, select_classes, teacher_class_index
from tid_core.detectors.build import build_detector
from tid_core.detectors.inherit import inherit_parts
from tid_core.events import TrainingFailure
from tid_core.spec import DataSpec, EvaluationSpec

torch.set_num_threads(1)

DATA = DataSpec(min_size=[96], max_size=160)
LOOSE = EvaluationSpec(score_threshold=0.005, max_detections=50)
FAMILIES = ["fcos_conv5_tiny", "retinanet_conv5_tiny", "gfl_conv5_tiny", "atss_conv5_tiny"]


def build(name: str, **options: object) -> DenseDetector:
    torch.manual_seed(0)
    return build_detector(name, num_classes=5, data=DATA, evaluation=LOOSE, **options)  # type: ignore[arg-type]


def batch() -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """Two images of different shape; the second without a box."""
    generator = torch.Generator().manual_seed(1)
    images = [torch.rand(3, 100, 130, generator=generator), torch.rand(3, 120, 90, generator=generator)]
    boxes = torch.tensor([[10.0, 12, 60, 70], [40, 30, 120, 95], [5, 60, 30, 90]])
    return images, [
        {"boxes": boxes, "labels": torch.tensor([0, 4, 2])},
        {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)},
    ]


@pytest.mark.parametrize(
    "name", ["retinanet_resnet18_fpn", "retinanet_resnet18_fpn_v2", "fcos_resnet18_fpn", *FAMILIES[:2]]
)
def test_one_forward_equals_torchvision(name: str) -> None:
    images, targets = batch()
    detector = build(name).train()
    expected_losses = detector.model(images, targets)
    outputs = detector.dense_forward(*detector.transform(images, targets))
    assert {k: v.item() for k, v in outputs.losses.items()} == {k: v.item() for k, v in expected_losses.items()}

    detector.eval()
    image_list, _ = detector.transform(images)
    with torch.no_grad():
        expected = detector.model(images)
        found = detector.detections(detector.dense_forward(image_list), image_list, [i.shape[-2:] for i in images])
    assert sum(len(one["boxes"]) for one in expected) > 10
    for one, other in zip(found, expected, strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("name", FAMILIES)
def test_decoded_boxes_are_those_detected(name: str) -> None:
    """Unclipped boxes of the best points, clipped, are among the detections of the padded image."""
    detector = build(name).eval()
    image_list, _ = detector.transform([batch()[0][0]])
    size = image_list.image_sizes[0]
    with torch.no_grad():
        outputs = detector.dense_forward(image_list)
        best = detector.detections(outputs, image_list, [size])[0]["boxes"][0]
    clipped = outputs.boxes_NL4[0].clone()
    clipped[:, 0::2] = clipped[:, 0::2].clamp(0, size[1])
    clipped[:, 1::2] = clipped[:, 1::2].clamp(0, size[0])
    assert (clipped - best).abs().amax(1).min() < 1e-4
    assert not outputs.boxes_NL4.requires_grad


@pytest.mark.parametrize("name", FAMILIES)
def test_no_boxes_at_all_and_crowds(name: str) -> None:
    images, targets = batch()
    detector = build(name).train()
    image_list, resized = detector.transform(images, targets)
    empty = [{"boxes": t["boxes"][:0], "labels": t["labels"][:0]} for t in resized]
    losses = detector.dense_forward(image_list, empty).losses
    sum(losses.values()).backward()  # type: ignore[union-attr]
    assert all(p.grad is None or p.grad.isfinite().all() for p in detector.parameters())
    assert detector.model.head.classification_head.cls_logits.weight.grad.abs().sum() > 0

    crowd = [{**resized[0], "iscrowd": torch.tensor([False, True, False])}, resized[1]]
    without = [{key: value[[0, 2]] for key, value in resized[0].items()}, resized[1]]
    with_crowd = detector.dense_forward(image_list, crowd).losses
    assert with_crowd == detector.dense_forward(image_list, without).losses
    assert with_crowd != detector.dense_forward(image_list, resized).losses


@pytest.mark.parametrize("name", FAMILIES)
def test_autocast_leaves_anchors_boxes_and_losses_alone(name: str) -> None:
    images, targets = batch()
    detector = build(name).train()
    image_list, resized = detector.transform(images, targets)
    plain = detector.dense_forward(image_list, resized)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = detector.dense_forward(image_list, resized)
    assert mixed.features[0].dtype == torch.bfloat16
    assert torch.equal(mixed.anchors_L4, plain.anchors_L4)
    assert mixed.boxes_NL4.dtype == mixed.logits_NLK.dtype == torch.float32
    assert all(loss.dtype == torch.float32 for loss in mixed.losses.values())
    for key, loss in plain.losses.items():
        torch.testing.assert_close(mixed.losses[key], loss, rtol=0.05, atol=0.02)


def test_valid_masks_end_with_the_image() -> None:
    detector = build("fcos_resnet18_fpn").eval()
    # 96 x 96 and 96 x 160 pixels in a batch of 96 x 160
    image_list, _ = detector.transform([torch.rand(3, 96, 96), torch.rand(3, 96, 160)])
    with torch.no_grad():
        outputs = detector.dense_forward(image_list)
    assert [f.shape[-2:] for f in outputs.features] == [v.shape[-2:] for v in outputs.valid]
    assert outputs.valid[0][0].sum(1).tolist() == [12] * 12  # of 20 columns of 8 pixels
    assert outputs.valid[2][0, 0].tolist() == [True, True, True, False, False]
    assert all(valid[1].all() for valid in outputs.valid)


def test_bytes_are_scaled_like_floats() -> None:
    detector = build("fcos_conv5_tiny").eval()
    image = torch.randint(0, 256, (3, 96, 96), dtype=torch.uint8)
    assert torch.equal(detector.transform([image])[0].tensors, detector.transform([image.float() / 255])[0].tensors)


def test_teacher_classes_meet_by_name() -> None:
    teacher_classes = ["cat", "dog", "bird", "fish", "cow"]
    index_K = teacher_class_index(teacher_classes, ["fish", "cat"])
    detector = build("fcos_conv5_tiny").eval()
    image_list, _ = detector.transform(batch()[0])
    with torch.no_grad():
        outputs = detector.dense_forward(image_list)
    chosen = select_classes(outputs, index_K)
    assert torch.equal(chosen.logits_NLK, outputs.logits_NLK[..., [3, 0]])
    assert torch.equal(chosen.head_outputs["cls_logits"], chosen.logits_NLK)
    assert select_classes(outputs, torch.arange(5)) is outputs
    with pytest.raises(TrainingFailure, match=r"classes_missing.*horse"):
        teacher_class_index(teacher_classes, ["horse", "cat"])


def test_only_anchors_have_a_matcher() -> None:
    assert build("retinanet_conv5_tiny").matcher_thresholds == (0.5, 0.4)
    assert all(build(name).matcher_thresholds is None for name in FAMILIES if not name.startswith("retinanet"))


@pytest.mark.parametrize("norm", ["batch", "frozen", "group"])
def test_backbone_norms(norm: str) -> None:
    kinds = {type(m).__name__ for m in build("fcos_conv5_tiny", norm=norm).model.backbone.body.modules()}
    assert {"batch": "BatchNorm2d", "frozen": "FrozenBatchNorm2d", "group": "GroupNorm"}[norm] in kinds
    assert len(kinds & {"BatchNorm2d", "FrozenBatchNorm2d", "GroupNorm"}) == 1


def test_unknown_detector_suggests() -> None:
    with pytest.raises(ValueError, match="did you mean fcos_resnet50_fpn"):
        build_detector("fcos_resnet50", num_classes=2)


def test_inherits_what_fits() -> None:
    student, teacher = build("fcos_conv5_tiny"), build_detector("fcos_resnet18_small", num_classes=7, data=DATA)
    index_K = torch.tensor([6, 0, 1, 2, 3])
    copied = inherit_parts(student, teacher, ["neck", "head"], index_K)
    assert "backbone.fpn.layer_blocks.0.0" in copied
    assert "backbone.fpn.inner_blocks.0.0" not in copied, "its inputs come from another trunk"
    given, taken = teacher.model.state_dict(), student.model.state_dict()
    assert torch.equal(taken["head.regression_head.bbox_reg.weight"], given["head.regression_head.bbox_reg.weight"])
    key = "head.classification_head.cls_logits.weight"
    assert torch.equal(taken[key], given[key][index_K])
    other = build("retinanet_conv5_tiny")
    with pytest.raises(TrainingFailure, match="inherit_unfit"):
        inherit_parts(other, teacher, ["head"], index_K)


def test_training_draws_one_of_the_sizes() -> None:
    detector = build_detector("fcos_conv5_tiny", num_classes=5, data=DataSpec(min_size=[64, 128], max_size=256)).train()
    torch.manual_seed(0)
    image = torch.rand(3, 80, 80)
    assert {detector.transform([image])[0].image_sizes[0][0] for _ in range(12)} == {64, 128}
    assert {detector.eval().transform([image])[0].image_sizes[0][0] for _ in range(3)} == {128}
