"""What GFL and ATSS share: anchors, heads, padding that does not count, detections, and that they learn."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.ops import batched_nms

from tid_core.catalogue import DETECTORS
from tid_core.data.synthetic import _random, _sources, draw_scene
from tid_core.detectors.base import DenseDetector
from tid_core.detectors.build import build_detector
from tid_core.detectors.one_anchor import PlainP6P7
from tid_core.detectors.outputs import DenseOutputs
from tid_core.evaluation import GroundTruth, evaluate
from tid_core.spec import DataSpec, EvaluationSpec

torch.set_num_threads(1)

TINY = ["gfl_conv5_tiny", "atss_conv5_tiny"]
BOXES = torch.tensor([[4.0, 6, 40, 50], [30, 20, 60, 62]])


def build(name: str, **options: Any) -> DenseDetector:
    torch.manual_seed(0)
    options = {"data": DataSpec(min_size=[64], max_size=160), "norm": "group", **options}
    return build_detector(name, num_classes=4, **options)


@pytest.mark.parametrize("name", ["gfl_resnet18_fpn", "atss_resnet18_fpn"])
def test_anchors_lie_at_whole_strides(name: str) -> None:
    """Also on levels that do not divide the batch: there torchvision's own would be closer together."""
    detector = build(name).eval()
    images, _ = detector.transform([torch.rand(3, 64, 150)])
    assert images.tensors.shape[-2:] == (64, 160)
    with torch.no_grad():
        outputs = detector.dense_forward(images)
    assert outputs.grid == [(8, 20), (4, 10), (2, 5), (1, 3), (1, 2)]
    expected = [
        [x * stride - 4 * stride, y * stride - 4 * stride, x * stride + 4 * stride, y * stride + 4 * stride]
        for stride, (height, width) in zip((8, 16, 32, 64, 128), outputs.grid, strict=True)
        for y in range(height)
        for x in range(width)
    ]
    assert outputs.anchors_L4.tolist() == expected
    inside = [x + 4 * s < 150 for (x, _, x2, _) in expected for s in [(x2 - x) / 8]]
    assert torch.cat([v.flatten() for v in outputs.valid]).tolist() == inside


def test_no_relu_between_p6_and_p7() -> None:
    block = build("gfl_resnet18_fpn").model.backbone.fpn.extra_blocks
    assert isinstance(block, PlainP6P7)
    p5 = torch.randn(1, 256, 5, 7)
    levels, names = block([p5], [torch.randn(1, 512, 5, 7)], ["2"])
    assert names == ["2", "p6", "p7"]
    assert torch.equal(levels[1], block.p6(p5))
    assert torch.equal(levels[2], block.p7(block.p6(p5)))
    assert (levels[1] < 0).any()


def test_names_of_the_state() -> None:
    """Public checkpoints are renamed to these, and exported students have them."""
    for family in ("gfl", "atss"):
        with torch.device("meta"):
            state = build(f"{family}_resnet18_fpn", norm="batch").model.state_dict()
        head = {key: tuple(value.shape) for key, value in state.items() if key.startswith("head.")}
        expected = {"head.classification_head.cls_logits.weight": (4, 256, 3, 3)}
        expected["head.classification_head.cls_logits.bias"] = (4,)
        for part in ("classification", "regression"):
            for i in range(4):
                expected[f"head.{part}_head.conv.{i}.0.weight"] = (256, 256, 3, 3)
                expected[f"head.{part}_head.conv.{i}.1.weight"] = (256,)
                expected[f"head.{part}_head.conv.{i}.1.bias"] = (256,)
        outputs = {"bbox_reg": 68} if family == "gfl" else {"bbox_reg": 4, "bbox_ctrness": 1}
        for name, count in outputs.items():
            expected[f"head.regression_head.{name}.weight"] = (count, 256, 3, 3)
            expected[f"head.regression_head.{name}.bias"] = (count,)
        expected |= {f"head.regression_head.scales.{level}.scale": () for level in range(5)}
        assert head == expected


@pytest.mark.parametrize("name", TINY)
def test_starts_unsure(name: str) -> None:
    detector = build(name).eval()
    images, _ = detector.transform([torch.rand(3, 64, 64)])
    with torch.no_grad():
        probability = detector.dense_forward(images).logits_NLK.sigmoid()
    assert probability.mean().item() == pytest.approx(0.01, rel=0.3)


