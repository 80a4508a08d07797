"""A small disk for artifacts, which can be filled: a tmpfs in a mount namespace of one's own."""

import errno
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
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


class Disk:
    """A folder with `mib` MiB."""

    def __init__(self, folder: Path, mib: int) -> None:
        self._ballast = folder / ".ballast"
        folder.mkdir(parents=True, exist_ok=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={mib}m", "tmpfs", str(folder)], check=True)

    def fill(self, seconds: float) -> None:
        """No room at all for so long, whatever is deleted meanwhile."""
        end = time.monotonic() + seconds
        with self._ballast.open("ab", buffering=0) as file:
            while time.monotonic() < end:
                try:
                    file.write(_CHUNK)
                except OSError as error:
                    if error.errno != errno.ENOSPC:
                        raise
                    time.sleep(0.02)
        self._ballast.unlink()
