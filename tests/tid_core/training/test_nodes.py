"""Machines that train together train as one: here two addresses of loopback, each with a launcher of its own."""

import socket
from collections.abc import Callable
from typing import Any

import pytest
from safetensors.torch import load_file

from tests.tid_core.training.conftest import Outcome, read_series
from tid_core.events import Event
from tid_core.plan import NodePlan, RunPlan
from tid_core.spec import JobSpec
from tid_core.training import launcher
from tid_core.training.nodes import agree, interface_of

STEPS = {"epochs": 2, "log_every_steps": 1, "lr": 0.001}
COMMON: dict[str, Any] = {
    "student": {"detector": "fcos_conv5_tiny", "norm": "group"},
    "training": STEPS,
    "evaluation": {"batch_size": 2},
}
HOSTS = ("127.0.0.1", "127.0.0.2")


@pytest.fixture
def stopped_together(
    make_plan: Callable[..., RunPlan], start_process: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> Callable[[], Outcome]:
    """Node 0 in this process and node 1 in one of its own, until node 0 is asked to stop; what both said."""
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        monkeypatch.setenv(name, "lo")  # as the launcher sets it for its ranks

    def run() -> Outcome:
        listening = socket.socket()
        listening.bind((HOSTS[0], 0))
        place = {"count": 2, "host": HOSTS[0], "port": listening.getsockname()[1]}
        first, second = (
            make_plan(out=f"node-{n}", resources={"nodes": 2}, **COMMON).model_copy(
                update={"node": NodePlan(number=n, address=HOSTS[n], listen_fd=fd, **place)}
            )
            for n, fd in enumerate((listening.detach(), None))
        )
        other = start_process(second)
        events: list[Event] = []
        finished = launcher.run(first, events.append, lambda: any(event.type == "metrics" for event in events))
        assert other.wait() == 75
        assert [event.type for event in other.events] == ["finished"]
        return Outcome(finished, events, read_series(events))

    return run


def test_two_nodes_train_as_one_and_what_they_stopped_at_one_goes_on_with(make_plan, run, stopped_together):
    alone = run(make_plan(out="alone", **COMMON), trainer=launcher.run)
    both = stopped_together()
    assert (both.finished.outcome, both.finished.reason) == ("stopped", None)
    started = both.of("started")[0]
    assert (started.processes, started.device) == (2, "2 x cpu")
    rest = run(make_plan(out="node-0", resources={"nodes": 2}, **COMMON), trainer=launcher.run)
    assert "this run has one" in rest.warnings["one_node"]
    assert rest.of("started")[0].resumed_from_step == both.of("resume_state")[-1].step > 0
    assert alone.series.keys() == both.series.keys() | rest.series.keys()
    for name, points in alone.series.items():
        if name.startswith(("loss/", "distill/", "areas/", "lr")):
            found = both.series.get(name, {}) | rest.series[name]
            assert points == pytest.approx(found, rel=2e-6, abs=1e-6), name
    students = [load_file(each.of("checkpoint")[-1].files["safetensors"]) for each in (alone, rest)]
    for name, value in students[0].items():
        assert (value - students[1][name]).abs().max() < 1e-6, name


@pytest.mark.parametrize(
    ("gpus", "device", "on_nodes", "ranks", "on_cpu", "told"),
    [
        (2, "auto", [2, 4], 2, False, None),
        (4, "auto", [4, 2], 2, False, "the nodes have [4, 2], and the run uses 2 of each"),
        (4, "auto", [3, 3], 2, False, "2 of each"),  # three would not share the batch of 8 evenly
        (1, "auto", [1, 0], 1, True, "the run uses the CPUs"),
        (0, "auto", [1, 1], 1, True, None),
        (4, "cpu", [0, 0], 4, True, None),
        (2, "cuda", [2, 0], 1, False, "1 of each"),  # and says on that node what it lacks
    ],
)
def test_all_nodes_use_as_much_as_the_poorest_has(gpus, device, on_nodes, ranks, on_cpu, told):
    content = {"student": {"detector": "fcos_conv5_tiny"}, "dataset": "d", "resources": {"gpus": gpus, "nodes": 2}}
    spec = JobSpec.model_validate({**content, "training": {"batch_size": 8, "device": device}})
    agreed = agree(spec, on_nodes)
    assert (agreed.ranks, agreed.on_cpu) == (ranks, on_cpu)
    warning = agreed.fewer(spec)
    assert (warning is None) == (told is None)
    assert warning is None or told in warning.detail


def test_every_address_of_loopback_is_that_of_its_interface():
    assert interface_of("127.0.0.1") == interface_of("127.0.0.2") == "lo"
    assert interface_of("192.0.2.77") is None