def padded(outputs: DenseOutputs, grid: list[tuple[int, int]], strides: list[int]) -> DenseOutputs:
    """The same outputs in a larger batch, with nonsense in the padding."""
    generator = torch.Generator().manual_seed(9)
    per_level = [h * w for h, w in outputs.grid]
    anchors, valid, head = [], [], {name: [] for name in outputs.head_outputs}
    for level, ((h, w), (height, width), stride) in enumerate(zip(outputs.grid, grid, strides, strict=True)):
        y, x = torch.meshgrid(torch.arange(height) * stride, torch.arange(width) * stride, indexing="ij")
        centre = torch.stack([x, y, x, y], dim=-1).view(-1, 4).float()
        anchors.append(centre + torch.tensor([-4.0, -4, 4, 4]) * stride)
        mask = torch.zeros(len(outputs.logits_NLK), height, width, dtype=torch.bool)
        mask[:, :h, :w] = outputs.valid[level]
        valid.append(mask)
        for name, values in outputs.head_outputs.items():
            part = values.split(per_level, dim=1)[level]
            larger = torch.randn(len(part), height, width, part.shape[-1], generator=generator) * 3
            larger[:, :h, :w] = part.unflatten(1, (h, w))
            head[name].append(larger.flatten(1, 2))
    joined = {name: torch.cat(parts, dim=1) for name, parts in head.items()}
    return replace(outputs, anchors_L4=torch.cat(anchors), valid=valid, head_outputs=joined)


@pytest.mark.parametrize("name", TINY)
def test_padding_does_not_count(name: str) -> None:
    detector = build(name).train()
    labels = torch.tensor([1, 3])
    targets = [{"boxes": BOXES, "labels": labels}, {"boxes": BOXES[:, [1, 0, 3, 2]], "labels": labels}]
    images, targets = detector.transform([torch.rand(3, 64, 64), torch.rand(3, 64, 64)], targets)
    outputs = detector.dense_forward(images, targets)
    assert outputs.grid == [(8, 8), (4, 4), (2, 2)]
    wide = padded(outputs, [(12, 20), (6, 10), (3, 5)], [8, 16, 32])
    losses = detector._losses(wide, targets)
    for key, value in outputs.losses.items():
        torch.testing.assert_close(losses[key], value, rtol=1e-5, atol=1e-6)
    everywhere = detector._losses(replace(wide, valid=[torch.ones_like(v) for v in wide.valid]), targets)
    assert not torch.isclose(everywhere["classification"], outputs.losses["classification"], rtol=0.1)


