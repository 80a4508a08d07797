"""GFL and ATSS for inference: dense detectors with one square anchor per location. Needs torch and torchvision alone.

The text of this file goes into the card of every student of these families (see `snippet`), so that it runs where this
project is not installed; training is in `gfl` and `atss`. Sources: Li et al., "Generalized Focal Loss", arXiv
2006.04388; Zhang et al., "Bridging the Gap Between Anchor-based and Anchor-free Detection", arXiv 1912.02424.

Shape suffixes: N images, C channels, H and W a level's grid, L anchors over all levels, l those of one level, K
classes, B bins of a distribution, D numbers that code a box, T candidates kept.
"""

from functools import partial
from math import log

import torch
from torch import Tensor, nn
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import Conv2dNormActivation, batched_nms, clip_boxes_to_image
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

ANCHOR_STRIDES = 8
"""Side of the one anchor of a location, in strides of its level."""
BINS = 17
"""GFL: the distance from the anchor's centre to a side is an expectation over 0, 1, ... 16 strides."""
DELTA_WEIGHTS = (10.0, 10.0, 5.0, 5.0)
"""ATSS: one over the standard deviations .1, .1, .2, .2 of a box's offsets and log sizes."""
PRIOR = 0.01
"""Probability that every class starts with."""


class PlainP6P7(LastLevelP6P7):  # type: ignore[misc]
    """P6 and P7 with no ReLU between their convolutions."""

    def forward(self, p: list[Tensor], c: list[Tensor], names: list[str]) -> tuple[list[Tensor], list[str]]:
        p6 = self.p6(p[-1] if self.use_P5 else c[-1])
        return [*p, p6, self.p7(p6)], [*names, "p6", "p7"]


class StrideAnchors(AnchorGenerator):  # type: ignore[misc]
    """Anchors centred at whole strides, also where a level does not divide the batch evenly."""

    def __init__(self, strides: tuple[int, ...]) -> None:
        super().__init__(tuple((ANCHOR_STRIDES * stride,) for stride in strides), ((1.0,),) * len(strides))
        self.strides = strides

    def forward(self, image_list: ImageList, feature_maps: list[Tensor]) -> list[Tensor]:
        """The same (L, 4) for each image, xyxy in pixels, with the dtype of the feature maps."""
        self.set_cell_anchors(feature_maps[0].dtype, feature_maps[0].device)
        grids = [feat_NCHW.shape[-2:] for feat_NCHW in feature_maps]
        anchors_L4 = torch.cat(self.grid_anchors(grids, [[stride, stride] for stride in self.strides]))
        return [anchors_L4] * len(image_list.image_sizes)


class Scale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.0))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


def tower(channels: int, convs: int) -> nn.Sequential:
    norm = partial(nn.GroupNorm, 32)
    return nn.Sequential(*(Conv2dNormActivation(channels, channels, norm_layer=norm) for _ in range(convs)))


