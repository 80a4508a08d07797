"""What was unpacked as an archive again, of the same bytes each time: where hosts are to share it by the artifacts."""

import tarfile
from pathlib import Path

_TOP = "data"
"""The one folder in the archive, which unpacking takes for what it holds."""


def pack(folder: Path, archive: Path) -> None:
    """Write all files below the folder to a new .tar."""
    with tarfile.open(archive, "x:", format=tarfile.PAX_FORMAT) as tar:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                entry = tarfile.TarInfo(f"{_TOP}/{path.relative_to(folder).as_posix()}")
                entry.size = path.stat().st_size
                with path.open("rb") as file:
                    tar.addfile(entry, file)
