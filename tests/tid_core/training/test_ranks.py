"""A run in two processes is the run in one: same losses, same student, same evaluation."""

import pytest
from safetensors.torch import load_file

from tid_core.training import launcher

STEPS = {"epochs": 1, "log_every_steps": 1}
STUDENT = {"norm": "group"}  # BatchNorm looks at the images of one rank


@pytest.fixture
def launch(run):
    """Train as the worker and `tid train` do: in as many processes as the plan asks for."""

    def start(plan, **options):
        return run(plan, trainer=launcher.run, **options)

    return start


@pytest.mark.parametrize(
    "changes",
    [
        {"training": {**STEPS, "accumulate": 2}},
        {"student": {"detector": "retinanet_conv5_tiny", **STUDENT}, "plain": True},
    ],
)
def test_two_ranks_train_as_one_with_the_whole_batch(make_plan, launch, changes):
    changes = {"student": {"detector": "fcos_conv5_tiny", **STUDENT}, "training": STEPS, **changes}
    one, two = (launch(make_plan(out=f"{n}", resources={"gpus": n}, **changes)) for n in (1, 2))
    for each in (one, two):
        assert each.finished.outcome == "succeeded", each.finished
    assert two.of("started")[0].device == "2 x cpu"
    assert one.series.keys() == two.series.keys()
    for name, points in one.series.items():
        if name.startswith(("loss/", "distill/", "areas/", "grad/", "lr")):
            assert points == pytest.approx(two.series[name], rel=1e-5, abs=1e-6), name
    students = [load_file(each.of("checkpoint")[0].files["safetensors"]) for each in (one, two)]
    for name, value in students[0].items():
        assert (value - students[1][name]).abs().max() < 1e-6, name
