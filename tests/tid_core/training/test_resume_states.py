"""Resume states on disk: atomic, checked, the newest two kept."""

import json
from pathlib import Path

import pytest
import torch

from tid_core.training.resume import find_state, save_state


def content(value: int) -> dict:
    return {"step": value, "weights": torch.full((4,), float(value)), "nested": {"rows": [(1, {"a": 0.5})]}}


def saved_steps(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_newest_two_are_kept_and_the_newest_is_found(tmp_path):
    for step in (10, 20, 30):
        save_state(tmp_path, content(step), step=step, epoch=step // 10)
    assert saved_steps(tmp_path) == ["step-00000020", "step-00000030"]
    found = find_state(tmp_path)
    assert found.rejected == []
    assert found.state.step == 30
    assert found.state.content["weights"].tolist() == [30.0] * 4
    assert found.state.content["nested"] == {"rows": [(1, {"a": 0.5})]}
    manifest = json.loads((found.state.path / "manifest.json").read_text())
    assert (manifest["step"], manifest["epoch"]) == (30, 3)


def test_a_folder_without_states_or_no_folder_gives_none(tmp_path):
    assert find_state(tmp_path).state is None
    assert find_state(tmp_path / "resume").state is None


def truncate(path: Path) -> None:
    data = (path / "state.pt").read_bytes()
    (path / "state.pt").write_bytes(data[: len(data) // 2])


def flip_a_bit(path: Path) -> None:
    data = bytearray((path / "state.pt").read_bytes())
    data[len(data) // 2] ^= 1
    (path / "state.pt").write_bytes(data)


def lose_manifest(path: Path) -> None:
    (path / "manifest.json").unlink()


def garble_manifest(path: Path) -> None:
    (path / "manifest.json").write_text('{"step": 20, "files": {')


@pytest.mark.parametrize("damage", [truncate, flip_a_bit, lose_manifest, garble_manifest])
def test_a_damaged_state_is_passed_over_for_the_one_before_it(tmp_path, damage):
    for step in (10, 20):
        save_state(tmp_path, content(step), step=step, epoch=1)
    damage(tmp_path / "step-00000020")
    found = find_state(tmp_path)
    assert found.state.step == 10
    assert len(found.rejected) == 1
    assert found.rejected[0].startswith("step-00000020: ")


def test_states_newer_than_the_one_saved_are_of_a_discarded_past(tmp_path):
    for step in (10, 20):
        save_state(tmp_path, content(step), step=step, epoch=1)
    for name in ("step-00000010", "step-00000020"):
        truncate(tmp_path / name)
    save_state(tmp_path, content(5), step=5, epoch=1)
    assert saved_steps(tmp_path) == ["step-00000005"]


def test_a_single_state_may_be_named_and_newer_ones_are_then_ignored(tmp_path):
    for step in (10, 20):
        save_state(tmp_path, content(step), step=step, epoch=1)
    assert find_state(tmp_path / "step-00000010").state.step == 10
    assert find_state(tmp_path / "step-00000015").state.step == 10


def test_saving_a_step_again_replaces_it(tmp_path):
    save_state(tmp_path, content(10), step=10, epoch=1)
    save_state(tmp_path, {**content(10), "evaluated": 1}, step=10, epoch=1)
    assert saved_steps(tmp_path) == ["step-00000010"]
    assert find_state(tmp_path).state.content["evaluated"] == 1
    # A crash between the two renames leaves only the replaced state.
    (tmp_path / "step-00000010").rename(tmp_path / "step-00000010.old")
    assert find_state(tmp_path).state.step == 10
    save_state(tmp_path, content(10), step=10, epoch=1)
    save_state(tmp_path, content(10), step=10, epoch=1)
    assert saved_steps(tmp_path) == ["step-00000010"]


def test_what_a_killed_writer_left_behind_is_neither_read_nor_kept(tmp_path):
    save_state(tmp_path, content(10), step=10, epoch=1)
    leftover = tmp_path / ".step-00000020.77.tmp"
    leftover.mkdir()
    (leftover / "state.pt").write_bytes(b"half")
    assert find_state(tmp_path).state.step == 10
    save_state(tmp_path, content(15), step=15, epoch=1)
    assert saved_steps(tmp_path) == ["step-00000010", "step-00000015"]


def test_a_state_that_does_not_fit_on_the_disk_leaves_nothing(tmp_path):
    resource = pytest.importorskip("resource")
    save_state(tmp_path, content(10), step=10, epoch=1)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    big = {"weights": torch.zeros(1_000_000)}
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, before[1]))  # the kernel stops the write after 1 MB
    try:
        with pytest.raises(OSError, match="File too large"):
            save_state(tmp_path, big, step=20, epoch=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert saved_steps(tmp_path) == ["step-00000010"]
    assert find_state(tmp_path).state.step == 10
