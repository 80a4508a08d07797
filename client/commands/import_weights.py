"""`tid import-weights`: checkpoints of other projects, as files that teachers and students start from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from client.console import count, out, say

REFUSED = 3
"""Exit code of `python -m tid_core.importing` when it refuses a file; its answer says why."""


def register(app: typer.Typer) -> None:
    app.command("import-weights")(import_weights)


def import_weights(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The checkpoint, a .pth.")],
    source: Annotated[Literal["mmdetection"], typer.Option("--from", help="The project that wrote it.")],
    style: Annotated[
        Literal["pytorch", "caffe"] | None, typer.Option(help="Of its ResNet; default: as the config in the file says.")
    ] = None,
    detector: Annotated[str | None, typer.Option(help="Its name here, where the file does not tell.")] = None,
    classes: Annotated[
        str | None,
        typer.Option(help="Names of its outputs in their order: a,b,c or a file with one a line; default: the file's."),
    ] = None,
    to: Annotated[Path | None, typer.Option("--out", "-o", help="Default: FILE's name here, .safetensors.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the output if it exists.")] = False,
) -> None:
    """Import a public checkpoint.

    GFL, ATSS, RetinaNet and FCOS of mmdetection with a ResNet-18, 34, 50 or 101. What does not map is refused by name.
    """
    from client.errors import ClientError

    if not file.is_file():
        raise ClientError(f"{file}: there is no such file")
    target = to or Path(f"{file.stem}.safetensors")
    if target.suffix != ".safetensors":
        raise ClientError(f"{target}: the output is a .safetensors file")
    if target.exists() and not force:
        raise ClientError(f"{target} exists; --force replaces it, --out names another file")
    arguments = [str(file), "--from", source, "--out", str(target)]
    arguments += ["--style", style] if style else []
    arguments += ["--detector", detector] if detector else []
    arguments += ["--classes", class_names(classes)] if classes else []
    _print(_run(arguments))


def class_names(text: str) -> str:
    """A JSON list of the names in a file, or between commas."""
    import json

    path = Path(text)
    try:
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else text.split(",")
    except UnicodeDecodeError as error:
        from client.errors import ClientError

        raise ClientError(f"{path}: not a text file with one class name a line") from error
    return json.dumps([line.strip() for line in lines if line.strip()])


def _run(arguments: list[str]) -> dict[str, Any]:
    import json
    import subprocess
    import sys
    from importlib.util import find_spec

    from client.errors import ClientError

    if any(find_spec(module) is None for module in ("torch", "torchvision", "safetensors")):
        raise ClientError('importing weights needs torch: pip install "tid-service[worker]"')
    command = [sys.executable, "-P", "-m", "tid_core.importing", *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode not in (0, REFUSED):
        raise ClientError(f"the import ended with exit code {done.returncode}")
    answer: dict[str, Any] = json.loads(done.stdout)
    if done.returncode == REFUSED:
        raise ClientError(f"{answer['detail']} [{answer['code']}]")
    return answer


def _print(answer: dict[str, Any]) -> None:
    import json

    names = answer["classes"]
    short = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    facts = [
        ("detector", answer["detector"]),
        ("style", answer["style"]),
        ("classes", f"{len(names)}: {short}"),
        ("parameters", count(answer["parameters"])),
        *(("note", note) for note in answer["notes"]),
        ("wrote", answer["out"]),
    ]
    for name, value in facts:
        out().print(f"{name:>12}  {value}", soft_wrap=True, markup=False, highlight=False)
    place = json.dumps(str(Path(answer["out"]).absolute()), ensure_ascii=False)
    say("in a job's spec, the file under a folder that the server may read (`tid up --data`):")
    say(f"  teacher: {{detector: {answer['detector']}, weights: {{file: {place}}}}}")
