"""The box and the area of a COCO segmentation: polygons, or run lengths with or without compression.

Pure Python, as the API's machine has no pycocotools; the runs are walked once, pixels are never made.
"""

from itertools import accumulate
from typing import Any, NamedTuple, TypeGuard

MAX_SIDE = 100_000
"""Pixels."""


class Mask(NamedTuple):
    xywh: tuple[float, float, float, float]
    area: float


class MaskError(Exception):
    """No mask, or an empty one; the text continues a sentence that began with the mask's place."""


def read_mask(segmentation: Any) -> Mask:
    """The tight box and the area of a segmentation as a COCO file holds it.

    The areas of several polygons are summed; a box around run lengths is in whole pixels.

    Raises:
        MaskError: neither polygons nor run lengths, or nothing is in it.
    """
    if isinstance(segmentation, dict):
        return _of_runs(segmentation)
    if isinstance(segmentation, list) and segmentation and all(map(_is_polygon, segmentation)):
        return _of_polygons(segmentation)
    raise MaskError("is neither a list of polygons [x1, y1, x2, y2, x3, y3, ...] nor {counts, size}")


def _is_polygon(part: Any) -> TypeGuard[list[float]]:
    return (
        isinstance(part, list)
        and len(part) >= 6
        and len(part) % 2 == 0
        and all(isinstance(value, int | float) and -(2**53) < value < 2**53 for value in part)
    )


def _of_polygons(polygons: list[list[float]]) -> Mask:
    xs = [x for polygon in polygons for x in polygon[0::2]]
    ys = [y for polygon in polygons for y in polygon[1::2]]
    area = sum(abs(_signed_area(polygon[0::2], polygon[1::2])) for polygon in polygons)
    return Mask((min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)), area)


def _signed_area(xs: list[float], ys: list[float]) -> float:
    """The shoelace formula."""
    return sum(xs[i - 1] * ys[i] - xs[i] * ys[i - 1] for i in range(len(xs))) / 2


def _of_runs(segmentation: dict[str, Any]) -> Mask:
    size, counts = segmentation.get("size"), segmentation.get("counts")
    if not (isinstance(size, list) and len(size) == 2 and all(type(n) is int and 0 < n <= MAX_SIDE for n in size)):
        raise MaskError("has no size [height, width]")
    height, width = size
    runs = _uncompressed(counts) if isinstance(counts, str) else counts
    if not (isinstance(runs, list) and all(type(n) is int and n >= 0 for n in runs)) or sum(runs) != height * width:
        raise MaskError(f"has counts that do not add up to {height} x {width} pixels")
    ends = list(accumulate(runs))
    # Runs alternate between background and mask, down the columns, left to right.
    inside = [(ends[i - 1], ends[i]) for i in range(1, len(runs), 2) if runs[i]]
    if not inside:
        raise MaskError("is empty")
    left, right = inside[0][0] // height, (inside[-1][1] - 1) // height
    whole_column = any(start // height != (end - 1) // height for start, end in inside)
    top = 0 if whole_column else min(start % height for start, _ in inside)
    bottom = height - 1 if whole_column else max((end - 1) % height for _, end in inside)
    return Mask((left, top, right + 1 - left, bottom + 1 - top), sum(end - start for start, end in inside))


def _uncompressed(text: str) -> list[int]:
    """COCO's own compression: five bits a character, lowest first, a sign; from the third on, differences to the
    run before the last."""
    counts: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64 or shift > 35:
            raise MaskError("has counts that are not COCO's compressed run lengths")
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
        value = shift = 0
    return counts
