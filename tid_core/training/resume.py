"""Resume states: everything a run needs to continue as if it had never stopped.

    resume/step-00000120/state.pt        tensors and plain values, read with weights_only=True
    resume/step-00000120/manifest.json   step, epoch, size and sha256 of state.pt; written last

A state is written under another name, synced and renamed. One that is torn or was changed does not match its manifest
and is passed over for the one before it.
"""

import hashlib
import io
import json
import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from tid_core.training.files import replace_folder, write_synced

KEEP = 2
_NAME = re.compile(r"step-(\d{8,})(\.old)?")


@dataclass(frozen=True)
class SavedState:
    step: int
    path: Path
    content: dict[str, Any]


@dataclass(frozen=True)
class Search:
    """The newest complete state, and why newer ones were passed over."""

    state: SavedState | None
    rejected: list[str] = field(default_factory=list)


def save_state(folder: Path, content: dict[str, Any], *, step: int, epoch: int) -> Path:
    """Write a state for `step` under `folder`; of the older ones only the newest stays.

    Raises:
        OSError: it could not be written (disk full); nothing half-written is left, older states are untouched.
    """
    buffer = io.BytesIO()
    torch.save(content, buffer)
    data = buffer.getbuffer()
    entry = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    manifest = {"format": 1, "step": step, "epoch": epoch, "files": {"state.pt": entry}}

    def fill(temporary: Path) -> None:
        write_synced(temporary / "state.pt", data)
        write_synced(temporary / "manifest.json", json.dumps(manifest, indent=1).encode())

    _remove_leftovers(folder)
    path = folder / f"step-{step:08d}"
    replace_folder(path, fill)
    _delete_outdated(folder, step)
    return path


def find_state(path: Path) -> Search:
    """The newest complete state of a resume folder, or, when `path` is a single state, that one or an older one."""
    match = _NAME.fullmatch(path.name)
    folder = path.parent if match else path
    rejected: list[str] = []
    for candidate in _states(folder):
        step = _step(candidate)
        if match and step > int(match[1]):
            continue
        try:
            return Search(read_state(candidate), rejected)
        except (OSError, ValueError, KeyError) as error:
            rejected.append(f"{candidate.name}: {error}")
    return Search(None, rejected)


def read_state(path: Path) -> SavedState:
    """A state that `find_state` found, by its path.

    Raises:
        OSError, ValueError, KeyError: it is not what its manifest says.
    """
    return SavedState(_step(path), path, _read(path))


def _read(path: Path) -> dict[str, Any]:
    """Raises ValueError, KeyError or OSError where the state is not what its manifest says."""
    num_bytes, digest = _announced(path)
    data = (path / "state.pt").read_bytes()
    if len(data) != num_bytes:
        raise ValueError(f"state.pt has {len(data)} bytes, its manifest says {num_bytes}")
    if hashlib.sha256(data).hexdigest() != digest:
        raise ValueError("state.pt does not match the sha256 of its manifest")
    return load_content(data)


def load_content(data: bytes) -> dict[str, Any]:
    """What a state.pt holds.

    Raises:
        ValueError: it is none.
    """
    try:
        content = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # an unpickler fed with something else raises whatever it likes
        raise ValueError(f"state.pt cannot be read ({type(error).__name__})") from error
    if not isinstance(content, dict):
        raise ValueError("state.pt holds no state")
    return content


def _announced(path: Path) -> tuple[Any, Any]:
    """Size and sha256 of the state."""
    try:
        entry = json.loads((path / "manifest.json").read_text())["files"]["state.pt"]
        return entry["bytes"], entry["sha256"]
    except (TypeError, RecursionError) as error:  # JSON, but of another shape
        raise ValueError("manifest.json is no manifest") from error


def _states(folder: Path) -> list[Path]:
    """Newest first; a replaced state (`.old`) after the one that replaced it."""
    if not folder.is_dir():
        return []
    found = [path for path in folder.iterdir() if _NAME.fullmatch(path.name)]
    return sorted(found, key=lambda path: (-_step(path), path.name))


def _step(path: Path) -> int:
    return int(path.name.removesuffix(".old").removeprefix("step-"))


def _delete_outdated(folder: Path, step: int) -> None:
    """Keep the newest two. States after `step` are torn, or of a past that the run has gone back from."""
    states = _states(folder)
    valid = [path for path in states if _step(path) <= step]
    for path in states:
        if path not in valid[:KEEP]:
            shutil.rmtree(path, ignore_errors=True)


def _remove_leftovers(folder: Path) -> None:
    for leftover in folder.glob(".step-*.tmp"):
        shutil.rmtree(leftover, ignore_errors=True)
