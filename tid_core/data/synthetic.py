"""A small detection set for demonstrations: real handwritten digits on real photographs, in COCO format.

The digits are scikit-learn's `load_digits` (1,797 scans of 8 x 8 pixels), the photographs its two sample images; both
come with the package, nothing is fetched. Writing needs scikit-learn and Pillow, but no torch.

Shape suffixes: H, W a scene or a photograph; h, w one digit.
"""

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SCENE = 96
"""Pixels, width and height of a scene."""
DIGIT_HEIGHT = (20, 48)
MAX_DIGITS = 3
MAX_OVERLAP = 1 / 3
"""Part of a digit's box that the others may share."""
VAL_FRACTION = 0.3
"""Validation scenes per training scene, and the part of scans and of photographs kept for them."""
MIN_CONTRAST = 0.4
"""Difference of luminance, in 0..1, between a digit and what it is drawn on."""
LUMINANCE = np.array([0.299, 0.587, 0.114])

Array = NDArray[np.float64]
Random = np.random.Generator


@dataclass(frozen=True)
class Sources:
    """What the scenes of one split are made of; no two splits share a scan or a piece of a photograph."""

    scans_N88: Array
    """Ink in 0..1."""
    digits_N: NDArray[np.int64]
    photos: list[Array]
    """(H, W, 3) in 0..1."""


