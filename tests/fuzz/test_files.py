"""Files from outside with any byte altered: what they held, or one error that says so. Nothing else, and nowhere else.

Datasets' own files are in tests/tid_core/formats/test_hostile.py.
"""

import hashlib
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import event, given, settings
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from safetensors.torch import save_file

from tests.tid_core.test_archives import KINDS, archive_bytes
from tid_core.data.archive_target import Limits
from tid_core.data.archives import unpack
from tid_core.data.problems import DatasetError
from tid_core.detectors.weights import file_classes, read_state
from tid_core.events import TrainingFailure
from tid_core.importing.reading import read_checkpoint
from tid_core.importing.refusal import ImportRefused
from tid_core.training.resume import find_state, save_state

FUZZ = settings.get_profile("fuzz")
pytestmark = pytest.mark.filterwarnings("ignore")  # of the readers, about what they are fed with
MANY = settings(FUZZ, max_examples=3 * FUZZ.max_examples)
LIMITS = Limits(num_bytes=64 << 10, num_entries=20)
PARTS = st.sampled_from(
    ["a", "A", "b.png", "..", ".", "", "é", "e\u0301", "x" * 300, "con", "a\\b", "\x7f", "__MACOSX"]
)
NAMES = st.builds(
    lambda parts, end: "/".join(parts) + end, st.lists(PARTS, min_size=1, max_size=3), st.sampled_from(["", "/"])
)
ENTRIES = st.lists(st.tuples(NAMES, st.binary(max_size=40) | st.just(b"0" * (70 << 10))), max_size=4)


@st.composite
def altered(draw: st.DrawFn, content: bytes) -> bytes:
    """The content with some bytes changed, cut out, repeated, or put in."""
    data = bytearray(content)
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        length = draw(st.integers(0, 16))
        data[at : at + length] = draw(st.binary(max_size=16) | st.just(bytes(data[: length * 2])))
    return bytes(data[: draw(st.integers(0, len(data)))] if draw(st.booleans()) else data)


def archives() -> SearchStrategy[bytes]:
    sound = st.builds(archive_bytes, st.sampled_from(KINDS), ENTRIES.map(_storable))
    return sound | sound.flatmap(altered) | st.binary(max_size=600)


def _storable(entries: list[tuple[str, bytes]]) -> list[tuple[str, bytes]]:
    """As the writers take them: a folder has no content."""
    return [(name, b"" if name.endswith("/") else content) for name, content in entries]


@given(archives())
@MANY
def test_an_archive_is_unpacked_within_its_limits_or_refused(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        around, archive, out = Path(folder), Path(folder, "archive"), Path(folder, "out")
        archive.write_bytes(data)
        refusal = None
        try:
            unpack(archive, out, LIMITS)
        except DatasetError as error:
            refusal = error
        found = [path for path in around.rglob("*") if path != archive]
        event(refusal.code if refusal else "unpacked")
        if refusal is not None:
            assert refusal.code.startswith("archive_")
            assert str(refusal).encode()
            assert found == []
            return
        assert all(path == out or out in path.parents for path in found)
        assert all(not path.is_symlink() and (path.is_dir() or path.is_file()) for path in found)
        files = [path for path in found if path.is_file()]
        assert files
        assert len(found) <= LIMITS.num_entries * 4
        assert sum(path.stat().st_size for path in files) <= LIMITS.num_bytes


def _written(write: Callable[[Path], object], name: str) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder, name))
        return Path(folder, name).read_bytes()


STATE = {"head.weight": torch.arange(6.0).reshape(2, 3), "head.bias": torch.zeros(2)}
SAFETENSORS = _written(lambda path: save_file(STATE, path, {"classes": "a\nb"}), "s.safetensors")
PT = _written(lambda path: torch.save(STATE, path), "s.pt")
MMDET = _written(
    lambda path: torch.save({"meta": {"CLASSES": ("a",), "config": "model = dict()"}, "state_dict": STATE}, path),
    "m.pth",
)


@given(altered(SAFETENSORS) | altered(PT), st.sampled_from([".safetensors", ".pt"]))
@MANY
def test_a_checkpoint_is_read_or_told_to_be_none(data: bytes, suffix: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"student{suffix}")
        path.write_bytes(data)
        for read in (read_state, file_classes):
            refusal = None
            try:
                found: Any = read(path)
            except TrainingFailure as error:
                refusal = error
            if refusal is not None:
                assert refusal.reason == "checkpoint_invalid"
                assert str(path) in refusal.detail
            elif read is read_state:
                assert all(isinstance(value, torch.Tensor) for value in found.values())
            else:
                assert found is None or all(isinstance(name, str) for name in found)


@given(altered(MMDET) | altered(PT) | st.binary(max_size=60))
@FUZZ
def test_an_import_is_read_or_refused(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "mm.pth")
        path.write_bytes(data)
        refusal = None
        try:
            found = read_checkpoint(path)
        except ImportRefused as error:
            refusal = error
        if refusal is not None:
            assert refusal.code in ("unreadable", "unsafe", "no_state_dict")
            assert refusal.detail.encode()
            return
        assert all(isinstance(value, torch.Tensor) for value in found.state.values())


JSON = st.recursive(st.none() | st.integers() | st.text(max_size=5), lambda inner: st.lists(inner) | st.dictionaries(
    st.sampled_from(["files", "state.pt", "bytes", "sha256"]), inner), max_leaves=6)  # fmt: skip


MANIFESTS = JSON.map(lambda value: json.dumps(value).encode())


@given(altered(PT), MANIFESTS | st.binary(max_size=30), st.sampled_from(["neither", "state", "manifest", "both"]))
@FUZZ
def test_a_run_goes_on_from_a_whole_state_or_from_the_one_before(state: bytes, manifest: bytes, hit: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        resume = Path(folder, "resume")
        for step in (1, 2):
            save_state(resume, {"step": step, "weights": STATE}, step=step, epoch=0)
        newest = resume / "step-00000002"
        if hit in ("state", "both"):
            (newest / "state.pt").write_bytes(state)
        if hit in ("manifest", "both"):
            (newest / "manifest.json").write_bytes(manifest)
        found = find_state(resume)
        assert found.state is not None
        changed = hit != "neither"
        assert (found.state.step, len(found.rejected)) == ((1, 1) if changed else (2, 0))
        assert found.state.content["step"] == found.state.step


@given(st.binary(max_size=60) | altered(PT))
@FUZZ
def test_a_state_with_the_right_digest_may_still_be_no_state(state: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        resume = Path(folder, "resume")
        save_state(resume, {"step": 1}, step=1, epoch=0)
        newest = save_state(resume, {"step": 2}, step=2, epoch=0)
        (newest / "state.pt").write_bytes(state)
        entry = {"bytes": len(state), "sha256": hashlib.sha256(state).hexdigest()}
        (newest / "manifest.json").write_text(json.dumps({"files": {"state.pt": entry}}))
        found = find_state(resume).state
        assert found is not None
        assert found.step in (1, 2)
        assert isinstance(found.content, dict)
