"""Zip and tar files read into a `Target`, as streams and without trust in what they say. Free of torch."""

import gzip
import stat
import sys
from collections.abc import Callable
from typing import IO, Any, Literal

from tid_core.data.archive_target import CHUNK, Target

if sys.version_info >= (3, 14):
    import tarfile
    import zipfile

    from compression import zstd
else:  # the same modules, as Python 3.14 has them
    from backports import zstd
    from backports.zstd import tarfile, zipfile

Kind = Literal["zip", "tar", "tar.gz", "tar.zst"]
Read = Callable[[int], bytes]
Tick = Callable[[int], None]
"""Called with the bytes of the archive that are done."""
_ENCRYPTED = 0x1 | 0x40 | 0x2000
_LINK = "has the link {name!a:.100}; send files alone"
_SPECIAL = "has {name!a:.100}, which is neither a file nor a folder"


def read_zip(file: IO[bytes], target: Target, tick: Tick) -> None:
    """Raises:
    DatasetError: it is refused. Anything else: it is damaged.
    """
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
        target.check_size(sum(entry.file_size for entry in entries))  # before the first byte is written
        done = 0
        for entry in entries:
            _read_entry(archive, entry, target)
            done += entry.compress_size
            tick(done)


def _read_entry(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, target: Target) -> None:
    # Windows' own tools wrote `\` for a long time; the part behind a NUL, which zipfile cuts off, is to be seen.
    name = entry.orig_filename.replace("\\", "/")
    kind = stat.S_IFMT(entry.external_attr >> 16)
    if kind == stat.S_IFLNK:
        raise target.refusal("archive_link", _LINK.format(name=name))
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise target.refusal("archive_special", _SPECIAL.format(name=name))
    if entry.flag_bits & _ENCRYPTED:
        raise target.refusal("archive_encrypted", f"is encrypted ({name!a:.100}); send it without a password")
    folder = name.endswith("/")
    path = target.place(name, folder=folder)
    if path is None:
        return
    if folder:
        target.make_folder(path)
        return
    with archive.open(entry) as source:
        target.write(path, source, counted=True)


class _Counted:
    """A stream whose bytes are accounted for as they are read: headers, padding and what is left out as well."""

    def __init__(self, source: IO[bytes], target: Target) -> None:
        self._source, self._target = source, target

    def read(self, size: int) -> bytes:
        chunk = self._source.read(size)
        self._target.count(len(chunk))
        return chunk


class _Tar(tarfile.TarFile):
    has_end = False
    """Whether the mark of the end was read, and not merely the end of the file."""


class _Member(tarfile.TarInfo):
    @classmethod
    def fromtarfile(cls, tar: Any) -> Any:
        """As the base class, but what is no header is damage; `TarFile.next` would take it for the end."""
        try:
            return super().fromtarfile(tar)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined, unused-ignore]
            tar.has_end = True
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(str(error) or "no header where one should be") from error


def read_tar(file: IO[bytes], kind: Kind, target: Target, tick: Tick) -> None:
    """Raises:
    DatasetError: it is refused. Anything else: it is damaged.
    """
    source: Any = file
    if kind == "tar.gz":
        source = gzip.GzipFile(fileobj=file)
    elif kind == "tar.zst":
        source = zstd.ZstdFile(file)
    stream: Any = _Counted(source, target)
    # Read from front to back once, and nothing of it kept: an archive may have millions of entries.
    how: dict[str, Any] = {"tarinfo": _Member, "encoding": "utf-8", "stream": True}
    with _Tar.open(fileobj=stream, mode="r|", **how) as archive:
        for member in archive:
            _read_member(archive, member, target)
            tick(file.tell())
        if not archive.has_end:
            raise tarfile.ReadError("it ends without the mark of its end")
        _read_rest(archive.fileobj)
        _read_rest(source)


def _read_member(archive: tarfile.TarFile, member: tarfile.TarInfo, target: Target) -> None:
    name = member.name
    if member.issym() or member.islnk():
        raise target.refusal("archive_link", _LINK.format(name=name))
    if not (member.isfile() or member.isdir()) or member.issparse():
        raise target.refusal("archive_special", _SPECIAL.format(name=name))
    path = target.place(name, folder=member.isdir())
    if path is None:
        return
    if member.isdir():
        target.make_folder(path)
        return
    content = archive.extractfile(member)
    assert content is not None  # noqa: S101 (a file)
    with content:
        target.write(path, content, counted=False)


def _read_rest(source: Any) -> None:
    """To the last byte, so that checksums are compared; beyond the mark of the end there may only be zeros."""
    while chunk := source.read(CHUNK):
        if chunk.strip(b"\0"):
            raise tarfile.ReadError("something follows its end")
