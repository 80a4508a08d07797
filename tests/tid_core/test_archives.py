"""Archives from outside: what is unpacked, and what is refused without leaving anything."""

import gzip
import io
import json
import random
import stat
import struct
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest

from tid_core.data import archives
from tid_core.data.archive_readers import zstd
from tid_core.data.archive_target import Limits
from tid_core.data.problems import DatasetError

PLENTY = Limits(1 << 30)
KINDS = ("zip", "tar", "tar.gz", "tar.zst")
Entry = tuple[str, bytes]


def tar_bytes(entries: list[Entry | tarfile.TarInfo]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for entry in entries:
            if isinstance(entry, tarfile.TarInfo):
                tar.addfile(entry)
                continue
            name, content = entry
            member = tarfile.TarInfo(name)
            member.size = len(content)
            member.type = tarfile.DIRTYPE if name.endswith("/") else tarfile.REGTYPE
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def zip_bytes(entries: list[Entry], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, content in entries:
            archive.writestr(zipfile.ZipInfo(name), content, compression)
    return buffer.getvalue()


def archive_bytes(kind: str, entries: list[Entry]) -> bytes:
    if kind == "zip":
        return zip_bytes(entries)
    plain = tar_bytes([*entries])
    return {"tar": bytes, "tar.gz": gzip.compress, "tar.zst": zstd.compress}[kind](plain)


def member(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def refusal(tmp_path: Path, content: bytes, limits: Limits = PLENTY) -> DatasetError:
    """Why the archive is refused; whatever the reason, nothing is left of it."""
    folder = tmp_path / "uploads"
    folder.mkdir(exist_ok=True)
    file = tmp_path / "archive"
    file.write_bytes(content)
    with pytest.raises(DatasetError) as caught:
        archives.unpack(file, folder / "data", limits)
    assert list(folder.iterdir()) == []
    return caught.value


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("top", ["", "./", "pets/", "./pets/"])
def test_the_content_comes_out_without_its_single_folder(tmp_path: Path, kind: str, top: str) -> None:
    files = {"train.json": b"{}", "train/ä 1.jpg": b"\xff\xd8" * 500, "train/deep/2.jpg": b""}
    entries = [(top + "train/", b""), *((top + name, content) for name, content in files.items())]
    junk = [("__MACOSX/pets/._1.jpg", b"x"), (top + "train/.DS_Store", b"x"), (top + "._train.json", b"x")]
    archive = tmp_path / "named.dat"
    archive.write_bytes(archive_bytes(kind, entries + junk))
    ticks: list[tuple[int, int]] = []
    archives.unpack(archive, tmp_path / "data", PLENTY, lambda done, total: ticks.append((done, total)))
    assert tree(tmp_path / "data") == files
    assert {path.name for path in tmp_path.iterdir()} == {"named.dat", "data"}
    assert all(0 <= done <= total == archive.stat().st_size for done, total in ticks)
    assert stat.S_IMODE((tmp_path / "data" / "train.json").stat().st_mode) & 0o111 == 0


def test_frames_that_zstd_skips(tmp_path: Path) -> None:
    """As `pzstd` begins each of its frames."""
    content = zstd.compress(tar_bytes([("1.jpg", b"1")]))
    (tmp_path / "a").write_bytes(struct.pack("<LLL", 0x184D2A50, 4, len(content)) + content)
    archives.unpack(tmp_path / "a", tmp_path / "data", PLENTY)
    assert tree(tmp_path / "data") == {"1.jpg": b"1"}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("../evil", "archive_path"),
        ("train/../../evil", "archive_path"),
        ("/etc/evil", "archive_path"),
        ("C:/evil", "archive_path"),
        ("..\\evil", "archive_path"),
        ("a\nb.jpg", "archive_name"),
        ("a\x1b[31m.jpg", "archive_name"),
        ("x" * 256, "archive_name"),
        ("d/" * 600 + "x", "archive_name"),
        (".", "archive_path"),
    ],
)
def test_names_that_lead_elsewhere_or_cannot_be_shown(tmp_path: Path, kind: str, name: str, code: str) -> None:
    error = refusal(tmp_path, archive_bytes(kind, [("train/1.jpg", b"1"), (name, b"evil")]))
    assert error.code == code
    assert "\n" not in error.detail
    assert "\x1b" not in error.detail
    assert not (tmp_path / "evil").exists()


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "names",
    [("a.jpg", "a.jpg"), ("a.jpg", "./a.jpg"), ("a.jpg", "A.JPG"), ("D/a", "d/a"), ("ä", "a\u0308"), ("a", "a/b"),
     ("a/b", "a"), ("a", "a/")],
)  # fmt: skip
def test_names_that_repeat(tmp_path: Path, kind: str, names: tuple[str, str]) -> None:
    content = archive_bytes(kind, [(name, b"") for name in names])
    assert refusal(tmp_path, content).code == "archive_duplicate"


