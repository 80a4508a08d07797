"""Where a VOC dataset keeps images, annotations and the lists of its splits. Free of torch."""

from dataclasses import dataclass
from pathlib import Path

from tid_core.data.formats.files import read_lines
from tid_core.data.formats.source import OWN_NAMES
from tid_core.data.problems import DatasetError

ALL = "all"
"""The own split of a dataset without lists: every annotated image."""
LISTS = ("train", "val", "trainval", "test")
FOLDERS = (("JPEGImages", "Annotations"), ("images", "annotations"))
"""Of images and of XML files."""


@dataclass(frozen=True)
class Part:
    """One split of one year."""

    images: Path
    annotations: Path
    names: Path | None
    """Text file with the images' names without suffix, one a line; None = all annotated images."""

    def listed(self) -> list[str]:
        """
        Raises:
            DatasetError: the list is not text.
        """
        if self.names is None:
            return sorted(file.stem for file in self.annotations.glob("*.xml"))
        return read_lines(self.names)


def default_splits(base: Path) -> dict[str, str]:
    """Ours to the dataset's own, as papers use VOC: `trainval` of all years against the first annotated `test`; where
    there is no such pair, `train` against `val`; without lists, all images are `train`. Empty if it is no VOC dataset.
    """
    years = _years(base)
    if not years:
        return _folders(base)
    lists = {name: [prefix for prefix, year in years.items() if _has(year, name)] for name in LISTS}
    if lists["trainval"] and lists["test"]:
        return {"train": _own(lists["trainval"], "trainval"), "val": _own(lists["test"][:1], "test")}
    found = {name: _own(lists[name], name) for name in ("train", "val", "test") if lists[name]}
    if "train" not in found and lists["trainval"]:
        found["train"] = _own(lists["trainval"], "trainval")
    return found or {"train": _own(list(years), ALL)}


def has_splits(base: Path, names: list[str]) -> bool:
    return all(_part(base, name) is not None for name in names)


def find_part(base: Path, name: str) -> Part:
    """The dataset's own split `name`: `trainval`, `VOC2007/trainval`, a folder, or `all`.

    Raises:
        DatasetError: there is none, or it lists nothing.
    """
    part = _part(base, name)
    if part is None:
        raise DatasetError("split_missing", f"has no split `{name}`; expected a list ImageSets/Main/{name}.txt", base)
    if not part.listed():
        raise DatasetError("split_empty", f"the split `{name}` has no images", part.names or part.annotations)
    return part


def _part(base: Path, name: str) -> Part | None:
    prefix, _, split = name.rpartition("/")
    year = _years(base).get(prefix)
    if year is None:
        return None if prefix or name not in _folder_names(base) else Part(base / name, base / name, None)
    if split == ALL:
        return year
    file = _list(year, split)
    return Part(year.images, year.annotations, file) if file.is_file() else None


def _years(base: Path) -> dict[str, Part]:
    """The folder itself under an empty name, or the years within."""
    if (own := _year(base)) is not None:
        return {"": own}
    inner = {place.name: year for place in sorted(base.glob("VOC*")) if (year := _year(place)) is not None}
    if inner or not (base / "VOCdevkit").is_dir():
        return inner
    return {f"VOCdevkit/{name}": year for name, year in _years(base / "VOCdevkit").items()}


def _year(place: Path) -> Part | None:
    for images, annotations in FOLDERS:
        part = Part(place / images, place / annotations, None)
        if part.images.is_dir() and any(part.annotations.glob("*.xml")):
            return part
    return None


def _list(year: Part, split: str) -> Path:
    return year.annotations.parent / "ImageSets" / "Main" / f"{split}.txt"


def _has(year: Part, split: str) -> bool:
    """Whether the split has a list, and annotations: those of later years' tests were never published."""
    file = _list(year, split)
    if not file.is_file():
        return False
    names = Part(year.images, year.annotations, file).listed()
    return bool(names) and (split != "test" or (year.annotations / f"{names[0]}.xml").is_file())


def _own(prefixes: list[str], split: str) -> str:
    return "+".join(f"{prefix}/{split}" if prefix else split for prefix in prefixes)


def _folders(base: Path) -> dict[str, str]:
    """Splits as folders with images and XML files side by side."""
    names = _folder_names(base)
    found = {ours: next((name for name in own if name in names), None) for ours, own in OWN_NAMES.items()}
    return {ours: name for ours, name in found.items() if name is not None}


def _folder_names(base: Path) -> list[str]:
    return [name for own in OWN_NAMES.values() for name in own if any((base / name).glob("*.xml"))]
