"""Augmentation, on the CPU, of one image and its boxes. Resizing and normalising belong to the detector.

Shape suffixes: H, W an image; M its boxes.
"""

import hashlib
import math
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2.functional import crop, pad, resize

from tid_core.spec import DataSpec

Pixels = NDArray[np.uint8]
Augmented = tuple[Tensor, Tensor, Tensor]
"""image (3, H, W) uint8, boxes (M, 4) xyxy, labels (M,)"""

MIN_VISIBLE_SIDE = 1.0
"""Pixels of a box that must be left after a zoom."""
MEAN_COLOUR = [124, 116, 104]
"""ImageNet's mean: what the border of a zoomed-out image is filled with."""
LARGEST_FRAME = 2.0
"""Sides of a zoomed-out image, in sides of the original: beyond it the original is shrunk instead."""


class Augmentation(Protocol):
    def __call__(self, seed: int, pixels_HW3: Pixels, boxes_M4: Tensor, labels_M: Tensor, /) -> Augmented: ...


def build_augmentation(data: DataSpec) -> Augmentation:
    """What `data` asks for, as a function of its seed: the process's generators stay as they were."""
    if data.photometric == 0 and data.scale_jitter is None:
        return Flip(data.flip)
    return Composed(training_transform(data))


def planes(pixels_HW3: Pixels, *, flip: bool = False) -> Tensor:
    """Pixels as a contiguous (3, H, W) tensor. NumPy turns them around twice as fast as torch does."""
    planes_3HW = pixels_HW3.transpose(2, 0, 1)
    return torch.from_numpy(np.array(planes_3HW[:, :, ::-1] if flip else planes_3HW, order="C"))


class Flip:
    """A horizontal flip with probability `p`: bit for bit what `training_transform` gives where it only flips,
    without what its generality costs."""

    def __init__(self, p: float) -> None:
        self.p = p
        self._generator = torch.Generator()

    def __call__(self, seed: int, pixels_HW3: Pixels, boxes_M4: Tensor, labels_M: Tensor) -> Augmented:
        flip = torch.rand(1, generator=self._generator.manual_seed(seed)).item() < self.p
        height, width = pixels_HW3.shape[:2]
        if flip:
            right_M, left_M = boxes_M4[:, 2], boxes_M4[:, 0]
            boxes_M4 = torch.stack([width - right_M, boxes_M4[:, 1], width - left_M, boxes_M4[:, 3]], dim=1)
        limits_4 = torch.tensor([width, height, width, height])
        sides_M2 = boxes_M4[:, 2:] - boxes_M4[:, :2]
        inside_M4 = (boxes_M4 >= 0) & (boxes_M4 <= limits_4)
        keep_M = (sides_M2 >= MIN_VISIBLE_SIDE).all(1) & inside_M4.all(1)
        return planes(pixels_HW3, flip=flip), boxes_M4[keep_M], labels_M[keep_M]


class Composed:
    """Any transform of torchvision's, under the seed of the sample."""

    def __init__(self, transform: v2.Transform) -> None:
        self.transform = transform

    def __call__(self, seed: int, pixels_HW3: Pixels, boxes_M4: Tensor, labels_M: Tensor) -> Augmented:
        image = tv_tensors.Image(torch.from_numpy(pixels_HW3.copy()).permute(2, 0, 1))
        boxes = tv_tensors.BoundingBoxes(boxes_M4, format="XYXY", canvas_size=pixels_HW3.shape[:2])
        image, target = with_seed(seed, self.transform, image, {"boxes": boxes, "labels": labels_M})
        return image.as_subclass(Tensor), target["boxes"].as_subclass(Tensor), target["labels"]


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
    crop (factor > 1) or a border (factor < 1), placed at random. The frame grows to LARGEST_FRAME at most, or a factor
    of 0.1 would make a hundredfold of pixels; for smaller factors the image shrinks in it.
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
        shrink = min(1.0, factor * LARGEST_FRAME)
        frame = factor / shrink  # original side : side of the new frame, 1 / LARGEST_FRAME at least
        new_height, new_width = max(1, round(height / frame)), max(1, round(width / frame))
        if shrink < 1.0:
            height, width = max(1, round(height * shrink)), max(1, round(width * shrink))
        top = math.floor((height - new_height) * draw[1].item())
        left = math.floor((width - new_width) * draw[2].item())
        size, shrunk = (height, width), shrink < 1.0
        return {"top": top, "left": left, "height": new_height, "width": new_width, "size": size, "shrunk": shrunk}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        if params["shrunk"]:
            inpt = self._call_kernel(resize, inpt, size=list(params["size"]), antialias=True)
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
