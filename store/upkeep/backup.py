"""`tid backup`: the database and the files that it names, as a folder. `python -m store.upkeep.backup DEST`.

The service may run meanwhile. The database is copied as it is at one moment; files never change once they are there,
but those of a running job are replaced by newer ones and deleted. Where one has gone before it was copied, the database
is copied again, and what is missing then is looked for anew: in the end both are of one moment.
"""

import argparse
import hashlib
import json
import os
import secrets
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from sqlalchemy import make_url
from sqlalchemy.exc import SQLAlchemyError

from store.artifacts import ArtifactStore, open_artifacts, sync_folder
from store.errors import BackupError, StoreError
from store.settings import Settings, SettingsError, load_settings
from store.upgrade import open_current
from store.upkeep.dumps import Dump, dump
from store.upkeep.gc import human
from store.upkeep.starting import told

MANIFEST: Final = "manifest.json"
FORMAT: Final = 1
_ROUNDS: Final = 5
Tell = Callable[[str], None]


def back_up(settings: Settings, destination: Path, *, with_files: bool = True, tell: Tell = lambda _: None) -> Path:
    """Write a backup, which is there in full or not at all.

    Raises:
        BackupError: the destination exists, or the database cannot be copied; nothing is left behind.
        DatabaseUnfit: there is no database, or it is of another version.
    """
    destination = destination.expanduser().absolute()
    if destination.exists():
        raise BackupError(f"{destination} exists; name a folder that does not")
    open_current(settings.database_url).close()
    destination.parent.mkdir(parents=True, exist_ok=True)
    partial = destination.with_name(f".{destination.name}.{secrets.token_hex(4)}.partial")
    partial.mkdir(mode=0o700)  # the database knows hashes of keys, and who did what
    try:
        taken, lost = _copy(settings, partial, with_files=with_files, tell=tell)
        manifest = _manifest(settings, partial, taken, lost, with_files=with_files)
        (partial / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
        _settle(partial)
        partial.rename(destination)
        sync_folder(destination.parent)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return destination


def _copy(settings: Settings, partial: Path, *, with_files: bool, tell: Tell) -> tuple[Dump, list[str]]:
    """The dump, and the names of files that its rows have and the disk has not."""
    missing: list[str] = []
    for _ in range(_ROUNDS):
        taken = dump(settings, partial)
        if not with_files:
            return taken, []
        tell(f"copied the database; {len(taken.files):,} files belong to it")
        before, missing = set(missing), _copy_files(settings, partial, taken)
        if not missing or before == set(missing):  # gone for good, whatever the reason: the copy is as the original
            break
    _drop_unnamed(partial, taken)
    return taken, missing


def _copy_files(settings: Settings, partial: Path, taken: Dump) -> list[str]:
    """Copy what is not yet there; returns what was not found."""
    artifacts, missing = open_artifacts(settings), []
    for name in taken.files:
        area, _, rest = name.partition("/")
        target = partial / name
        if target.exists():
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            if area == "uploads":
                shutil.copyfile(settings.uploads / rest, target)
            else:
                _copy_artifact(artifacts, rest, target)
        except FileNotFoundError:
            missing.append(name)
    return missing


def _copy_artifact(artifacts: ArtifactStore, key: str, target: Path) -> None:
    """As it is, also where it is damaged: the manifest will say so."""
    path = artifacts.local(key)
    if path is not None:
        shutil.copyfile(path, target)
        return
    pieces = artifacts.stream(key)
    with target.open("xb") as file:
        file.writelines(pieces)


def _drop_unnamed(partial: Path, taken: Dump) -> None:
    """Files of an earlier round, which a running job has replaced since."""
    wanted = set(taken.files)
    for path in list(_files_in(partial)):
        name = path.relative_to(partial).as_posix()
        if name not in wanted and name != taken.name:
            path.unlink()


def _manifest(
    settings: Settings, partial: Path, taken: Dump, lost: list[str], *, with_files: bool
) -> dict[str, object]:
    files = {path.relative_to(partial).as_posix(): path for path in sorted(_files_in(partial))}
    digests = {name: _digest(path) for name, path in files.items()}
    return {
        "format": FORMAT,
        "made_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "database": make_url(settings.database_url).get_backend_name(),
        "dump": taken.name,
        "revision": taken.revision,
        "with_files": with_files,
        "uploads": str(settings.uploads),
        "missing": lost,
        "damaged": [name for name, digest in digests.items() if digest != (taken.files.get(name) or digest)],
        "files": {name: {"sha256": digests[name], "bytes": path.stat().st_size} for name, path in files.items()},
    }


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _settle(folder: Path) -> None:
    """Everything is on the disk before the name says that it is."""
    for path in _files_in(folder):
        with path.open("rb") as file:
            os.fsync(file.fileno())
    for inner, _, _ in os.walk(folder):
        sync_folder(Path(inner))


def _files_in(folder: Path) -> Iterator[Path]:
    return (Path(inner, name) for inner, _, names in os.walk(folder) for name in names)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="tid backup", description=__doc__)
    parser.add_argument("destination", type=Path, metavar="DEST", help="a folder that does not exist")
    parser.add_argument("--no-artifacts", action="store_true", help="the database alone")
    asked = parser.parse_args(arguments)
    try:
        settings = load_settings()
        made = back_up(settings, asked.destination, with_files=not asked.no_artifacts, tell=_say)
    except SQLAlchemyError as error:
        sys.stderr.write(f"tid backup: {told(error, load_settings())}\n")
        return 1
    except (SettingsError, StoreError, OSError) as error:
        sys.stderr.write(f"tid backup: {str(error).splitlines()[0]}\n")
        return 1
    manifest = json.loads((made / MANIFEST).read_text())
    size = sum(file["bytes"] for file in manifest["files"].values())
    _say(f"wrote {made}: {len(manifest['files']):,} files, {human(size)}")
    for what, why in (("missing", "not on the disk"), ("damaged", "not what was stored")):
        if manifest[what]:
            _say(f"{len(manifest[what])} files that the database names are {why}; {MANIFEST} lists them")
    return 0


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")


if __name__ == "__main__":
    sys.exit(main())