class ClassificationHead(nn.Module):
    def __init__(self, channels: int, num_classes: int, convs: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.conv = tower(channels, convs)
        self.cls_logits = nn.Conv2d(channels, num_classes, 3, padding=1)

    def forward(self, features: list[Tensor]) -> Tensor:
        return join_levels([self.cls_logits(self.conv(feat_NCHW)) for feat_NCHW in features])


class RegressionHead(nn.Module):
    def __init__(self, channels: int, convs: int, num_levels: int, *, bins: int | None) -> None:
        super().__init__()
        self.conv = tower(channels, convs)
        self.bbox_reg = nn.Conv2d(channels, 4 * (bins or 1), 3, padding=1)
        self.scales = nn.ModuleList(Scale() for _ in range(num_levels))
        if bins is None:
            self.bbox_ctrness = nn.Conv2d(channels, 1, 3, padding=1)

    def forward(self, features: list[Tensor]) -> dict[str, Tensor]:
        towers = [self.conv(feat_NCHW) for feat_NCHW in features]
        boxes = [scale(self.bbox_reg(feat_NCHW)) for scale, feat_NCHW in zip(self.scales, towers, strict=True)]
        outputs = {"bbox_regression": join_levels(boxes)}
        if hasattr(self, "bbox_ctrness"):
            outputs["bbox_ctrness"] = join_levels([self.bbox_ctrness(feat_NCHW) for feat_NCHW in towers])
        return outputs


class OneAnchorHead(nn.Module):
    """Two towers over all levels. `bins`: of each side's distribution (GFL); None = deltas and centerness (ATSS)."""

    def __init__(self, channels: int, num_classes: int, convs: int, num_levels: int, *, bins: int | None) -> None:
        super().__init__()
        self.classification_head = ClassificationHead(channels, num_classes, convs)
        self.regression_head = RegressionHead(channels, convs, num_levels, bins=bins)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 4:
                nn.init.normal_(parameter, std=0.01)
            elif name.endswith("bias"):
                nn.init.constant_(parameter, -log((1 - PRIOR) / PRIOR) if "cls_logits" in name else 0.0)

    def forward(self, features: list[Tensor]) -> dict[str, Tensor]:
        """`cls_logits` (N, L, K), `bbox_regression` (N, L, 4 * bins or 4), and for ATSS `bbox_ctrness` (N, L, 1)."""
        return {"cls_logits": self.classification_head(features), **self.regression_head(features)}


def join_levels(maps: list[Tensor]) -> Tensor:
    """(N, C, H, W) of each level to (N, L, C): level by level, row by row."""
    return torch.cat([map_NCHW.flatten(2).transpose(1, 2) for map_NCHW in maps], dim=1)


def expected_distance(logits_NL4B: Tensor) -> Tensor:
    """The mean of each side's distribution over 0, 1, ... B-1, (N, L, 4), in strides."""
    bins_B = torch.arange(logits_NL4B.shape[-1], dtype=logits_NL4B.dtype, device=logits_NL4B.device)
    return logits_NL4B.softmax(dim=-1) @ bins_B


def decode_distribution(regression_NLD: Tensor, anchors_L4: Tensor) -> Tensor:
    """Boxes (N, L, 4) from distributions of the distances left, top, right, bottom of the anchors' centres.

    Args:
        anchors_L4: (..., L, 4), of ANCHOR_STRIDES strides each; broadcast against the codes.
    """
    distance_NL4 = expected_distance(regression_NLD.view(*regression_NLD.shape[:-1], 4, BINS))
    distance_NL4 = distance_NL4 * ((anchors_L4[..., 2:3] - anchors_L4[..., :1]) / ANCHOR_STRIDES)
    centres_L2 = (anchors_L4[..., :2] + anchors_L4[..., 2:]) / 2
    return torch.cat([centres_L2 - distance_NL4[..., :2], centres_L2 + distance_NL4[..., 2:]], dim=-1)


def decode_deltas(regression_NLD: Tensor, anchors_L4: Tensor) -> Tensor:
    """Boxes (N, L, 4) from offsets and log sizes relative to the anchors."""
    anchors_NL4 = anchors_L4.expand_as(regression_NLD)
    boxes: Tensor = BoxCoder(DELTA_WEIGHTS).decode_single(regression_NLD.flatten(0, -2), anchors_NL4.flatten(0, -2))
    return boxes.view_as(regression_NLD)


class OneAnchorModel(nn.Module):
    """Looks like torchvision's dense detectors from outside; `forward` detects, in either mode."""

    def __init__(
        self,
        backbone: nn.Module,
        head: OneAnchorHead,
        strides: tuple[int, ...],
        *,
        min_size: tuple[int, ...] = (800,),
        max_size: int = 1333,
        score_thresh: float = 0.05,
        nms_thresh: float = 0.6,
        detections_per_img: int = 100,
        topk_candidates: int = 1000,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.anchor_generator = StrideAnchors(strides)
        self.transform = GeneralizedRCNNTransform(min_size, max_size, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
        self.score_thresh = score_thresh
        self.nms_thresh = nms_thresh
        self.detections_per_img = detections_per_img
        self.topk_candidates = topk_candidates

    def decode(self, regression_NLD: Tensor, anchors_L4: Tensor) -> Tensor:
        """Boxes (N, L, 4), xyxy in pixels, not clipped."""
        decode = decode_deltas if regression_NLD.shape[-1] == 4 else decode_distribution
        return decode(regression_NLD, anchors_L4)

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        """Boxes (xyxy, pixels), scores and labels of each image (3, H, W) in 0..1, best first."""
        sizes = [(image.shape[-2], image.shape[-1]) for image in images]
        batch, _ = self.transform(images)
        features = list(self.backbone(batch.tensors).values())
        per_level = [feat_NCHW.shape[-2] * feat_NCHW.shape[-1] for feat_NCHW in features]
        outputs = {name: list(out.split(per_level, dim=1)) for name, out in self.head(features).items()}
        anchors = [list(a_L4.split(per_level)) for a_L4 in self.anchor_generator(batch, features)]
        found = self.postprocess_detections(outputs, anchors, batch.image_sizes)
        resized: list[dict[str, Tensor]] = self.transform.postprocess(found, batch.image_sizes, sizes)
        return resized

    def postprocess_detections(
        self, head_outputs: dict[str, list[Tensor]], anchors: list[list[Tensor]], image_shapes: list[tuple[int, int]]
    ) -> list[dict[str, Tensor]]:
        """Detections in pixels of the resized images.

        Args:
            head_outputs, anchors: cut into levels. All images have the same anchors.
            image_shapes: (height, width) of each image without its padding.
        """
        levels = [
            self._candidates({name: output[level] for name, output in head_outputs.items()}, anchors_l4)
            for level, anchors_l4 in enumerate(anchors[0])
        ]
        boxes_NT4, scores_NT, labels_NT, keep_NT = (torch.cat(parts, dim=1) for parts in zip(*levels, strict=True))
        found = []
        for index, shape in enumerate(image_shapes):
            keep_T = keep_NT[index]
            boxes = clip_boxes_to_image(boxes_NT4[index, keep_T], shape)
            scores, labels = scores_NT[index, keep_T], labels_NT[index, keep_T]
            best = batched_nms(boxes, scores, labels, self.nms_thresh)[: self.detections_per_img]
            found.append({"boxes": boxes[best], "scores": scores[best], "labels": labels[best]})
        return found

    def _candidates(self, outputs: dict[str, Tensor], anchors_l4: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Boxes, scores, labels of one level's most probable (location, class) pairs, and which reach the threshold.

        Centerness lowers a score only after that choice, as in the public definition.
        """
        probability_NlK = outputs["cls_logits"].sigmoid()
        num_classes = probability_NlK.shape[-1]
        flat = probability_NlK.flatten(1)
        best = flat.topk(min(self.topk_candidates, flat.shape[1]), dim=1)
        place_NT = best.indices // num_classes
        boxes_NT4 = self.decode(_take(outputs["bbox_regression"], place_NT), anchors_l4[place_NT])
        scores_NT = best.values
        if "bbox_ctrness" in outputs:
            scores_NT = scores_NT * _take(outputs["bbox_ctrness"], place_NT).squeeze(-1).sigmoid()
        return boxes_NT4, scores_NT, best.indices % num_classes, best.values > self.score_thresh


def _take(values_NlD: Tensor, place_NT: Tensor) -> Tensor:
    return values_NlD.gather(1, place_NT[..., None].expand(-1, -1, values_NlD.shape[-1]))
