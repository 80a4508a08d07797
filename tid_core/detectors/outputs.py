"""What one dense forward gives: all that losses, detections and distillation scores need.

Shape suffixes: N images, C channels, H and W a level's grid, L anchors over all levels (level by level, then row,
column, anchor), A anchors per location, K classes.
"""

from dataclasses import dataclass, field

from torch import Tensor


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

    @property
    def grid(self) -> list[tuple[int, int]]:
        """(H, W) of every level."""
        return [(f.shape[-2], f.shape[-1]) for f in self.features]