@pytest.mark.parametrize("name", TINY)
def test_nothing_to_learn_still_reaches_every_parameter(name: str) -> None:
    """So that a rank whose share of the batch is empty waits for no gradient."""
    detector = build(name).train()
    empty = [{"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}] * 2
    images, empty = detector.transform([torch.rand(3, 64, 64), torch.rand(3, 64, 80)], empty)
    losses = detector.dense_forward(images, empty).losses
    torch.stack(list(losses.values())).sum().backward()
    assert losses["classification"] > 0
    assert all(loss == 0 for key, loss in losses.items() if key != "classification")
    assert all(p.grad is not None and p.grad.isfinite().all() for p in detector.parameters())


@pytest.mark.parametrize("name", TINY)
def test_detections_against_a_loop(name: str) -> None:
    """Per level the thousand most probable pairs, threshold, clip, NMS per class, the hundred best."""
    detector = build(name, evaluation=EvaluationSpec(score_threshold=0.011, nms_threshold=0.5, max_detections=8)).eval()
    torch.nn.init.normal_(detector.model.head.classification_head.cls_logits.weight, std=0.05)
    torch.nn.init.normal_(detector.model.head.regression_head.bbox_reg.weight, std=0.2)
    detector.model.topk_candidates = 40
    photos = [torch.rand(3, 64, 64), torch.rand(3, 80, 100)]
    images, _ = detector.transform(photos)
    with torch.no_grad():
        outputs = detector.dense_forward(images)
        found = detector.detections(outputs, images, [(64, 64), (80, 100)])
        alone = detector.model(photos)
    for index, (height, width) in enumerate(images.image_sizes):
        rows, start = [], 0
        for h, w in outputs.grid:
            level = outputs.logits_NLK[index, start : start + h * w].sigmoid()
            pairs = [(p, start + i, k) for i, row in enumerate(level.tolist()) for k, p in enumerate(row) if p > 0.011]
            for p, place, k in sorted(pairs, reverse=True)[:40]:
                x0, y0, x1, y1 = outputs.boxes_NL4[index, place].tolist()
                box = [min(max(v, 0), end) for v, end in zip((x0, y0, x1, y1), (width, height) * 2, strict=True)]
                if name.startswith("atss"):
                    p *= outputs.head_outputs["bbox_ctrness"][index, place].sigmoid().item()
                rows.append([*box, p, k])
            start += h * w
        table = torch.tensor(rows)
        kept = table[batched_nms(table[:, :4], table[:, 4], table[:, 5], 0.5)[:8]]
        ratio = torch.tensor([[100 / width, 80 / height] * 2 if index else [64 / width, 64 / height] * 2])
        assert len(kept) == 8
        torch.testing.assert_close(found[index]["boxes"], kept[:, :4] * ratio, rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(found[index]["scores"], kept[:, 4], rtol=1e-4, atol=1e-5)
        assert found[index]["labels"].tolist() == kept[:, 5].long().tolist()
        assert all(torch.equal(found[index][key], alone[index][key]) for key in ("boxes", "scores", "labels"))


@pytest.mark.parametrize("name", TINY)
def test_nothing_found(name: str) -> None:
    detector = build(name).eval()
    with torch.no_grad():
        found = detector.model([torch.rand(3, 64, 64)])[0]
    assert found["boxes"].shape == (0, 4)
    assert len(found["scores"]) == len(found["labels"]) == 0


@pytest.mark.parametrize("name", TINY)
def test_bf16_keeps_boxes_and_losses_in_fp32(name: str) -> None:
    detector = build(name).train()
    targets = [{"boxes": BOXES, "labels": torch.tensor([1, 3])}]
    images, targets = detector.transform([torch.rand(3, 64, 64)], targets)
    plain = detector.dense_forward(images, targets)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = detector.dense_forward(images, targets)
    assert mixed.features[0].dtype == torch.bfloat16
    assert mixed.boxes_NL4.dtype == mixed.logits_NLK.dtype == mixed.anchors_L4.dtype == torch.float32
    assert torch.equal(mixed.anchors_L4, plain.anchors_L4)
    assert (mixed.boxes_NL4 - plain.boxes_NL4).abs().max() < 1.0
    for key, loss in plain.losses.items():
        assert mixed.losses[key].dtype == torch.float32
        torch.testing.assert_close(mixed.losses[key], loss, rtol=0.03, atol=0.01)


def four_scenes() -> tuple[list[Tensor], list[dict[str, Tensor]], GroundTruth]:
    sources = _sources("train", 0)
    scenes = [draw_scene(sources, _random(0, "train", number)) for number in range(1, 5)]
    images = [torch.from_numpy(pixels).permute(2, 0, 1) for pixels, _ in scenes]
    rows = [(i, digit, *box) for i, (_, found) in enumerate(scenes) for digit, box in found]
    table = np.array(rows, dtype=np.float64)
    targets = [
        {
            "boxes": torch.tensor([[x, y, x + w, y + h] for _, (x, y, w, h) in found], dtype=torch.float32),
            "labels": torch.tensor([digit for digit, _ in found]),
        }
        for _, found in scenes
    ]
    truth = GroundTruth(
        classes=[str(digit) for digit in range(10)],
        category_ids=list(range(10)),
        image_ids=list(range(4)),
        sizes=[(96, 96)] * 4,
        image_B=table[:, 0].astype(np.int64),
        label_B=table[:, 1].astype(np.int64),
        xywh_B4=table[:, 2:],
        area_B=table[:, 4] * table[:, 5],
        crowd_B=np.zeros(len(rows), dtype=np.int64),
    )
    return images, targets, truth


@pytest.mark.parametrize("name", TINY)
def test_learns_four_images_by_heart(name: str) -> None:
    photos, boxes, truth = four_scenes()
    assert len(truth.image_B) >= 5
    torch.manual_seed(0)
    data = DataSpec(min_size=[96], max_size=96)
    detector = build_detector(name, num_classes=10, norm="group", data=data).train()
    optimiser = torch.optim.AdamW(detector.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 80)
    images, targets = detector.transform(photos, boxes)
    for _ in range(80):
        optimiser.zero_grad()
        torch.stack(list(detector.dense_forward(images, targets).losses.values())).sum().backward()
        optimiser.step()
        schedule.step()
    detector.eval()
    with torch.no_grad():
        found = detector.detections(detector.dense_forward(images), images, truth.sizes)
    ap = evaluate(found, truth).stats["AP"]
    assert ap is not None
    assert ap > 0.9, ap


def test_the_catalogue_has_each_trunk() -> None:
    for family in ("gfl", "atss"):
        trunks = {info.backbone for info in DETECTORS.values() if info.family == family and info.size == "standard"}
        assert trunks == {"resnet18", "resnet34", "resnet50", "resnet101", "mobilenet_v2", "mobilenet_v3_large"}
        assert {f"{family}_resnet18_small", f"{family}_conv10_small", f"{family}_conv5_tiny"} <= set(DETECTORS)
        assert DETECTORS[f"{family}_resnet50_fpn"].anchor_sizes == ((64,), (128,), (256,), (512,), (1024,))
