"""Settings that contradict each other, or are seldom meant."""

from collections.abc import Iterator

from tid_core.preflight.problem import Problem, some
from tid_core.spec import JobSpec


def check_settings(spec: JobSpec) -> Iterator[Problem]:
    """Settings that are allowed and yet seldom meant."""
    short = max(spec.data.min_size)
    if spec.data.max_size < short:
        yield Problem(
            code="sizes_contradict",
            field="/data/max_size",
            detail=f"max_size {spec.data.max_size} is below min_size {short}, which then does nothing",
            expected=f"at least {short}",
            severity="warning",
        )
    jitter = spec.data.scale_jitter
    if jitter is not None and jitter[0] > jitter[1]:
        yield Problem(
            code="range_reversed",
            field="/data/scale_jitter",
            detail=f"scale_jitter runs from {jitter[0]:g} down to {jitter[1]:g}",
            expected=f"the smaller factor first: [{jitter[1]:g}, {jitter[0]:g}]",
        )
    yield from _maps(spec)
    yield from _teacher_cache(spec)
    yield from _distillation(spec)
    yield from _learning_rate(spec)
    yield from _gpus(spec)


def _teacher_cache(spec: JobSpec) -> Iterator[Problem]:
    """What a teacher said of an image is kept for images that it will see again."""
    if spec.teacher is None or not spec.teacher.cache:
        return
    data = spec.data
    moving = {
        "flip": (data.flip > 0, f"flip {data.flip:g} shows an image in two ways", "0"),
        "photometric": (data.photometric > 0, f"photometric {data.photometric:g} gives it new colours each time", "0"),
        "scale_jitter": (data.scale_jitter is not None, "scale_jitter zooms it anew each time", "null"),
        "min_size": (len(data.min_size) > 1, f"min_size has {len(data.min_size)} sizes", "one size"),
    }
    for name, (moves, detail, expected) in moving.items():
        if moves:
            yield Problem(
                code="cache_unfit",
                field=f"/data/{name}",
                detail=f"teacher.cache keeps the teacher's outputs of pixels that come again, but {detail}",
                expected=f"{expected}, or teacher.cache: false",
            )


def _gpus(spec: JobSpec) -> Iterator[Problem]:
    """Losses are averaged over the GPUs of all nodes, so each must get as many images as the others."""
    gpus, batch, accumulate = spec.resources.gpus, spec.training.batch_size, spec.training.accumulate
    who, nodes = f"{gpus} GPUs", spec.resources.nodes
    if nodes > 1:
        who = f"{nodes} nodes" if gpus <= 1 else f"{nodes} nodes of {gpus} GPUs"
        gpus = nodes * max(1, gpus)
    if gpus > 1 and batch % (gpus * accumulate):
        parts = f" in {accumulate} parts" if accumulate > 1 else ""
        yield Problem(
            code="batch_indivisible",
            field="/training/batch_size",
            detail=f"{who} cannot share a batch of {batch}{parts} evenly",
            expected=f"a multiple of {gpus * accumulate}, e.g. {-(-batch // (gpus * accumulate)) * gpus * accumulate}",
        )


def _maps(spec: JobSpec) -> Iterator[Problem]:
    wanted, epochs = spec.evaluation.map_epochs, spec.training.epochs
    beyond = [str(epoch) for epoch in wanted if epoch > epochs]
    if beyond:
        yield Problem(
            code="map_epochs_beyond_run",
            field="/evaluation/map_epochs",
            detail=f"the run has {epochs} epochs, so there is nothing to draw after {some(beyond)}",
            expected=f"epochs from 1 to {epochs}",
        )
    if wanted and (spec.teacher is None or spec.evaluation.maps == 0):
        why = "without a teacher there are no areas" if spec.teacher is None else "evaluation.maps is 0"
        yield Problem(
            code="maps_off",
            field="/evaluation/map_epochs",
            detail=f"no map will be drawn: {why}",
            expected="a teacher and at least one of evaluation.maps, or no map_epochs",
            severity="warning",
        )


def _distillation(spec: JobSpec) -> Iterator[Problem]:
    if spec.methods and spec.loss.distill == 0:
        yield Problem(
            code="distillation_off",
            field="/loss/distill",
            detail=f"method {spec.method_name} with loss.distill 0 is plain training with a teacher's cost",
            expected="a positive weight, or method: none",
        )
    for name in spec.methods:
        if getattr(spec, name).weight == 0:
            yield Problem(
                code="distillation_off",
                field=f"/{name}/weight",
                detail=f"{name}.weight is 0: the method costs its time and teaches nothing",
                expected=f"a positive weight, or method without {name}",
            )
    if "tid" in spec.methods and not (spec.loss.high or spec.loss.medium or spec.loss.low):
        yield Problem(
            code="distillation_off",
            field="/loss",
            detail="high, medium and low are all 0: nothing would be distilled",
            expected="a positive weight for at least one kind of area, or method: none",
        )


def _learning_rate(spec: JobSpec) -> Iterator[Problem]:
    if spec.training.optimizer == "adamw" and spec.training.lr > 0.003:
        yield Problem(
            code="lr_high",
            field="/training/lr",
            detail=f"AdamW at lr {spec.training.lr} usually diverges",
            expected="about 0.0001 to 0.001",
            severity="warning",
        )
    elif spec.training.optimizer == "sgd" and spec.training.lr > 0.01 * spec.training.batch_size / 4:
        yield Problem(
            code="lr_high",
            field="/training/lr",
            detail=f"SGD at lr {spec.training.lr} is far above 0.01 per 16 images, for batches of "
            f"{spec.training.batch_size}",
            expected=f"about {0.01 * spec.training.batch_size / 16:g}",
            severity="warning",
        )
