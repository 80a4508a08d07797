"""A few steps of a job on this machine, as a process of its own.

    python -m tid_core.measure SPEC.yaml --out DIR --parent-pid P [--dataset DIR] [--steps N]

DIR takes all that it writes; what it found out is left in DIR/measurement.json (tid_core.measurement). Stdout and
stderr are the log. Exit codes: 0 measured, 1 not.
"""

import argparse
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from tid_core.lifetime import ParentGone, die_with_parent
from tid_core.measurement import ANSWER, Measurement, Refusal

# torch is imported only once the process is sure to die with its parent.


def main(argv: Sequence[str] | None = None) -> int:
    arguments = _arguments(argv)
    try:
        die_with_parent(arguments.parent_pid)
    except ParentGone:
        return 1
    try:
        answer = _measure(arguments)
    except Exception as error:
        traceback.print_exc()
        answer = Refusal(reason="internal_error", detail=f"{type(error).__name__}: {str(error)[:500]}")
    (arguments.out / ANSWER).write_text(answer.model_dump_json())
    return 0 if answer.ok else 1


def _measure(arguments: argparse.Namespace) -> Measurement | Refusal:
    from tid_core.data.options import read_options
    from tid_core.training.guards import as_failure
    from tid_core.training.measuring import measure
    from tid_core.training.standalone import PREPARATION_ERRORS, prepare, readable

    try:
        options = read_options(arguments.dataset_options)
        plans = prepare(arguments.file, arguments.out, arguments.dataset, options)
    except PREPARATION_ERRORS as error:
        return Refusal(reason=getattr(error, "reason", "job_unfit"), detail=readable(error))
    try:
        return measure(plans, steps=arguments.steps)
    except Exception as error:
        traceback.print_exc()
        failure = as_failure(error, plans["student"].spec)
        return Refusal(reason=failure.reason, detail=failure.detail)


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tid_core.measure", description="Measure a few steps of a job.")
    parser.add_argument("file", type=Path, help="a spec")
    parser.add_argument("--out", type=Path, required=True, help="folder for all that is written")
    parser.add_argument("--parent-pid", type=int, required=True, help="process to live and die with")
    parser.add_argument("--dataset", type=Path, help="folder of the dataset, instead of the spec's `dataset`")
    parser.add_argument("--dataset-options", default="{}", help='as JSON: {"format": "voc", "val_fraction": 0.2}')
    parser.add_argument("--steps", type=int, default=6, help="optimiser steps of each run, the first one included")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