@pytest.mark.parametrize(
    ("entry", "code"),
    [
        (member("link", tarfile.SYMTYPE, "/etc/passwd"), "archive_link"),
        (member("link", tarfile.LNKTYPE, "1.jpg"), "archive_link"),
        (member("null", tarfile.CHRTYPE), "archive_special"),
        (member("disk", tarfile.BLKTYPE), "archive_special"),
        (member("pipe", tarfile.FIFOTYPE), "archive_special"),
        (member("odd", b"Z"), "archive_special"),
    ],
)
def test_a_tar_holds_files_and_folders_alone(tmp_path: Path, entry: tarfile.TarInfo, code: str) -> None:
    assert refusal(tmp_path, tar_bytes([("1.jpg", b"1"), entry])).code == code


def test_a_file_cannot_be_written_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    content = tar_bytes([member("d", tarfile.SYMTYPE, str(tmp_path / "outside")), ("d/evil", b"evil")])
    assert refusal(tmp_path, content).code == "archive_link"
    assert list((tmp_path / "outside").iterdir()) == []


def test_a_sparse_file_that_is_large_only_when_unpacked(tmp_path: Path) -> None:
    info = tarfile.TarInfo("hole")
    info.pax_headers = {"GNU.sparse.major": "0", "GNU.sparse.minor": "1", "GNU.sparse.name": "hole"}
    info.pax_headers |= {"GNU.sparse.size": str(1 << 40), "GNU.sparse.numblocks": "0", "GNU.sparse.map": "0,0"}
    assert refusal(tmp_path, tar_bytes([info])).code == "archive_special"


@pytest.mark.parametrize("mode", [stat.S_IFLNK, stat.S_IFCHR, stat.S_IFIFO, stat.S_IFSOCK])
def test_a_zip_holds_files_and_folders_alone(tmp_path: Path, mode: int) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        info = zipfile.ZipInfo("x")
        info.create_system, info.external_attr = 3, (mode | 0o777) << 16
        archive.writestr(info, "/etc/passwd")
    code = "archive_link" if mode == stat.S_IFLNK else "archive_special"
    assert refusal(tmp_path, buffer.getvalue()).code == code


def test_a_zip_that_is_encrypted(tmp_path: Path) -> None:
    content = bytearray(zip_bytes([("1.jpg", b"1")]))
    central = content.index(b"PK\x01\x02")
    content[6] |= 1
    content[central + 8] |= 1
    assert refusal(tmp_path, bytes(content)).code == "archive_encrypted"


@pytest.mark.parametrize("kind", ["zip", "tar.gz", "tar.zst"])
def test_content_out_of_all_proportion(tmp_path: Path, kind: str) -> None:
    content = archive_bytes(kind, [("bomb", bytes(12 << 20))])
    assert len(content) * 100 < 12 << 20
    assert refusal(tmp_path, content).code == "archive_bomb"
    archive = tmp_path / "flat"
    archive.write_bytes(archive_bytes(kind, [("flat.bmp", bytes(9 << 20))]))
    archives.unpack(archive, tmp_path / "data", PLENTY)


def test_a_bomb_behind_the_end_of_a_tar(tmp_path: Path) -> None:
    content = gzip.compress(tar_bytes([("1.jpg", b"1")]) + bytes(12 << 20))
    assert refusal(tmp_path, content).code == "archive_bomb"


def test_entries_of_a_zip_that_share_their_bytes(tmp_path: Path) -> None:
    """The known way to a bomb of any ratio: many entries of the directory name one piece of data."""
    content = zip_bytes([("0", bytes(1 << 20))])
    start, end = content.index(b"PK\x01\x02"), content.index(b"PK\x05\x06")
    entry = content[start:end]
    entries = b"".join(entry[:-1] + bytes([65 + i]) for i in range(20))
    tail = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 20, 20, len(entries), start, 0)
    assert refusal(tmp_path, content[:start] + entries + tail).code in ("archive_bomb", "archive_damaged")


@pytest.mark.parametrize("kind", KINDS)
def test_more_than_the_server_takes(tmp_path: Path, kind: str) -> None:
    content = archive_bytes(kind, [("a", b"x" * 50_000), ("b", b"x" * 50_000)])
    assert refusal(tmp_path, content, Limits(99_000)).code == "archive_too_large"
    assert refusal(tmp_path, content, Limits(1 << 30, num_entries=1)).code == "archive_too_large"


