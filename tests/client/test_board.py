"""What is printed where there is no terminal to redraw."""

import io

from rich.console import Console

from client.board import Board, fraction


def test_a_line_when_something_changed_and_none_when_nothing_did(client, spec) -> None:
    job = client.submit(spec)
    printed = io.StringIO()
    with Board(Console(file=printed, width=100), lines_every=3600) as board:
        for update in ({"state": "queued"}, {"state": "queued"}, {"state": "running"}, {"best_ap": 0.5}):
            job = job.model_copy(update=update)
            board.update("student", job)
        for step in range(100):
            moved = job.progress.model_copy(update={"step": step, "total_steps": 100})
            board.update("student", job.model_copy(update={"progress": moved}))
    lines = printed.getvalue().splitlines()
    assert [line.split()[2] for line in lines] == ["queued", "running", "running"]
    assert "AP 50.0" in lines[-1]


def test_how_much_of_a_job_is_done(client, spec) -> None:
    job = client.submit(spec)
    assert fraction(job) == 0.0
    half = job.progress.model_copy(update={"step": 5, "total_steps": 10})
    assert fraction(job.model_copy(update={"progress": half})) == 0.5
    assert fraction(job.model_copy(update={"state": "succeeded"})) == 1.0
