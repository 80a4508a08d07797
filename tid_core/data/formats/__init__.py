"""The formats in which people have data, read into one form. Free of torch."""

from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

from tid_core.data.formats import coco, voc, yolo
from tid_core.data.formats.carve import carve
from tid_core.data.formats.source import OWN_NAMES, Root, Source
from tid_core.data.options import IndexOptions, split_names
from tid_core.data.problems import DatasetError

FORMATS: dict[str, ModuleType] = {"coco": coco, "voc": voc, "yolo": yolo}
"""Each module has LOOKS_FOR, default_splits(base), has_splits(base, names) and read(root, base, wanted)."""
HIDDEN = (".", "__MACOSX")


def read_source(path: Path, options: IndexOptions) -> Source:
    """Read the dataset in the folder `path`: classes, images, boxes, problems. Image files are not opened but for
    sizes that are not written elsewhere.

    Raises:
        DatasetError: the folder, its format, a split or an annotation file cannot be used at all.
    """
    if not path.is_dir():
        raise DatasetError("dataset_not_found", "there is no such folder", path)
    root = Root(path)
    try:
        base, reader = _find_reader(root, options)
        wanted = {str(ours): own for ours, own in (options.splits or reader.default_splits(base)).items()}
        _check_splits(wanted, reader, options, base)
        own = {ours: split_names(names) for ours, names in wanted.items()}
        source: Source = reader.read(root, base, own)
    except OSError as error:
        detail = f"cannot be read: {error.strerror or error}"
        raise DatasetError("not_readable", detail, Path(error.filename or path)) from error
    return carve(source, options, base) if options.val_fraction is not None else source


def _find_reader(root: Root, options: IndexOptions) -> tuple[Path, ModuleType]:
    """The folder that holds the dataset, `root` or an only folder within, and the reader of its format."""
    candidates: dict[str, ModuleType] = (
        FORMATS if options.format == "auto" else {options.format: FORMATS[options.format]}
    )
    base = root.path
    while True:
        found = {name: reader for name, reader in candidates.items() if _fits(reader, base, options)}
        if len(found) == 1:
            root.name(base)
            return base, next(iter(found.values()))
        if found:
            detail = f"looks like {' and like '.join(found)}; name the format in the options"
            raise DatasetError("format_ambiguous", detail, base)
        inner = [entry for entry in base.iterdir() if not entry.name.startswith(HIDDEN)]
        if len(inner) != 1 or not inner[0].is_dir() or inner[0].is_symlink():
            break
        base = inner[0]
    if options.splits:
        _say_which_splits(base, candidates, options)
    looked_for = "; ".join(reader.LOOKS_FOR for reader in candidates.values())
    splits = f", for the splits {_joined(options.splits.values())}" if options.splits else ""
    raise DatasetError("format_unknown", f"holds no dataset; looked for {looked_for}{splits}", root.path)


def _say_which_splits(base: Path, candidates: dict[str, ModuleType], options: IndexOptions) -> None:
    """
    Raises:
        DatasetError: this is a dataset, but one of the splits that were asked for is not in it.
    """
    for name, reader in candidates.items():
        if not (found := reader.default_splits(base)):
            continue
        asked = [own for names in (options.splits or {}).values() for own in split_names(names)]
        missing = [own for own in asked if not reader.has_splits(base, [own])]
        detail = f"has no split {_joined(missing)}; as {name} it has {_own_names(found)}"
        raise DatasetError("split_missing", detail, base)


def _own_names(found: dict[str, str]) -> str:
    return _joined(own for names in found.values() for own in split_names(names))


def _joined(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _fits(reader: ModuleType, base: Path, options: IndexOptions) -> bool:
    if options.splits is None:
        return bool(reader.default_splits(base))
    return all(reader.has_splits(base, split_names(names)) for names in options.splits.values())


def _check_splits(wanted: dict[str, str], reader: ModuleType, options: IndexOptions, base: Path) -> None:
    if options.val_fraction is not None and "val" in wanted:
        detail = f"has a `val` split of its own (`{wanted['val']}`); leave val_fraction away, or name the splits: "
        raise DatasetError("split_conflict", f'{detail}{{"train": "train+{wanted["val"]}"}} makes one `train`', base)
    for split in ("train",) if options.val_fraction is not None else ("train", "val"):
        if split in wanted:
            continue
        other = "" if split == "train" else ", or carve it out of `train` with val_fraction"
        detail = (
            f"has no `{split}` split, but {_own_names(wanted)}; expected one of the names "
            f"{', '.join(OWN_NAMES[split])} ({reader.LOOKS_FOR.replace('train', split)}). "
            f"Else name its split in the options{other}"
        )
        raise DatasetError("split_missing", detail, base)
