"""The training as one call: what goes wrong in it comes back as a reason, not as an exception."""

import sys
import traceback
from collections.abc import Callable

from tid_core.events import Finished, Reporter, TrainingFailure
from tid_core.plan import RunPlan
from tid_core.ranks import any_rank
from tid_core.training.guards import as_failure
from tid_core.training.precision import choose_precision, numerics
from tid_core.training.trainer import Trainer


def train(plan: RunPlan, reporter: Reporter, should_stop: Callable[[], bool]) -> Finished:
    """Run `plan` to its end, or until `should_stop()`; the result is also the last event.

    `should_stop` is asked after every optimiser step and every batch of an evaluation. A stopped run has saved a
    resume state from which it continues exactly. Where several ranks train together, each calls this; they stop when
    one of them is asked to, and none comes back before all are done.
    """
    try:
        precision = choose_precision(plan.spec.training, gpus=plan.spec.resources.gpus)
        with numerics(plan.spec.training, precision.device):
            finished = Trainer(plan, precision, reporter, lambda: any_rank(should_stop())).run()
            any_rank(False)  # wait: the first rank may still be writing
    except Exception as error:
        failure = as_failure(error, plan.spec)
        if not isinstance(error, TrainingFailure):
            traceback.print_exc()
        sys.stderr.write(f"failed: {failure}\n")
        finished = Finished(outcome="failed", reason=failure.reason, detail=failure.detail)
    reporter(finished)
    return finished
