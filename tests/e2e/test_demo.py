"""`tid demo --quick`: every real part, from the demo data to the student's file."""

import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

TID = [sys.executable, "-m", "client.cli"]


def demo(out: Path, *options: str) -> "subprocess.CompletedProcess[str]":
    command = [*TID, "demo", "--out", str(out), "--quick", *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=540, check=False)


@pytest.mark.timeout(600)
def test_from_nothing_to_a_distilled_detector(tmp_path: Path) -> None:
    out = tmp_path / "tid-demo"
    ran = demo(out)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    for word in ("teacher", "baseline (student alone)", "student (taught by TID)", "AP50", "gain of distillation"):
        assert word in ran.stdout
    _check_files(out)
    _check_report(json.loads((out / "report.json").read_text()))
    _check_student(out)
    assert demo(out).returncode == 1, "an earlier demo is not overwritten unasked"


def _check_files(out: Path) -> None:
    for name in ("curves.png", "detections.png", *(f"maps/{path.name}" for path in (out / "maps").iterdir())):
        with Image.open(out / name) as image:
            image.load()
            assert min(image.size) > 200, name
            assert len(image.convert("L").getcolors(256) or ()) > 20, name
    assert list((out / "maps").glob("*.png"))


def _check_report(report: dict) -> None:
    (seed,) = report["seeds"]
    assert seed["complete"]
    assert seed["student"]["parameters"] == seed["baseline"]["parameters"] < seed["teacher"]["parameters"] / 3
    assert report["summary"]["gain"] == pytest.approx(seed["student"]["ap"] - seed["baseline"]["ap"])


def _check_student(out: Path) -> None:
    """The files are those that the card names, and nothing of ours is needed to read them."""
    card = json.loads((out / "model_card.json").read_text())
    digests = json.dumps(card)
    for name in ("student.safetensors", "student.pt"):
        assert hashlib.sha256((out / name).read_bytes()).hexdigest() in digests, name
    assert len(card["provenance"]["dataset_sha256"]) == 64
    code = f"""
import torch
from safetensors.torch import load_file
plain = torch.load({str(out / "student.pt")!r}, weights_only=True)
safe = load_file({str(out / "student.safetensors")!r})
assert plain.keys() == safe.keys() and all(torch.equal(plain[key], safe[key]) for key in plain)
assert any(value.ndim == 4 for value in plain.values())
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=out)


def test_ctrl_c_stops_everything(tmp_path: Path) -> None:
    out = tmp_path / "tid-demo"
    command = [*TID, "demo", "--out", str(out), "--quick"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        for line in process.stdout:
            if "epoch" in line:
                break
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "Traceback" not in err
    assert not _still_there(out)


def _still_there(out: Path) -> list[str]:
    """Command lines of living processes that name the folder."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue
            if str(out) in line:
                found.append(line)
    return found
