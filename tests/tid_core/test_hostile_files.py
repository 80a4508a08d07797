"""Files that were made to do harm, and what comes of them: a clear refusal, and nothing else."""

import io
import json
import os
import pickle
import struct
import zipfile
import zlib
from pathlib import Path

import pytest
import torch

from tid_core.data import archives
from tid_core.data.annotations import ImageRecord
from tid_core.data.archive_target import Limits
from tid_core.data.images import ImageProblem, check_image, image_size
from tid_core.data.problems import DatasetError
from tid_core.detectors.weights import file_classes, load_state, read_state
from tid_core.events import TrainingFailure

MANY_BYTES = 1 << 40


class Runs:
    """Pickled, it is a command that is run where it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> object:
        return os.system, (f"touch {self.marker}",)


def refused(path: Path) -> str:
    with pytest.raises(TrainingFailure) as caught:
        read_state(path)
    assert caught.value.reason == "checkpoint_invalid"
    assert str(path) in caught.value.detail
    return caught.value.detail


@pytest.mark.parametrize("name", ["a.pt", "a.pth", "a.bin", "a.safetensors"])
@pytest.mark.parametrize("kind", ["plain", "torch", "torch_old"])
def test_a_pickle_that_would_run_a_command_is_not_run(tmp_path: Path, name: str, kind: str) -> None:
    marker = tmp_path / "ran"
    content = {"model": {"w": torch.zeros(1)}, "hook": Runs(marker)}
    if kind == "plain":
        (tmp_path / name).write_bytes(pickle.dumps(content))
    else:
        torch.save(content, tmp_path / name, _use_new_zipfile_serialization=kind == "torch")
    told = refused(tmp_path / name)
    assert "weights_only" not in told  # torch's own advice is to read it unsafely
    assert not marker.exists()


def safetensors(header: object, data: bytes = b"", *, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff" * 7,
        safetensors({}, length=MANY_BYTES),
        safetensors({}, length=2**64 - 1),
        safetensors(b"{" * 100_000),
        safetensors({"w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}, b"\0" * 8),
        safetensors({"w": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}}, b"\0" * 8),
        safetensors({"w": {"dtype": "F32", "shape": [2**62, 2**62], "data_offsets": [0, 4]}}, b"\0" * 4),
        safetensors({"w": {"dtype": "F32", "shape": [10**9], "data_offsets": [0, 4]}}, b"\0" * 4),
        safetensors({"w": {"dtype": "PICKLE", "shape": [1], "data_offsets": [0, 4]}}, b"\0" * 4),
        safetensors({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}, "v": {"dtype": "F32", "shape": [1],
                     "data_offsets": [0, 4]}}, b"\0" * 4),
    ],
)  # fmt: skip
def test_a_safetensors_file_that_lies(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    refused(path)
    with pytest.raises(TrainingFailure, match="checkpoint_invalid"):
        file_classes(path)


def test_a_small_checkpoint_that_unpacks_to_a_large_one(tmp_path: Path) -> None:
    """As torch's reader takes it, though torch.save never writes it."""
    torch.save({"w": torch.zeros(1 << 20)}, tmp_path / "plain.pt")
    bomb = tmp_path / "bomb.pt"
    with zipfile.ZipFile(tmp_path / "plain.pt") as plain, zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as packed:
        for entry in plain.infolist():
            packed.writestr(entry.filename, plain.read(entry))
    assert bomb.stat().st_size < 10_000
    assert "compressed" in refused(bomb)
    assert set(read_state(tmp_path / "plain.pt")) == {"w"}


def test_a_tensor_that_claims_to_be_larger_than_any_memory(tmp_path: Path) -> None:
    """A view of one number; to look at its values would take a terabyte."""
    path = tmp_path / "a.pt"
    torch.save({"weight": torch.zeros(1).expand(MANY_BYTES), "bias": torch.zeros(1)}, path)
    with pytest.raises(TrainingFailure, match="wrong shape: weight"):
        load_state(torch.nn.Linear(1, 1), read_state(path), source="a.pt")


@pytest.mark.parametrize("cut", [0, 1, 3, 100, 1000])
def test_a_checkpoint_that_is_cut_off(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "a.pt"
    torch.save({"w": torch.zeros(1000)}, path)
    path.write_bytes(path.read_bytes()[:cut])
    refused(path)


def png(width: int, height: int, data: bytes = b"") -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", data) + chunk(b"IEND", b"")


@pytest.mark.parametrize(("width", "height"), [(60_000, 60_000), (2**31 - 1, 2**31 - 1), (1, 2**31 - 1)])
def test_an_image_that_would_fill_the_memory_is_not_decoded(tmp_path: Path, width: int, height: int) -> None:
    (tmp_path / "a.png").write_bytes(png(width, height, zlib.compress(bytes(1000))))
    with pytest.raises(ImageProblem, match="pixels") as caught:
        image_size(tmp_path / "a.png")
    assert caught.value.code == "unreadable_image"
    with pytest.raises(ImageProblem, match="pixels"):
        check_image(tmp_path, ImageRecord(id=1, file_name="a.png", width=width, height=height))


def unpacked(tmp_path: Path, content: bytes, limits: Limits) -> DatasetError:
    (tmp_path / "a.zip").write_bytes(content)
    with pytest.raises(DatasetError) as caught:
        archives.unpack(tmp_path / "a.zip", tmp_path / "out" / "data", limits)
    assert list((tmp_path / "out").iterdir()) == []
    return caught.value


def test_folders_that_names_imply_count_as_entries(tmp_path: Path) -> None:
    """Two hundred bytes of name for a hundred folders: a disk runs out of inodes before it runs out of bytes."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for number in range(20):
            archive.writestr(f"{number}/" + "a/" * 100 + "f", b"")
    error = unpacked(tmp_path, packed.getvalue(), Limits(1 << 20, num_entries=1000))
    assert error.code == "archive_too_large"
    (tmp_path / "ok.zip").write_bytes(packed.getvalue())
    archives.unpack(tmp_path / "ok.zip", tmp_path / "out" / "ok", Limits(1 << 20, num_entries=20 * 102))
    assert len(list((tmp_path / "out" / "ok").rglob("f"))) == 20


def test_a_zip64_entry_that_claims_terabytes(tmp_path: Path) -> None:
    """The large number stands in the extra field of the directory, where not everybody looks."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("a.jpg", b"1234")
    content = packed.getvalue()
    start = content.index(b"PK\x01\x02")
    entry = bytearray(content[start : content.index(b"PK\x05\x06")])
    extra = struct.pack("<HHQ", 1, 8, MANY_BYTES)
    entry[24:28] = b"\xff" * 4
    entry[30:32] = struct.pack("<H", len(extra))
    end = bytearray(content[content.index(b"PK\x05\x06") :])
    end[12:16] = struct.pack("<I", len(entry) + len(extra))
    error = unpacked(tmp_path, content[:start] + bytes(entry) + extra + bytes(end), Limits(1 << 30))
    assert error.code == "archive_too_large"


def test_a_zip_whose_two_names_of_an_entry_differ(tmp_path: Path) -> None:
    """The directory says a.jpg, the entry itself ../evil."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("ab/evil", b"1234")
    content = packed.getvalue().replace(b"ab/evil", b"../evil", 1)
    assert unpacked(tmp_path, content, Limits(1 << 20)).code in ("archive_damaged", "archive_path")
    assert not (tmp_path / "evil").exists()
