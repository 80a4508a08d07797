"""What one dense forward gives: all that losses, detections and distillation scores need.

Shape suffixes: N images, C channels, H and W a level's grid, L anchors over all levels (level by level, then row,
column, anchor), A anchors per location, K classes.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class Towers:
    """Features inside the head, per level (N, C, H, W), after some convolutions of either tower (see `towers`)."""

    convs: int
    classification: list[Tensor]
    regression: list[Tensor]


@dataclass(frozen=True)
class DenseOutputs:
    features: list[Tensor]
    """Per level, (N, C, H, W): the FPN outputs."""
    logits_NLK: Tensor
    boxes_NL4: Tensor
    """Decoded boxes in pixels of the padded batch, xyxy, fp32, no gradient; not clipped."""
    anchors_L4: Tensor
    """Anchors (FCOS: the squares around the points) in pixels of the padded batch, xyxy, fp32."""
    strides: list[int]
    num_anchors: int
    """A, anchors per location."""
    valid: list[Tensor]
    """Per level, (N, H, W) bool: locations whose centre lies inside the image and not in its padding."""
    losses: dict[str, Tensor] = field(default_factory=dict)
    """The detector's own loss terms; empty without targets."""
    head_outputs: dict[str, Tensor] = field(default_factory=dict)
    """Raw head outputs, for the detector's own post-processing."""
    towers: Towers | None = None
    """Features inside the head, where the detector's `tap` asks for them."""

    @property
    def grid(self) -> list[tuple[int, int]]:
        """(H, W) of every level."""
        return [(f.shape[-2], f.shape[-1]) for f in self.features]

    @property
    def all_valid(self) -> Tensor:
        """`valid` of all levels in one tensor, (N, P) locations: level by level, row by row."""
        return torch.cat([v_NHW.flatten(1) for v_NHW in self.valid], dim=1)

    @property
    def centres(self) -> Tensor:
        """(x, y) of every location, (P, 2), in pixels of the padded batch: the centre of its anchors."""
        first_P4 = self.anchors_L4[:: self.num_anchors]
        return (first_P4[:, :2] + first_P4[:, 2:]) / 2

    @property
    def levels(self) -> Tensor:
        """Index of the level of every location, (P,)."""
        sizes = torch.tensor([h * w for h, w in self.grid], device=self.anchors_L4.device)
        return torch.repeat_interleave(torch.arange(len(sizes), device=sizes.device), sizes)

    def split(self, maps_P: Tensor) -> list[Tensor]:
        """Cut maps of shape (..., P) into one (..., H, W) per level, without a copy."""
        return split_levels(maps_P, self.grid)


def split_levels(maps_P: Tensor, grid: list[tuple[int, int]]) -> list[Tensor]:
    """Cut maps of shape (..., P), all levels one after the other, into one (..., H, W) per level, without a copy."""
    parts = torch.split(maps_P, [h * w for h, w in grid], dim=-1)
    return [part.view(*part.shape[:-1], *size) for part, size in zip(parts, grid, strict=True)]
