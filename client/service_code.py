"""Commands that work on the service's own files and tables: code of the store, run as a process of its own.

The client imports nothing of the service, so that `tid` starts at once and works where only the client is installed.
"""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import typer


def run_store(name: str, arguments: Sequence[str], home: Path | None) -> None:
    """Run `python -m store.upkeep.NAME`, which prints for itself, with TID_HOME where that is given.

    Raises:
        typer.Exit: it ended with another code than 0.
    """
    command = [sys.executable, "-P", "-m", f"store.upkeep.{name}", *arguments]  # -P: not a `store` that lies here
    place = {} if home is None else {"TID_HOME": str(home.expanduser().resolve())}
    sys.stdout.flush()
    code = subprocess.run(command, env={**os.environ, **place}, check=False).returncode
    if code != 0:
        raise typer.Exit(code if code > 0 else 1)
