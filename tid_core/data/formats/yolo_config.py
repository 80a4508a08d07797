"""YOLO's data.yaml: names of classes, and where the images of each split are. Free of torch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tid_core.data.annotations import MAX_NAME
from tid_core.data.formats.files import images_under, read_lines
from tid_core.data.formats.source import OWN_NAMES, Root
from tid_core.data.problems import DatasetError
from tid_core.text import CONTROLS

OTHER_KEYS = ("names", "nc", "path", "download", "kpt_shape", "flip_idx", "kpt_names", "roboflow")
"""Keys that are no split."""
FILES = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")
MAX_BYTES = 1 << 20
MAX_PLACE = 1000
"""Characters."""


@dataclass(frozen=True)
class Config:
    file: Path
    names: list[str]
    folder: str
    """`path`, which the splits are relative to."""
    splits: dict[str, list[str]]
    """Key to folders of images or lists of their paths, as written."""
    has_keypoints: bool
    """Label lines go on after the box."""

    def images(self, root: Root, key: str) -> list[Path]:
        """The image files of a split, in the order of the file.

        Raises:
            DatasetError: the split is missing or has no images, or a path leads outside of the dataset's folder.
        """
        if key not in self.splits:
            raise DatasetError("split_missing", f"has no split `{key}`; it has {list(self.splits)}", self.file)
        found = [image for entry in self.splits[key] for image in self._images(root, key, entry)]
        if not found:
            raise DatasetError("split_empty", f"`{key}` ({', '.join(self.splits[key])}) has no images", self.file)
        return found

    def _images(self, root: Root, key: str, entry: str) -> list[Path]:
        place = self._place(root, entry)
        if place.is_dir():
            return images_under(place)
        if place.suffix == ".txt" and place.is_file():
            return self._listed(root, place)
        raise DatasetError("images_missing", f"`{key}` is {entry!a:.100}, which is no folder and no list", self.file)

    def _place(self, root: Root, entry: str) -> Path:
        base = self.file.parent / self.folder
        if not base.is_dir():
            detail = f"`path` is {self.folder!a:.100}, which is no folder here"
            hint = "leave it away where splits are beside this file"
            raise DatasetError("path_missing", f"{detail}; {hint}", self.file)
        self._inside(root, base, f"`path: {self.folder}`; without `path`, splits are relative to this file")
        place = base / entry
        # Exports of a well-known site say ../train/images and mean train/images.
        if entry.startswith("../") and not place.exists():
            place = base / entry[3:]
        self._inside(root, place, repr(entry))
        return place

    def _inside(self, root: Root, place: Path, what: str) -> None:
        try:
            root.name(place)
        except DatasetError as error:
            raise DatasetError(error.code, f"{what}: {error.detail}", self.file) from error

    def _listed(self, root: Root, file: Path) -> list[Path]:
        """Paths in a list are relative to it, or to `path`."""
        found = []
        for line in read_lines(file):
            beside, below = file.parent / line, self.file.parent / self.folder / line
            self._inside(root, beside, repr(line[:100]))
            self._inside(root, below, repr(line[:100]))
            found.append(below if not beside.exists() and below.exists() else beside)
        return found


def find_config(base: Path) -> Config | None:
    """data.yaml, or the only other YAML file that says what data.yaml should.

    Raises:
        DatasetError: the file is not a mapping, or its names or splits cannot be used.
    """
    for name in FILES:
        if (base / name).is_file():
            return _config(base / name, _load(base / name))
    others = [file for pattern in ("*.yaml", "*.yml") for file in base.glob(pattern) if file.is_file()]
    if len(others) != 1:
        return None
    content = _load(others[0])
    return _config(others[0], content) if "names" in content and "train" in content else None


def default_splits(base: Path) -> dict[str, str]:
    """Ours to the keys of data.yaml; empty where there is no such file."""
    config = find_config(base)
    if config is None:
        return {}
    found = {ours: next((key for key in keys if key in config.splits), None) for ours, keys in OWN_NAMES.items()}
    return {ours: key for ours, key in found.items() if key is not None}


def has_splits(base: Path, names: list[str]) -> bool:
    config = find_config(base)
    return config is not None and all(name in config.splits for name in names)


def _load(file: Path) -> dict[Any, Any]:
    if not file.resolve().is_relative_to(file.parent.resolve()):  # before anything of it is told
        raise DatasetError("path_outside", "is a link that leads outside of its folder", file)
    with file.open("rb") as opened:
        data = opened.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise DatasetError("data_yaml", f"is larger than {MAX_BYTES >> 20} MiB", file)
    try:
        # Every scalar stays text, so that the classes `no`, `1` and `null` keep their names.
        content = yaml.load(data, Loader=yaml.BaseLoader)  # noqa: S506 - makes text, lists and mappings alone
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise DatasetError("data_yaml", f"is not YAML: {error}", file) from error
    if not isinstance(content, dict):
        raise DatasetError("data_yaml", "must hold a mapping with `names` and `train`", file)
    return content


def _config(file: Path, content: dict[Any, Any]) -> Config:
    names = _names(content.get("names"), file)
    count = content.get("nc")
    if count is not None and count != str(len(names)):
        raise DatasetError("data_yaml", f"says nc: {_shown(count)}, but `names` has {len(names)}", file)
    folder = content.get("path") or ""
    if not isinstance(folder, str) or len(folder) > MAX_PLACE or CONTROLS.search(folder):
        raise DatasetError("data_yaml", "`path` must be a folder", file)
    return Config(file, names, folder, _splits(content, file), "kpt_shape" in content)


def _names(value: Any, file: Path) -> list[str]:
    """From a list, or from a mapping of 0, 1, 2, ... to names."""
    if isinstance(value, dict):
        keys = [str(i) for i in range(len(value))]
        if set(value) != set(keys):
            raise DatasetError("data_yaml", f"the keys of `names` must be 0 to {len(keys) - 1}", file)
        value = [value[key] for key in keys]
    if not (isinstance(value, list) and value and all(isinstance(name, str) for name in value)):
        raise DatasetError(
            "data_yaml", "`names` must be a list of class names, or a mapping 0: name, 1: name, ...", file
        )
    for i, name in enumerate(value):
        if not 1 <= len(name) <= MAX_NAME or CONTROLS.search(name):
            raise DatasetError("data_yaml", f"names[{i}] must be 1 to {MAX_NAME} plain characters", file)
    if len(set(value)) < len(value):
        twice = next(name for i, name in enumerate(value) if name in value[:i])
        raise DatasetError("duplicate_category", f"`names` has {twice!r} twice", file)
    return list(value)


def _splits(content: dict[Any, Any], file: Path) -> dict[str, list[str]]:
    splits = {}
    for key, value in content.items():
        places = value if isinstance(value, list) else [value]
        if key in OTHER_KEYS or not value:
            continue
        if all(
            isinstance(place, str) and 1 <= len(place) <= MAX_PLACE and not CONTROLS.search(place) for place in places
        ):
            splits[str(key)] = places
        elif any(key in own for own in OWN_NAMES.values()):
            raise DatasetError("data_yaml", f"`{key}` must be a folder, a list file, or several of those", file)
    return splits


def _shown(value: Any) -> str:
    return value[:40] if isinstance(value, str) else type(value).__name__
