"""A small disk for artifacts, which can be filled: a tmpfs in a mount namespace of one's own."""

import errno
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import NoReturn

_INSIDE = "FIRE_MOUNTS_ITS_OWN"
_CHUNK = b"\0" * (1 << 16)


def can_mount() -> bool:
    """Whether this user may make a mount namespace (root always may, others where the kernel lets them)."""
    if shutil.which("unshare") is None:
        return False
    return subprocess.run([*namespace(), "true"], capture_output=True, check=False).returncode == 0


def namespace() -> list[str]:
    """The command in front of one that may mount."""
    return ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--user", "--map-root-user", "--mount"]


def inside() -> bool:
    return _INSIDE in os.environ


def enter() -> NoReturn:
    """Run this program again from its beginning, where it may mount."""
    os.environ[_INSIDE] = "1"
    command = [*namespace(), sys.executable, *sys.argv]
    os.execvp(command[0], command)


def mount(folder: Path, mib: int) -> None:
    """Give the folder a disk of its own; within the namespace only."""
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={mib}m", "tmpfs", str(folder)], check=True)


def unmount(folder: Path) -> None:
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder: Path, until: Callable[[], bool]) -> None:
    """Leave no room at all on the disk of the folder, whatever is deleted meanwhile, and then free it."""
    with NamedTemporaryFile(dir=folder, prefix=".ballast-", buffering=0) as file:
        while not until():
            try:
                file.write(_CHUNK)
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
                time.sleep(0.02)
