"""Interrupted anywhere and continued equals uninterrupted, bit for bit; the killed process is a real one."""

import random
import signal
from pathlib import Path

from tid_core.events import Event
from tid_core.training.files import sha256_of
from tid_core.training.resume import find_state

# Everything with a state of its own: momentum, average, accumulation, random sizes, colours and zooms.
DEMANDING = {
    "data": {"min_size": [48, 64], "photometric": 0.5, "scale_jitter": (0.8, 1.2)},
    "training": {
        "epochs": 3,
        "accumulate": 2,
        "ema": True,
        "schedule": "cosine",
        "save_every_steps": 2,
        "log_every_steps": 1,
    },
}
FILES = ("last.safetensors", "best.safetensors", "last.pt")


def digests(folder: Path) -> dict[str, str]:
    return {name: sha256_of(folder / "checkpoints" / name) for name in FILES}


def merged(attempts: list[list[Event]]) -> dict[str, dict[int, float]]:
    """The series of a run in several attempts: what an attempt said after the next one's start is superseded."""
    series: dict[str, dict[int, float]] = {}
    for events in attempts:
        resumed = [event.resumed_from_step for event in events if event.type == "started"]
        for points in series.values():
            for step in [step for step in points if resumed and step > resumed[0]]:
                del points[step]
        for event in events:
            if event.type == "metrics":
                for name, value in event.values.items():
                    series.setdefault(name, {})[event.step] = value
    return exact(series)


def exact(series: dict[str, dict[int, float]]) -> dict[str, dict[int, float]]:
    """Without what the machine's other work changes."""
    return {name: points for name, points in series.items() if not name.startswith(("throughput/", "time/", "memory/"))}


def at_step(step: int):
    return lambda event: event.type == "metrics" and event.step == step and "lr" in event.values


def test_a_run_killed_again_and_again_ends_in_the_same_student(make_plan, run, start_process):
    whole = run(make_plan(out="whole", **DEMANDING))
    assert whole.finished.outcome == "succeeded", whole.finished

    draw = random.Random()
    in_first, in_third = draw.randint(3, 5), draw.randint(13, 15)
    interruptions = [
        (at_step(in_first), signal.SIGKILL),  # in the middle of an epoch
        (lambda event: event.type == "resume_state" and event.step == 12, signal.SIGKILL),  # between two epochs
        (at_step(in_third), signal.SIGTERM),
    ]
    plan = make_plan(out="broken", **DEMANDING)
    attempts = []
    for condition, number in interruptions:
        process = start_process(plan)
        code = process.end_when(condition, number)
        assert code == (75 if number == signal.SIGTERM else -signal.SIGKILL), process.log.read_text()
        attempts.append(process.events)
    # The disk, too, lost something: the newest state is cut short.
    newest = max((plan.out_dir / "resume").glob("step-*")) / "state.pt"
    newest.write_bytes(newest.read_bytes()[:-100])
    final = start_process(plan)
    assert final.wait() == 0, final.log.read_text()
    attempts.append(final.events)

    stopped_at = [event.step for event in attempts[2] if event.type == "resume_state"][-1]
    assert stopped_at >= in_third  # SIGTERM saved where it stopped
    resumed = [event.resumed_from_step for events in attempts for event in events if event.type == "started"]
    # A state is saved every two steps; a killed process may have come a little further than what was heard of it.
    assert resumed[0] == 0
    assert resumed[1] >= in_first - 2
    assert resumed[2] >= 12
    assert 12 <= resumed[3] < stopped_at  # the torn one was passed over
    assert "resume_state_damaged" in {event.code for event in final.events if event.type == "warning"}

    where = f"killed at steps {in_first} and {in_third}"
    assert digests(plan.out_dir) == digests(make_plan(out="whole").out_dir), where
    assert merged(attempts) == exact(whole.series), where


def test_a_run_stopped_again_and_again_goes_on_exactly(make_plan, run):
    """At the first question of the first attempt, the second of the second, and so on: evaluations, too, are left."""
    options = {**DEMANDING, "training": {**DEMANDING["training"], "epochs": 2, "save_every_steps": 0}}
    whole = run(make_plan(out="whole", **options))
    plan = make_plan(out="stopped", **options)
    attempts = []
    for questions in range(50):
        attempts.append(run(plan, stop_after=questions))
        if attempts[-1].finished.outcome != "stopped":
            break
        assert find_state(plan.out_dir / "resume").state is not None
    assert attempts[-1].finished.outcome == "succeeded"
    assert len(attempts) > 4
    assert digests(plan.out_dir) == digests(make_plan(out="whole").out_dir)
    assert whole.of("artifact")[0].path.read_bytes() == attempts[-1].of("artifact")[0].path.read_bytes()


def test_a_state_carries_all_that_another_machine_needs(make_plan, run, tmp_path):
    options = {"plain": True, "training": {"epochs": 1}}
    first = make_plan(out="here", **options)
    assert run(first).finished.outcome == "succeeded"
    moved = make_plan(out="there", **options).model_copy(update={"resume_from": first.out_dir / "resume/step-00000006"})
    done = run(moved)
    assert done.finished.outcome == "succeeded"
    assert [checkpoint.name for checkpoint in done.of("checkpoint")] == ["best"]
    best = "checkpoints/best.safetensors"
    assert sha256_of(moved.out_dir / best) == sha256_of(first.out_dir / best)
