"""Unpacks an archive from outside: .zip, .tar, .tar.gz, .tar.zst, whatever its name says. Free of torch.

    python -m tid_core.data.archives ARCHIVE OUT --max-bytes N [--progress]

Exit codes: 0 = OUT holds the content; 3 = refused, with {"code", "detail"} as JSON on stdout, and nothing is left.
With --progress, stderr gets lines `done total`, in bytes of the archive.

What comes out is plain files and folders. Links, devices, paths that lead elsewhere, names that repeat, and content
out of all proportion are refused, not repaired: a dataset has none of them.
"""

import argparse
import errno
import json
import os
import re
import resource
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from tid_core.data.archive_readers import Kind, read_tar, read_zip
from tid_core.data.archive_target import Limits, Target
from tid_core.data.problems import DatasetError

KINDS = "a .zip, .tar, .tar.gz or .tar.zst file"
SNIFF_BYTES = 512
"""The beginning of a file that tells its kind."""
REFUSED = 3
MEMORY = 4 << 30
"""Bytes of address space for the process: a directory or a header made to be huge ends it, not the machine."""
_TICK_SECONDS = 0.2
_OTHER_KINDS = {
    b"7z\xbc\xaf\x27\x1c": "a 7z archive",
    b"Rar!": "a RAR archive",
    b"\xfd7zXZ": "compressed with xz",
    b"BZh": "compressed with bzip2",
}


def sniff(head: bytes) -> Kind | None:
    """The kind of archive that begins with these bytes (SNIFF_BYTES of them), or None where it is none of KINDS."""
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return "zip"
    if head.startswith(b"\x1f\x8b\x08"):
        return "tar.gz"
    if head.startswith(b"\x28\xb5\x2f\xfd") or (head[1:4] == b"\x2a\x4d\x18" and head[0] >> 4 == 5):  # pzstd's first
        return "tar.zst"
    return "tar" if _is_tar_header(head) else None


def unknown_kind(head: bytes) -> str:
    """Why a file that begins so is refused."""
    other = next((name for magic, name in _OTHER_KINDS.items() if head.startswith(magic)), "no archive that is known")
    return f"the file is {other}; send {KINDS}"


def _is_tar_header(head: bytes) -> bool:
    """By the checksum that every tar header carries: old ones have no magic number."""
    told = head[148:156].strip(b"\0 ")
    if len(head) < SNIFF_BYTES or not re.fullmatch(rb"[0-7]+", told):
        return False
    return int(told, 8) == sum(head[:148]) + 8 * ord(" ") + sum(head[156:SNIFF_BYTES])


def unpack(
    archive: Path, out: Path, limits: Limits, tick: Callable[[int, int], None] = lambda _done, _total: None
) -> None:
    """Unpack `archive` to the new folder `out`; where all lies in one folder, `out` is that folder.

    Raises:
        DatasetError: it is refused, damaged, or does not fit on the disk. `out` is then not there.
    """
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    total = archive.stat().st_size
    try:
        _read(archive, Target(partial, archive, total, limits), lambda done: tick(min(done, total), total))
        os.sync()  # the index will say that the files are there, also after a power cut
        _top(partial).replace(out)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        detail = "the server's disk is full; free some space there, then send the archive again"
        raise DatasetError("no_space", detail, archive) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _read(archive: Path, target: Target, tick: Callable[[int], None]) -> None:
    with archive.open("rb") as file:
        head = file.read(SNIFF_BYTES)
        file.seek(0)
        kind = sniff(head)
        if kind is None:
            raise DatasetError("archive_unknown", unknown_kind(head), archive)
        try:
            if kind == "zip":
                read_zip(file, target, tick)
            else:
                read_tar(file, kind, target, tick)
        except DatasetError:
            raise
        except MemoryError as error:
            raise target.refusal("archive_bomb", "takes more memory to read than a real one") from error
        except Exception as error:  # the readers raise whatever the damage leads to
            if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
                raise  # of the disk
            raise target.refusal("archive_damaged", f"is cut off or damaged: {error}") from error
    if not target.num_files:
        raise target.refusal("archive_empty", "holds no file")


def _top(folder: Path) -> Path:
    entries = list(folder.iterdir())
    return entries[0] if len(entries) == 1 and entries[0].is_dir() else folder


def _tell_progress() -> Callable[[int, int], None]:
    told = 0.0

    def tick(done: int, total: int) -> None:
        nonlocal told
        if time.monotonic() - told > _TICK_SECONDS:
            told = time.monotonic()
            sys.stderr.write(f"{done} {total}\n")

    return tick


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tid_core.data.archives", description="Unpack one archive.")
    parser.add_argument("archive", type=Path)
    parser.add_argument("out", type=Path, help="folder to make")
    parser.add_argument("--max-bytes", type=int, required=True, help="largest content")
    parser.add_argument("--progress", action="store_true", help="tell it on stderr")
    arguments = parser.parse_args(argv)
    with suppress(ValueError, OSError):  # not every system can
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, resource.getrlimit(resource.RLIMIT_AS)[1]))
    tick = _tell_progress() if arguments.progress else lambda _done, _total: None
    try:
        unpack(arguments.archive, arguments.out, Limits(arguments.max_bytes), tick)
    except DatasetError as error:
        sys.stdout.write(json.dumps({"code": error.code, "detail": error.detail}) + "\n")
        return REFUSED
    return 0


if __name__ == "__main__":
    sys.exit(main())
