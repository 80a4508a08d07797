"""`python -m tid_core.importing FILE --from mmdetection -o OUT.safetensors`: what `tid import-weights` runs.

One JSON object on stdout: the summary, or with exit code 3 `code` and `detail` of a refusal.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from tid_core.export import plain_state, safetensors_file
from tid_core.importing.mmdetection import Imported, import_mmdetection
from tid_core.importing.refusal import ImportRefused
from tid_core.training.files import replace_file

REFUSED = 3


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    try:
        imported = import_mmdetection(
            options.file, style=options.style, detector=options.detector, classes=options.classes
        )
        answer, code = _write(imported, options.file, options.out), 0
    except ImportRefused as refused:
        answer, code = {"code": refused.code, "detail": refused.detail}, REFUSED
    except OSError as error:
        answer, code = {"code": "not_written", "detail": f"{error.filename or options.out}: {error.strerror}"}, REFUSED
    sys.stdout.write(json.dumps(answer) + "\n")
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tid_core.importing", description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--from", dest="source", choices=["mmdetection"], required=True)
    parser.add_argument("--style", choices=["pytorch", "caffe"])
    parser.add_argument("--detector")
    parser.add_argument("--classes", type=json.loads, help="a JSON list of names")
    parser.add_argument("-o", "--out", type=Path, required=True)
    return parser


def _write(imported: Imported, source: Path, out: Path) -> dict[str, Any]:
    """Write the file as `{file: ...}` weights take it; the summary."""
    detector, info = imported.detector, imported.detector.info
    metadata = {"format": "pt", "detector": info.name, "classes": "\n".join(imported.classes)}
    metadata["imported"] = f"{source.name} (mmdetection, style {imported.style})"
    replace_file(out, safetensors_file(plain_state(detector), metadata))
    return {
        "out": str(out),
        "detector": info.name,
        "style": imported.style,
        "classes": imported.classes,
        "parameters": sum(value.numel() for value in detector.parameters()),
        "notes": imported.notes,
    }


if __name__ == "__main__":
    sys.exit(main())