def write_demo_data(root: Path, *, images: int, seed: int) -> None:
    """Write `images` training scenes and 30 % as many for validation to ROOT/{train,val}.json and ROOT/{train,val}/.

    The same arguments give the same bytes. Each scene is drawn from (seed, split, number) alone, so a larger set
    begins with the smaller one. A folder that already holds this very set is left as it is.

    Raises:
        ValueError: `images` is not positive.
        FileExistsError: `root` holds something else.
    """
    if images < 1:
        raise ValueError(f"images must be at least 1, not {images}")
    info = {"description": "Handwritten digits on photographs, made from scikit-learn's data", "version": "1"}
    info["arguments"] = f"images={images} seed={seed}"
    if root.exists() and any(root.iterdir()):
        if _info(root / "val.json") == info:
            return
        raise FileExistsError(f"{root} is not empty; give a new folder")
    # Written beside its place and renamed, so that an interrupted run leaves nothing that looks complete.
    partial = root.with_name(f".{root.name}.{os.getpid()}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        for split, count in {"train": images, "val": max(1, round(images * VAL_FRACTION))}.items():
            _write_split(partial, split, count, seed, info)
        partial.replace(root)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _info(path: Path) -> Any:
    try:
        return json.loads(path.read_text())["info"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write_split(root: Path, split: str, count: int, seed: int, info: dict[str, str]) -> None:
    sources = _sources(split, seed)
    (root / split).mkdir(parents=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for i in range(1, count + 1):
        pixels, found = draw_scene(sources, _random(seed, split, i))
        name = f"{split}-{i:05d}.jpg"
        Image.fromarray(pixels).save(root / split / name, quality=92, subsampling=0)
        images.append({"id": i, "file_name": name, "width": SCENE, "height": SCENE})
        for digit, (x, y, w, h) in found:
            box = {"bbox": [x, y, w, h], "area": w * h, "iscrowd": 0}
            annotations.append({"id": len(annotations) + 1, "image_id": i, "category_id": digit + 1, **box})
    categories = [{"id": digit + 1, "name": str(digit)} for digit in range(10)]
    content = {"info": info, "images": images, "annotations": annotations, "categories": categories}
    (root / f"{split}.json").write_text(json.dumps(content))


def _random(seed: int, split: str, number: int) -> Random:
    return np.random.default_rng([seed, split == "val", number])


def _sources(split: str, seed: int) -> Sources:
    from sklearn.datasets import load_digits, load_sample_images

    digits = load_digits()
    order_N = np.random.default_rng(seed).permutation(len(digits.target))
    border = round(len(order_N) * (1 - VAL_FRACTION))
    chosen_N = order_N[:border] if split == "train" else order_N[border:]
    photos = []
    for photo in load_sample_images().images:
        column = round(photo.shape[1] * VAL_FRACTION)
        part = photo[:, column:] if split == "train" else photo[:, :column]
        photos.append(part / 255.0)
    return Sources(digits.images[chosen_N] / 16.0, digits.target[chosen_N], photos)


def draw_scene(
    sources: Sources, random: Random
) -> tuple[NDArray[np.uint8], list[tuple[int, tuple[int, int, int, int]]]]:
    """One scene, (96, 96, 3), and its digits with their boxes (x, y, width, height), tight around the ink."""
    scene_HW3 = _background(sources.photos, random)
    found: list[tuple[int, tuple[int, int, int, int]]] = []
    for _ in range(random.integers(1, MAX_DIGITS + 1)):
        pick = random.integers(len(sources.digits_N))
        ink_hw = _ink(sources.scans_N88[pick], random)
        place = _place(ink_hw.shape, [box for _, box in found], random)
        if place is not None:
            _draw(scene_HW3, ink_hw, place, random)
            found.append((int(sources.digits_N[pick]), (*place, ink_hw.shape[1], ink_hw.shape[0])))
    return np.rint(scene_HW3 * 255).astype(np.uint8), found


def _background(photos: list[Array], random: Random) -> Array:
    """A piece of a photograph with its contrast reduced, so that a digit stands out."""
    photo_HW3 = photos[random.integers(len(photos))]
    side = random.integers(SCENE, min(*photo_HW3.shape[:2], 2 * SCENE) + 1)
    top, left = (random.integers(length - side + 1) for length in photo_HW3.shape[:2])
    piece = Image.fromarray((photo_HW3[top : top + side, left : left + side] * 255).astype(np.uint8))
    piece_HW3 = np.asarray(piece.resize((SCENE, SCENE), Image.Resampling.LANCZOS)) / 255.0
    mean_3 = piece_HW3.mean((0, 1))
    flattened: Array = np.clip(mean_3 + random.uniform(0.3, 0.65) * (piece_HW3 - mean_3), 0, 1)
    return flattened


def _ink(scan_88: Array, random: Random) -> Array:
    """(h, w) in 0..1: the scan enlarged smoothly, turned a little, cut to its ink and brought to a drawn height."""
    large = Image.fromarray(np.pad(scan_88, 3).astype(np.float32)).resize((168, 168), Image.Resampling.BICUBIC)
    turned = large.rotate(random.uniform(-12, 12), Image.Resampling.BICUBIC)
    strokes = np.clip((np.asarray(turned) - 0.3) / 0.3, 0, 1)
    rows, columns = np.flatnonzero(strokes.max(1) > 0.5), np.flatnonzero(strokes.max(0) > 0.5)
    cut = strokes[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    height = round(np.exp(random.uniform(*np.log(DIGIT_HEIGHT))))
    width = max(6, round(height * cut.shape[1] / cut.shape[0] * random.uniform(0.85, 1.2)))
    resized = Image.fromarray(cut.astype(np.float32)).resize((width, height), Image.Resampling.BOX)
    return np.asarray(resized, dtype=np.float64)


def _place(shape: tuple[int, ...], others: list[tuple[int, int, int, int]], random: Random) -> tuple[int, int] | None:
    """(x, y) where no digit shares more than MAX_OVERLAP of its box with another; None if there is none to find."""
    h, w = shape
    if w > SCENE:
        return None
    for _ in range(20):
        x, y = int(random.integers(SCENE - w + 1)), int(random.integers(SCENE - h + 1))
        if all(_shared((x, y, w, h), other) <= MAX_OVERLAP for other in others):
            return x, y
    return None


def _shared(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> float:
    """The intersection of two boxes, as a part of the smaller one."""
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    return max(0, width) * max(0, height) / min(a[2] * a[3], b[2] * b[3])


def _draw(scene_HW3: Array, ink_hw: Array, place: tuple[int, int], random: Random) -> None:
    x, y = place
    h, w = ink_hw.shape
    part_hw3 = scene_HW3[y : y + h, x : x + w]
    colour_3 = _colour(float(part_hw3.mean((0, 1)) @ LUMINANCE), random)
    cover_hw1 = (ink_hw * random.uniform(0.8, 1.0))[:, :, None]
    part_hw3 += cover_hw1 * (colour_3 - part_hw3)


def _colour(behind: float, random: Random) -> Array:
    """A colour whose luminance differs from `behind` by at least MIN_CONTRAST."""
    lighter = random.random() < 0.5 if MIN_CONTRAST <= behind <= 1 - MIN_CONTRAST else behind < 0.5
    level = random.uniform(behind + MIN_CONTRAST, 1.0) if lighter else random.uniform(0.0, behind - MIN_CONTRAST)
    hue_3 = random.uniform(-0.3, 0.3, 3)
    colour_3: Array = np.clip(level + hue_3 - hue_3 @ LUMINANCE, 0, 1)
    return colour_3
