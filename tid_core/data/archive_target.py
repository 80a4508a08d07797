"""Where an archive from outside is unpacked to: every name is checked and every byte accounted for. Free of torch."""

import re
import unicodedata
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, NamedTuple

from tid_core.data.problems import DatasetError
from tid_core.text import CONTROLS

MAX_ENTRIES = 2_000_000
MAX_PATH, MAX_PART = 1000, 255
MAX_RATIO = 100
"""Bytes unpacked for each byte of the archive. Images are compressed already (about 1), annotations reach 20; deflate
ends at 1032, which only content made for it comes near."""
RATIO_FROM = 10 << 20
"""Bytes unpacked below which the ratio does no harm: a few flat test pictures compress well too."""
JUNK_FOLDER, JUNK_FILES, JUNK_PREFIX = "__MACOSX", frozenset({".DS_Store", "Thumbs.db", "desktop.ini"}), "._"
"""What file managers add to archives; left out."""
CHUNK = 1 << 20


class Limits(NamedTuple):
    """What an archive may unpack to."""

    num_bytes: int
    num_entries: int = MAX_ENTRIES


@dataclass
class Target:
    """An empty folder of one's own, and what came into it so far."""

    folder: Path
    archive: Path
    archive_bytes: int
    limits: Limits
    num_bytes: int = 0
    num_entries: int = 0
    num_files: int = 0
    _names: set[str] = field(default_factory=set)
    _folders: set[tuple[str, ...]] = field(default_factory=set)

    def refusal(self, code: str, detail: str) -> DatasetError:
        return DatasetError(code, f"the archive {detail}", self.archive)

    def count(self, num_bytes: int) -> None:
        """Account for bytes that were unpacked.

        Raises:
            DatasetError: too many, or too many for the size of the archive.
        """
        self.num_bytes += num_bytes
        self.check_size(self.num_bytes)

    def check_size(self, num_bytes: int) -> None:
        if num_bytes > self.limits.num_bytes:
            detail = f"unpacks to more than {self.limits.num_bytes:,} bytes, which is what this server takes"
            raise self.refusal("archive_too_large", f"{detail} (TID_UNPACKED_BYTES)")
        if num_bytes > max(RATIO_FROM, MAX_RATIO * self.archive_bytes):
            detail = f"unpacks to more than {MAX_RATIO} times its own {self.archive_bytes:,} bytes"
            raise self.refusal("archive_bomb", detail)

    def place(self, name: str, *, folder: bool) -> Path | None:
        """Where an entry goes; None where it is left out.

        Raises:
            DatasetError: too many entries, or a name that leads elsewhere, repeats, or cannot be stored.
        """
        self._count_entry()
        parts = self._parts(name)
        if not parts and not folder:
            raise self.refusal("archive_path", f"has a file without a name: {name!a:.100}")
        if not parts or parts[0] == JUNK_FOLDER or parts[-1] in JUNK_FILES or parts[-1].startswith(JUNK_PREFIX):
            return None
        if not folder:
            self._once(name, "/".join(parts))
        self._count_folders(parts if folder else parts[:-1])
        return self.folder.joinpath(*parts)

    def make_folder(self, path: Path) -> None:
        try:
            path.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            raise self._both(path) from None

    def write(self, path: Path, source: IO[bytes], *, counted: bool) -> None:
        """A new file with what `source` holds; `counted`: its bytes are accounted for here."""
        self.make_folder(path.parent)
        try:
            file = path.open("xb")
        except FileExistsError:
            raise self._both(path) from None
        with file:
            while chunk := source.read(CHUNK):
                if counted:
                    self.count(len(chunk))
                file.write(chunk)
        self.num_files += 1

    def _count_entry(self) -> None:
        self.num_entries += 1
        if self.num_entries > self.limits.num_entries:
            raise self.refusal("archive_too_large", f"has more than {self.limits.num_entries:,} files and folders")

    def _count_folders(self, parts: list[str]) -> None:
        """A folder that only a longer name implies counts as well: one name could stand for five hundred."""
        while parts and tuple(parts) not in self._folders:
            self._folders.add(tuple(parts))
            self._count_entry()
            parts = parts[:-1]

    def _parts(self, name: str) -> list[str]:
        shown = f"{name!a:.100}"
        if CONTROLS.search(name) or any("\ud800" <= char <= "\udfff" for char in name):
            raise self.refusal("archive_name", f"has an entry {shown}: control characters, or not UTF-8")
        parts = [part for part in name.split("/") if part not in ("", ".")]
        if name.startswith("/") or ".." in parts or "\\" in name or re.match("[A-Za-z]:", name):
            raise self.refusal("archive_path", f"has an entry {shown}; paths must be relative, without `..` and `\\`")
        if len(name) > MAX_PATH or any(len(part.encode()) > MAX_PART for part in parts):
            detail = f"has an entry {shown}; a path may have {MAX_PATH} characters, each name in it {MAX_PART} bytes"
            raise self.refusal("archive_name", detail)
        return parts

    def _once(self, name: str, path: str) -> None:
        """Also by letter case and by Unicode's ways to write a letter: other systems would keep only one of the two."""
        key = unicodedata.normalize("NFC", path).casefold()
        if key in self._names:
            raise self.refusal("archive_duplicate", f"has {name!a:.100} twice (letter case makes no difference)")
        self._names.add(key)

    def _both(self, path: Path) -> DatasetError:
        name = str(path.relative_to(self.folder))
        return self.refusal("archive_duplicate", f"has {name!a:.100} both as a file and as a folder")
