"""Boxes and areas of COCO's segmentations, against pycocotools and by hand."""

from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from tid_core.data.masks import MaskError, read_mask


def random_mask(seed: int) -> Any:
    """Blobs, single pixels, or columns filled from top to bottom."""
    random = np.random.default_rng(seed)
    height, width = (int(side) for side in random.integers(1, 40, 2))
    pixels = np.zeros((height, width), dtype=np.uint8)
    for _ in range(random.integers(1, 5)):
        y, x = random.integers(height), random.integers(width)
        pixels[y : y + random.integers(1, 30), x : x + random.integers(1, 9)] = 1
    return np.asfortranarray(pixels)


@pytest.mark.parametrize("seed", range(60))
def test_run_lengths_agree_with_pycocotools_compressed_or_not(seed: int) -> None:
    pixels = random_mask(seed)
    encoded = coco_mask.encode(pixels)
    expected = (coco_mask.toBbox(encoded).tolist(), int(coco_mask.area(encoded)))
    flat = pixels.flatten(order="F")
    changes = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff(np.concatenate([[0], changes, [flat.size]])).tolist()
    plain = {"size": list(pixels.shape), "counts": [0, *counts] if flat[0] else counts}
    compressed = {"size": list(pixels.shape), "counts": encoded["counts"].decode()}
    for segmentation in (plain, compressed):
        mask = read_mask(segmentation)
        assert (list(mask.xywh), mask.area) == expected


def test_a_polygon_of_two_parts() -> None:
    triangle, square = [0, 0, 10, 0, 0, 10], [20.5, 5, 30.5, 5, 30.5, 15, 20.5, 15]
    mask = read_mask([triangle, square])
    assert mask.xywh == (0, 0, 30.5, 15)
    assert mask.area == 50 + 100


@pytest.mark.parametrize(
    ("segmentation", "words"),
    [
        ([[1, 2, 3, 4]], "neither a list of polygons"),
        ([[1, 2, 3, 4, 5, float("nan")]], "neither a list of polygons"),
        ("polygon", "neither a list of polygons"),
        ({"counts": [4]}, "has no size"),
        ({"size": [2, 10**9], "counts": [4]}, "has no size"),
        ({"size": [2, 2], "counts": [1, 2]}, "do not add up to 2 x 2"),
        ({"size": [2, 2], "counts": [6, -2]}, "do not add up"),
        ({"size": [2, 2], "counts": [4]}, "is empty"),
        ({"size": [2, 2], "counts": "\x7f"}, "not COCO's compressed run lengths"),
        ({"size": [2, 2], "counts": "o" * 50}, "not COCO's compressed run lengths"),
    ],
)
def test_what_is_no_mask_says_why(segmentation: Any, words: str) -> None:
    with pytest.raises(MaskError, match=words):
        read_mask(segmentation)
