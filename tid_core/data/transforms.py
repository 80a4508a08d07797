"""Augmentation, on the CPU, of one image and its boxes. Resizing and normalising belong to the detector."""

import hashlib
import math
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2.functional import crop, pad

from tid_core.spec import DataSpec

MIN_VISIBLE_SIDE = 1.0
"""Pixels of a box that must be left after a zoom."""
MEAN_COLOUR = [124, 116, 104]
"""ImageNet's mean: what the border of a zoomed-out image is filled with."""


def training_transform(data: DataSpec) -> v2.Transform:
    """Flip, photometric distortion and zoom as `data` asks. Draws from torch's default CPU generator."""
    steps: list[torch.nn.Module] = [v2.RandomHorizontalFlip(p=data.flip)]
    if data.photometric > 0:
        steps.append(v2.RandomApply([v2.RandomPhotometricDistort()], p=data.photometric))
    if data.scale_jitter is not None:
        steps += [RandomZoom(data.scale_jitter), v2.ClampBoundingBoxes()]
    return v2.Compose([*steps, v2.SanitizeBoundingBoxes(min_size=MIN_VISIBLE_SIDE)])


class RandomZoom(v2.Transform):  # type: ignore[misc]
    """Makes everything in the image larger or smaller by a factor drawn log-uniformly from `scale`.

    The detector resizes every image to one size, so a plain resize would be undone. Instead the frame changes: a
    crop (factor > 1) or a border (factor < 1), placed at random.
    """

    def __init__(self, scale: tuple[float, float]) -> None:
        super().__init__()
        if scale[0] > scale[1]:
            raise ValueError(f"scale_jitter must be (smallest, largest), not {scale}")
        self.scale = scale

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        height, width = v2.query_size(flat_inputs)
        low, high = (math.log(limit) for limit in self.scale)
        draw = torch.rand(3)
        factor = math.exp(low + (high - low) * draw[0].item())
        new_height, new_width = max(1, round(height / factor)), max(1, round(width / factor))
        top = math.floor((height - new_height) * draw[1].item())
        left = math.floor((width - new_width) * draw[2].item())
        return {"top": top, "left": left, "height": new_height, "width": new_width, "size": (height, width)}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        top, left = params["top"], params["left"]
        bottom, right = top + params["height"] - params["size"][0], left + params["width"] - params["size"][1]
        if top < 0 or left < 0 or bottom > 0 or right > 0:
            border = [max(0, -left), max(0, -top), max(0, right), max(0, bottom)]
            inpt = self._call_kernel(pad, inpt, padding=border, fill=MEAN_COLOUR)
            top, left = max(0, top), max(0, left)
        return self._call_kernel(crop, inpt, top, left, params["height"], params["width"])


def sample_seed(seed: int, epoch: int, index: int) -> int:
    """A 63-bit seed for one image in one epoch, whichever process draws it and whenever."""
    digest = hashlib.blake2b(f"{seed}/{epoch}/{index}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def with_seed(seed: int, transform: v2.Transform, image: Tensor, target: dict[str, Any]) -> tuple[Tensor, Any]:
    """Apply `transform` under its own seed, leaving the process's generators as they were."""
    with torch.random.fork_rng(devices=[]):
        # Only the CPU's generator: torch.manual_seed would also reset those of the GPUs, which are not restored.
        torch.default_generator.manual_seed(seed)
        return transform(image, target)  # type: ignore[no-any-return]
