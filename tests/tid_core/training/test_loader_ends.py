"""A run leaves no loader process behind, however it ends."""

import multiprocessing

import pytest


def children() -> set[int | None]:
    return {child.pid for child in multiprocessing.active_children()}


@pytest.mark.parametrize("stop_after", [1, None])
def test_a_run_ends_its_loader_processes(make_plan, run, stop_after):
    before = children()
    plan = make_plan(plain=True, data={"workers": 1}, training={"epochs": 2})
    finished = run(plan, stop_after=stop_after).finished
    assert finished.outcome == ("succeeded" if stop_after is None else "stopped")
    assert children() == before


def test_a_bad_image_in_a_loader_process_fails_the_run_by_name_and_ends_it(make_plan, run, dataset, tmp_path):
    folder = tmp_path / "train"
    folder.mkdir()
    for image in sorted((dataset / "train").iterdir())[1:]:
        (folder / image.name).symlink_to(image)
    before = children()
    plan = make_plan(plain=True, data={"workers": 1})
    plan = plan.model_copy(update={"train": plan.train.model_copy(update={"images": folder})})
    finished = run(plan).finished
    assert (finished.outcome, finished.reason) == ("failed", "dataset_invalid")
    assert "no such file" in finished.detail
    assert children() == before


def test_workers_change_nothing(make_plan, run):
    options = {"plain": True, "training": {"epochs": 2, "log_every_steps": 1}}
    alone = run(make_plan(out="alone", **options)).series["loss/total"]
    helped = run(make_plan(out="helped", data={"workers": 2}, **options)).series["loss/total"]
    assert len(alone) == 12
    assert helped == alone