def test_a_zip_that_lies_about_its_sizes(tmp_path: Path) -> None:
    content = zip_bytes([("a", b"x" * 50_000)])
    lying = content.replace(struct.pack("<L", 50_000), struct.pack("<L", 10))
    assert refusal(tmp_path, lying).code == "archive_damaged"


@pytest.mark.parametrize("kind", KINDS)
def test_cut_off_anywhere_it_is_damaged(tmp_path: Path, kind: str) -> None:
    picture = random.Random(0).randbytes(3000)
    content = archive_bytes(kind, [(f"{i}.jpg", picture[::-1] if i % 2 else picture) for i in range(4)])
    end = len(content.rstrip(b"\0")) + 512 if kind == "tar" else len(content)
    for cut in (600, len(content) // 2, end - 600, end - 1):
        assert refusal(tmp_path, content[:cut]).code == "archive_damaged", cut


@pytest.mark.parametrize("kind", KINDS)
def test_altered_bytes_are_damage(tmp_path: Path, kind: str) -> None:
    content = bytearray(archive_bytes(kind, [(f"{i}.txt", b"cat 1 2 3\n" * 300) for i in range(4)]))
    middle = 3 * 512 + 3072 + 100 if kind == "tar" else len(content) // 2  # a plain tar guards its headers alone
    if kind == "tar":
        middle = content.index(b"1.txt")
    content[middle] ^= 0xFF
    assert refusal(tmp_path, bytes(content)).code in ("archive_damaged", "archive_name")


def test_what_follows_the_end_of_a_tar_is_not_dropped_in_silence(tmp_path: Path) -> None:
    one, two = tar_bytes([("1.jpg", b"1")]), tar_bytes([("2.jpg", b"2")])
    assert refusal(tmp_path, one + two).code == "archive_damaged"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "no archive"),
        (b"hello" * 200, "no archive"),
        (bytes(2000), "no archive"),
        (b"7z\xbc\xaf\x27\x1c" + bytes(600), "7z"),
        (b"Rar!\x1a\x07\x01\x00" + bytes(600), "RAR"),
        (b"\xfd7zXZ\x00" + bytes(600), "xz"),
    ],
)
def test_other_files_are_named(tmp_path: Path, content: bytes, says: str) -> None:
    error = refusal(tmp_path, content)
    assert error.code == "archive_unknown"
    assert says in error.detail
    assert ".tar.zst" in error.detail


@pytest.mark.parametrize(
    "content", [gzip.compress(b"just text, no tar" * 100), zstd.compress(b"{}" * 900)], ids=["gzip", "zstd"]
)
def test_compressed_but_no_tar(tmp_path: Path, content: bytes) -> None:
    assert refusal(tmp_path, content).code == "archive_damaged"


@pytest.mark.parametrize("content", [zip_bytes([]), tar_bytes([("d/", b"")]), zip_bytes([(".DS_Store", b"x")])])
def test_an_archive_without_a_file(tmp_path: Path, content: bytes) -> None:
    assert refusal(tmp_path, content).code == "archive_empty"


def run(*arguments: Any) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "tid_core.data.archives", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def test_as_a_process(tmp_path: Path) -> None:
    archive = tmp_path / "a.zip"
    archive.write_bytes(archive_bytes("zip", [("1.jpg", b"1"), ("2.jpg", b"2")]))
    done = run(archive, tmp_path / "data", "--max-bytes", 1000, "--progress")
    assert (done.returncode, done.stdout) == (0, "")
    assert all(len(line.split()) == 2 for line in done.stderr.splitlines())
    assert tree(tmp_path / "data") == {"1.jpg": b"1", "2.jpg": b"2"}
    refused = run(archive, tmp_path / "more", "--max-bytes", 1)
    assert refused.returncode == archives.REFUSED
    assert json.loads(refused.stdout)["code"] == "archive_too_large"
    assert str(tmp_path) not in refused.stdout


def test_a_header_made_to_be_huge_ends_the_process_alone(tmp_path: Path) -> None:
    """A name of 8 GB, said to be so in a tar of a few MB: tarfile would hold it in memory."""
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 8 << 30
    archive = tmp_path / "a.tar.zst"
    packer = zstd.ZstdCompressor()
    with archive.open("wb") as file:
        file.write(packer.compress(info.tobuf(tarfile.GNU_FORMAT)))
        block = bytes(1 << 20)
        for _ in range(20):
            file.write(packer.compress(block))
        file.write(packer.flush())
    refused = run(archive, tmp_path / "data", "--max-bytes", 1 << 40)
    assert (refused.returncode, json.loads(refused.stdout)["code"]) == (archives.REFUSED, "archive_bomb")
