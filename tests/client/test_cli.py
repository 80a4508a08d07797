"""The command line as people meet it: what it prints, how it ends."""

import secrets
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from client import console
from client.machine import free_port
from store import claims, metrics
from store.metrics import Point
from store.states import Outcome


@pytest.fixture
def spec_file(spec, tmp_path) -> Path:
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump({**spec, "name": f"cli-{secrets.token_hex(4)}"}))
    return path


def finished_job(client, spec, database, *, outcome: Outcome, **how: str) -> str:
    job_id = client.submit(spec).id
    with database.write() as session:
        claim = claims.claim(job_id, "tester", lease_seconds=600, session=session)
        claims.mark_started(claim, resumed_from_step=0, total_steps=20, epochs=2, session=session)
        points = [
            Point(name, step, step // 10, 0.1 * step) for step in range(1, 21) for name in ("loss/total", "val/AP")
        ]
        metrics.record(claim, points, session=session)
        claims.finish(claim, outcome, session=session, **how)
    return job_id


def test_help_is_quick_to_import() -> None:
    slow = "{'httpx', 'torch', 'pydantic', 'matplotlib', 'fastapi', 'sqlalchemy', 'rich.console'}"
    code = f"import sys, client.cli; print(sorted({slow} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_whole_life_of_a_job_on_the_command_line(tid, spec_file, tmp_path) -> None:
    assert "is fine (checked by the server)" in tid("check", spec_file).out
    submitted = tid("submit", spec_file)
    job_id = submitted.out.split()[0]
    name = yaml.safe_load(spec_file.read_text())["name"]
    listed = next(line for line in tid("jobs", "--state", "queued").out.splitlines() if job_id in line)
    assert name in listed
    shown = tid("show", job_id[:9])
    assert shown.code == 0
    assert name in shown.out
    again = tmp_path / "resolved.yaml"
    again.write_text(tid("show", name, "--spec").out)
    assert tid("check", again).code == 0, "what `show --spec` prints is a spec again"
    assert "cancelled" in tid("cancel", name).out
    watched = tid("watch", job_id)
    assert watched.code == 1
    assert "cancelled" in watched.err


def test_metrics_as_table_and_as_csv(tid, client, spec, database) -> None:
    job_id = finished_job(client, spec, database, outcome=Outcome.SUCCEEDED)
    table = tid("metrics", job_id).out
    assert "loss/total" in table
    assert "▁" in table
    assert "█" in table
    csv = tid("metrics", job_id, "loss/total", "--csv").out.splitlines()
    assert len(csv) == 21
    assert not any("val/AP" in line for line in csv)


def test_show_tells_the_cost(tid, client, spec, database) -> None:
    job_id = client.submit(spec).id
    assert "cost" not in tid("show", job_id).out, "nothing has been spent yet"
    with database.write() as session:
        claim = claims.claim(job_id, "tester", lease_seconds=600, session=session)
        told = {"throughput/images_per_second": 31.5, "time/teacher_share": 0.25, "memory/peak_bytes": 2.0**30}
        metrics.record(claim, [Point(name, 1, 1, value) for name, value in told.items()], session=session)
    (line,) = [line for line in tid("show", job_id).out.splitlines() if line.strip().startswith("cost")]
    assert line.endswith("31.5 images/s, teacher 25% of a step, peak memory 1.0 GiB")


def test_watch_ends_with_what_to_do_next(tid, client, spec, database) -> None:
    job_id = finished_job(client, spec, database, outcome=Outcome.SUCCEEDED)
    watched = tid("watch", job_id)
    assert watched.code == 0
    assert f"tid download {job_id}" in watched.out
    assert "\x1b" not in watched.out, "plain lines where there is no terminal"


def test_a_failed_job_says_why(tid, client, spec, database) -> None:
    why = {"reason": "non_finite_loss", "detail": "loss/bbox_regression is nan at step 17"}
    job_id = finished_job(client, spec, database, outcome=Outcome.FAILED, **why)
    watched = tid("watch", job_id)
    assert watched.code == 1
    assert "non_finite_loss" in watched.err
    assert "step 17" in watched.err
    assert "non_finite_loss" in tid("show", job_id).out


@pytest.mark.parametrize("where", ["here", "server"])
def test_check_lists_every_problem(tid, spec_file, where: str) -> None:
    wrong = {**yaml.safe_load(spec_file.read_text()), "method": "none", "training": {"epochs": 0}, "datset": "digits"}
    spec_file.write_text(yaml.safe_dump(wrong))
    checked = tid("check", spec_file, *(["--local"] if where == "here" else []))
    assert checked.code == 1
    assert "/training/epochs" in checked.err
    assert "/datset" in checked.err
    assert "Traceback" not in checked.err


def test_check_without_a_server_looks_at_the_pair(tid, spec_file, server) -> None:
    document = yaml.safe_load(spec_file.read_text())
    document["dataset"] = str(server.data)
    document["student"]["detector"] = "fcos_conv6_tiny"
    spec_file.write_text(yaml.safe_dump(document))
    checked = tid("check", spec_file, "--local")
    assert checked.code == 1
    assert "/student/detector" in checked.err
    assert "fcos_conv5_tiny" in checked.err, "what would be right is said too"


@pytest.mark.parametrize("content", ["a: [", "- 1\n- 2\n", "a: " + "[" * 3000, "when: 2024-13-45", None])
def test_a_file_that_is_no_spec(tid, tmp_path, content: str | None) -> None:
    path = tmp_path / "job.yaml"
    if content is not None:
        path.write_text(content)
    checked = tid("submit", path)
    assert checked.code == 1
    assert str(path) in checked.err
    assert "Traceback" not in checked.err


@pytest.mark.parametrize(
    ("line", "field"),
    [
        ("name: 2024-01-01", "/name"),
        ('name: "\\ud800"', "/name"),
        ("training: {lr: .nan}", "/training/lr"),
        ("name: &loop [*loop]", "/name"),
        ("name: !!binary aGVsbG8=", "no form for"),
    ],
)
def test_what_yaml_knows_and_json_does_not_is_told_by_its_field(tid, spec_file, line: str, field: str) -> None:
    kept = yaml.safe_load(spec_file.read_text())
    kept.pop(line.partition(":")[0], None)
    spec_file.write_text(f"{yaml.safe_dump(kept)}\n{line}\n")
    for command in ("submit", "check"):
        refused = tid(command, spec_file)
        assert refused.code == 1
        assert field in refused.err


def test_an_id_stays_whole_on_a_narrow_screen(tid, client, spec, monkeypatch) -> None:
    job_id = client.submit({**spec, "name": "narrow " * 8}).id
    monkeypatch.setenv("COLUMNS", "80")
    assert job_id in tid("jobs").out


def test_a_state_stays_whole_on_a_narrow_screen_and_a_wide_one_has_the_student(tid, client, spec, monkeypatch) -> None:
    job_id = client.submit({**spec, "name": "narrow " * 8}).id
    client.cancel(job_id)
    monkeypatch.setenv("COLUMNS", "80")
    narrow = tid("jobs", "--state", "cancelled").out
    assert any(job_id in line and "cancelled" in line for line in narrow.splitlines())
    assert max(map(len, narrow.splitlines())) <= 80
    monkeypatch.setenv("COLUMNS", "160")
    console.out.cache_clear()
    assert client.job(job_id).student_detector in tid("jobs", "--state", "cancelled").out


def test_a_folder_that_cannot_be_written_is_one_line(tid, client, spec, tmp_path) -> None:
    (tmp_path / "file").touch()
    ran = tid("demo-data", tmp_path / "file" / "folder", "--images", 1)
    assert ran.code == 1
    assert ran.err.startswith("error: ")
    assert "Not a directory" in ran.err


def test_no_server_is_one_line_and_an_exit_code_of_its_own(tid) -> None:
    ran = tid("--url", f"http://127.0.0.1:{free_port('127.0.0.1', 0)}", "jobs")
    assert ran.code == 3
    assert len(ran.err.strip().splitlines()) == 1
    assert "tid up" in ran.err


def test_a_job_that_is_not_there(tid) -> None:
    ran = tid("show", "no-such-job")
    assert ran.code == 1
    assert "no-such-job" in ran.err
    assert "../detectors" in tid("show", "../detectors").err, "an id is no path"
    assert "no job fits" in tid("jobs", "--search", "no-such-job").out
    assert tid("show").code == 2


def test_recipes(tid, tmp_path) -> None:
    listed = tid("recipes").out
    assert all(name in listed for name in ("coco_1x", "voc_1x", "small_data", "cpu_smoke"))
    shown = tid("recipes", "coco_1x")
    assert yaml.safe_load(shown.out)["training"]["lr_scaling"] == {"lr": 0.01, "images": 16, "rule": "linear"}
    nobody = f"http://127.0.0.1:{free_port('127.0.0.1', 0)}"
    assert tid("recipes", "coco_1x", "--url", nobody).code == 3
    unknown = tid("recipes", "coco_3x")
    assert unknown.code == 1
    assert "voc_1x" in unknown.err


def test_a_job_by_its_recipe(tid, tmp_path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text("recipe: cpu_smoke\ndataset: digits\n")
    assert "is fine" in tid("check", path).out
    assert tid("submit", path).code == 0
    path.write_text("recipe: cpu_smok\ndataset: digits\nstudent: {detector: fcos_conv5_tiny}\n")
    for options in ((), ("--local",)):
        refused = tid("check", path, *options)
        assert refused.code == 1
        assert "/recipe" in refused.err
        assert "cpu_smoke" in refused.err


def test_download_refuses_to_replace_a_file(tid, client, spec, tmp_path) -> None:
    job_id = client.submit(spec).id
    target = tmp_path / "student.safetensors"
    target.write_bytes(b"mine")
    assert tid("download", job_id, "--out", target).code == 1
    assert target.read_bytes() == b"mine"


def test_demo_data_is_the_same_for_the_same_seed(tid, tmp_path) -> None:
    for folder in ("one", "two"):
        assert tid("demo-data", tmp_path / folder, "--images", 4, "--seed", 5).code == 0
    assert (tmp_path / "one/train.json").read_bytes() == (tmp_path / "two/train.json").read_bytes()


def test_version(tid) -> None:
    assert tid("--version").out.startswith("tid ")


def test_demo_keeps_away_from_a_folder_that_is_in_use(tid, tmp_path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    ran = tid("demo", "--out", tmp_path, "--quick")
    assert ran.code == 1
    assert "--force" in ran.err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_train_checks_the_spec_before_it_starts(tid, spec_file, tmp_path) -> None:
    document = {**yaml.safe_load(spec_file.read_text()), "training": {"epochs": 0}}
    spec_file.write_text(yaml.safe_dump(document))
    ran = tid("train", spec_file, "--out", tmp_path / "out")
    assert ran.code == 1
    assert "/training/epochs" in ran.err
    assert not (tmp_path / "out").exists()
