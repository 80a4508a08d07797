"""`tid doctor`: what this machine has and lacks for the service, and how to mend it."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from importlib.metadata import packages_distributions
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, NamedTuple

import typer

from client.console import FAILED, escaped, out, plain_table

_STYLES = {"ok": "green", "warn": "yellow", "fail": "bold red"}
_PACKAGES = ("api", "client", "store", "tid_core", "worker")


class Row(NamedTuple):
    what: str
    state: str
    found: str
    remedy: str = ""


def register(app: typer.Typer) -> None:
    app.command()(doctor)


def doctor(
    home: Annotated[
        Path | None, typer.Option("--home", help="As of `tid up`; also TID_HOME, and the other TID_* settings.")
    ] = None,
) -> None:
    """Look whether the service can run here, with the settings as they are; nothing is changed.

    Exit code 1 where something keeps it from starting or working.
    """
    place = {} if home is None else {"TID_HOME": str(home.expanduser().resolve())}
    rows = [*_installation(), *_asked("api.doctor", place), *_asked("worker.doctor", place)]
    table = plain_table("what", "state", "found")
    for row in rows:
        found = escaped(row.found) + (f"\n[dim]{escaped(row.remedy)}[/]" if row.remedy else "")
        table.add_row(row.what, f"[{_STYLES[row.state]}]{row.state}[/]", found)
    out().print(table)
    if any(row.state == "fail" for row in rows):
        raise typer.Exit(FAILED)


def _installation() -> list[Row]:
    from client.errors import EmbeddedError
    from client.machine import valkey_binary
    from tid_core.version import described

    rows = [Row("tid", "ok", f"{described()}, Python {platform.python_version()}, {platform.platform(terse=True)}")]
    if not sys.platform.startswith("linux"):
        rows.append(Row("system", "warn", "the service is tested on Linux alone", "on Windows, use WSL 2"))
    rows += _shadowed()
    try:
        rows.append(Row("Valkey for tid up", "ok", valkey_binary()))
    except EmbeddedError as error:
        found, _, remedy = str(error).partition(": ")
        rows.append(Row("Valkey for tid up", "warn", found, remedy))
    return rows


def _shadowed() -> list[Row]:
    """Our packages have common names: another distribution may have brought, or overwritten, one of them."""
    here, rows = Path(__file__).resolve().parents[2], []
    owners = packages_distributions()
    for name in _PACKAGES:
        spec = find_spec(name)
        place = Path(str(spec.origin)).resolve().parents[1] if spec is not None and spec.origin else None
        others = sorted(set(owners.get(name, [])) - {"tid-service"})
        if place != here or others:
            found = f"the package `{name}` is that of {', '.join(others) or place}"
            rows.append(Row("installation", "fail", found, "give tid-service a virtual environment of its own"))
    return rows


def _asked(module: str, place: dict[str, str]) -> list[Row]:
    """What a process of the service finds: the client loads nothing of it."""
    command = [sys.executable, "-P", "-m", module]
    done = subprocess.run(command, env={**os.environ, **place}, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no word"])[-1]
        return [Row(module.partition(".")[0], "fail", f"it cannot be loaded: {last}", "install tid-service anew")]
    return [Row(**json.loads(line)) for line in done.stdout.splitlines()]
