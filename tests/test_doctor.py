"""`tid doctor`, for real, on a machine with much that is wrong."""

import os
import re
import socket
import subprocess
import sys
from pathlib import Path


def test_everything_that_is_wrong_is_told_with_its_remedy(tmp_path: Path) -> None:
    home = tmp_path / "home"
    (tmp_path / "file").touch()
    variables = {
        "COLUMNS": "250",
        "TID_DATABASE_URL": "postgresql://u:hunter2@127.0.0.1:1/tid",
        "TID_BROKER_URL": f"redis+socket://:hunter2@{tmp_path}/nobody.sock",
        "TID_DATA_ROTS": str(tmp_path),
        "TID_ARTIFACTS": str(tmp_path / "file" / "artifacts"),
        "TID_GPUS": "7",
        "CUDA_VISIBLE_DEVICES": "",
    }
    command = [sys.executable, "-m", "client.cli", "doctor", "--home", str(home)]
    with socket.create_server(("127.0.0.1", 0)) as taken:
        environment = {**os.environ, **variables, "TID_PORT": str(taken.getsockname()[1])}
        ran = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert ran.returncode == 1, ran.stderr
    states = dict(re.findall(r"^ ?(\S+(?: \S+)*?)  +(ok|warn|fail)  ", ran.stdout, re.MULTILINE))
    expected = {
        "tid": "ok", "settings": "warn", "database": "fail", "broker": "fail", "artifacts": "fail", "uploads": "ok",
        "port": "warn", "TID_GPUS": "warn",
    }  # fmt: skip
    assert expected == {name: states.get(name) for name in expected}, ran.stdout
    settings = ("TID_BROKER_URL", "TID_ARTIFACTS", "TID_PORT")
    for remedy in ("TID_DATA_ROOTS is one", "start the database", "unset it", *settings):
        assert remedy in ran.stdout
    for place in (home / "uploads", f"redis+socket://:***@{tmp_path}/nobody.sock: "):
        assert str(place) in ran.stdout
    assert "hunter2" not in ran.stdout + ran.stderr
    assert not home.exists()
