"""YOLO: a text file an image, and a data.yaml that names classes and splits. Free of torch.

A label line is `class x y width height`, the centre and the size as parts of the image as a viewer shows it (with its
EXIF orientation applied); a polygon `class x1 y1 x2 y2 x3 y3 ...` becomes the box around it.
"""

import math
from pathlib import Path, PurePosixPath

from tid_core.data.annotations import Box, BoxRecord, ImageRecord, UnusableBox, clip
from tid_core.data.formats.source import Root, Source, Split, merged, note_overhang
from tid_core.data.formats.yolo_config import Config, default_splits, find_config, has_splits
from tid_core.data.images import ImageProblem, image_size
from tid_core.data.problems import DatasetError

__all__ = ["LOOKS_FOR", "default_splits", "has_splits", "read"]

LOOKS_FOR = "YOLO: data.yaml with `names` and `train`"
MAX_BYTES = 16 << 20
TOLERANCE = 1e-4
"""Beyond 0..1: rounding of a label's coordinates."""


def read(root: Root, base: Path, wanted: dict[str, list[str]]) -> Source:
    """The splits `wanted`, ours to the keys of data.yaml. Class order is that of `names`.

    Raises:
        DatasetError: data.yaml cannot be used, a split is missing or empty, or none of its images has labels.
    """
    config = find_config(base)
    if config is None:
        raise DatasetError("format_unknown", f"holds no dataset; looked for {LOOKS_FOR}", base)
    root.name(config.file)
    splits = {ours: merged([_part(root, config, key) for key in keys]) for ours, keys in wanted.items()}
    return Source("yolo", config.names, list(range(1, len(config.names) + 1)), splits)


def _part(root: Root, config: Config, key: str) -> Split:
    split = Split()
    images = config.images(root, key)
    labelled = 0
    for image in images:
        name = root.name(image)
        labels = root.path / label_file(name)
        root.name(labels)
        has_labels = labels.is_file()
        labelled += has_labels
        try:
            width, height = image_size(image)
        except ImageProblem as problem:
            split.problems.note(problem.code, problem.detail.removeprefix(f"{root.path}/"))
            continue
        split.images.append(ImageRecord(len(split.images) + 1, name, width, height))
        if has_labels:
            _read_labels(labels, root.name(labels), config, split)
        else:
            split.problems.note("missing_label", name)
    if not labelled:
        example = label_file(root.name(images[0]))
        detail = f"has images without labels: not one of the {len(images)} images of `{key}` has a label file"
        raise DatasetError("no_labels", f"{detail}; expected e.g. {example}", root.path)
    return split


def label_file(image: str) -> str:
    """Beside the image, or under `labels` where the image lies under `images` (the last folder of that name)."""
    path = PurePosixPath(image).with_suffix(".txt")
    folders = list(path.parts[:-1])
    if "images" in folders:
        last = len(folders) - 1 - folders[::-1].index("images")
        folders[last] = "labels"
    return str(PurePosixPath(*folders, path.name))


def _read_labels(file: Path, name: str, config: Config, split: Split) -> None:
    """Add the boxes of the split's last image."""
    with file.open("rb") as opened:
        data = opened.read(MAX_BYTES + 1)
    try:
        lines = data.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError:
        lines = None
    if lines is None or len(data) > MAX_BYTES:
        split.problems.note("unreadable_annotation", f"{name} is not a text file of at most {MAX_BYTES >> 20} MiB")
        return
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{name}:{number}"
        try:
            split.boxes.append(_box(line, where, config, split))
        except UnusableBox as box:
            split.problems.note(box.code, f"{where}: {box.what}")


def _box(line: str, where: str, config: Config, split: Split) -> BoxRecord:
    try:
        label, *values = map(float, line.split())
    except ValueError:
        raise UnusableBox("malformed_label", repr(line[:60])) from None
    if config.has_keypoints:
        values = values[:4]
    if not all(map(math.isfinite, (label, *values))) or not label.is_integer():
        raise UnusableBox("malformed_label", repr(line[:60]))
    x, y, w, h = _centre_box(values, line)
    if not 0 <= label < len(config.names):
        raise UnusableBox("unknown_category", f"class {label:.0f}; names has 0 to {len(config.names) - 1}")
    image = split.images[-1]
    xywh = ((x - w / 2) * image.width, (y - h / 2) * image.height, w * image.width, h * image.height)
    xyxy, overhang = clip(xywh, image)
    note_overhang(split.problems, overhang, where, xywh, image)
    return BoxRecord(len(split.images) - 1, int(label), xyxy, xywh, xywh[2] * xywh[3], False)


def _centre_box(values: list[float], line: str) -> Box:
    """Centre and size of the box, or of that around the polygon."""
    if not (len(values) == 4 or (len(values) >= 6 and len(values) % 2 == 0)):
        raise UnusableBox("malformed_label", repr(line[:60]))
    if not all(-TOLERANCE <= value <= 1 + TOLERANCE for value in values):
        raise UnusableBox("outside_0_1", repr(line[:60]))
    if len(values) == 4:
        x, y, w, h = values
        return x, y, w, h
    xs, ys = values[0::2], values[1::2]
    left, right, top, bottom = min(xs), max(xs), min(ys), max(ys)
    return (left + right) / 2, (top + bottom) / 2, right - left, bottom - top
