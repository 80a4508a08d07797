"""API keys from the command line, and a server that wants them: real processes."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from api.gate import binding
from api.gate import keys as api_keys
from client import console
from client.cli import main
from client.client import Client
from client.credentials import BadKey, find_key
from client.embedded import Embedded
from client.errors import AnswerNotUnderstood, ApiError
from client.machine import free_port
from store import audit, keys
from store.db import Database
from store.settings import Settings

KEY = re.compile(r"tid_[0-9a-f]{12}_[0-9a-f]{64}")
Ran = Callable[..., Any]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TID_HOME", str(tmp_path / "home"))
    for name in ("TID_API_KEY", "TID_API_KEY_FILE"):  # and what `--key-file` sets goes with the test
        monkeypatch.setenv(name, "")
    return tmp_path / "home"


@pytest.fixture
def tid(home: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Ran:
    """Run the command; what the processes that it starts print is heard as well."""
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: object) -> Any:
        for make in (console.out, console.err):
            make.cache_clear()
        monkeypatch.setattr(sys, "argv", ["tid", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capfd.readouterr()
        return SimpleNamespace(code=int(ended.value.code or 0), out=printed.out, err=printed.err)

    return run


@pytest.fixture
def keys_command(home: Path, capfd: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """What `tid keys` runs, without a process of its own."""

    def run(*arguments: str) -> str:
        assert api_keys.main(arguments) == 0
        return capfd.readouterr().out

    return run


@pytest.fixture
def closed(home: Path) -> Iterator[Callable[..., str]]:
    """Starts a server on every address; gives its URL, or what it ended with."""
    started: list[subprocess.Popen[bytes]] = []

    def start() -> str:
        port = free_port("127.0.0.1", 0)
        environment = {**os.environ, "TID_HOST": "0.0.0.0", "TID_PORT": str(port)}
        environment["TID_BROKER_URL"] = f"redis+socket://{home}/nobody.sock"
        log = home.parent / "api.log"
        with log.open("wb") as output:
            process = subprocess.Popen([sys.executable, "-m", "api"], env=environment, stdout=output, stderr=output)
        started.append(process)
        while process.poll() is None:
            with suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                return f"http://127.0.0.1:{port}"
            time.sleep(0.1)
        return f"{process.returncode} {log.read_text()}"

    yield start
    for process in started:
        process.send_signal(signal.SIGTERM)
        process.wait(20)


def test_from_the_first_key_to_the_last(
    tid: Ran,
    home: Path,
    closed: Callable[[], str],
    monkeypatch: pytest.MonkeyPatch,
    keys_command: Callable[..., str],
) -> None:
    """The server does not listen beyond loopback until there is a key, and then answers to keys alone."""
    assert "no keys yet" in keys_command("list")
    refused = closed()
    assert refused.startswith("2 ")
    assert "tid keys create --name NAME --scope admin" in refused

    made = tid("keys", "create", "--name", "boss", "--scope", "admin", "--expires", "90d", "--max-queued", 3)
    assert made.code == 0, made.err
    boss = made.out.strip()
    assert KEY.fullmatch(boss)  # alone, so that `KEY=$(tid keys create ...)` works
    assert "shown this once" in made.err
    reader = keys_command("create", "--name", "reader", "--scope", "read").strip()

    url = closed()
    monkeypatch.setenv("TID_URL", url)
    told = tid("jobs")
    assert told.code == 1
    assert "TID_API_KEY" in told.err
    monkeypatch.setenv("TID_API_KEY", reader)
    assert tid("jobs").code == 0
    forbidden = tid("audit")
    assert forbidden.code == 1
    assert "needs a key with the scope `admin`; the key 'reader' has `read`" in forbidden.err
    key_file = home.parent / "key"
    key_file.write_text(boss + "\n")
    audited = tid("--key-file", key_file, "audit")
    assert audited.code == 0, audited.err
    monkeypatch.setenv("TID_API_KEY", boss)
    large = httpx.get(f"{url}/healthz", headers={"X-Large": "x" * (40 << 10)})
    assert large.status_code in (400, 431)  # by the server where it comes in pieces, else by the application

    with Client(url) as client:
        known = client.keys()
        assert [one.name for one in known] == ["reader", "boss"]
        forged = {"Authorization": f"Bearer {boss}", "X-Forwarded-For": "192.0.2.7", "Forwarded": "for=192.0.2.7"}
        assert httpx.post(f"{url}/datasets", json={"name": "mine"}, headers=forged).status_code == 201
        assert next(client.audit(refused=False)).peer == "127.0.0.1"
        ci = client.create_key("ci", "write", max_jobs=1)
        assert KEY.fullmatch(ci.key)
        assert [(one.method, one.path, one.target) for one in client.audit(refused=False)] == [
            ("POST", "/keys", f"keys/{ci.id}"),
            ("POST", "/datasets", f"datasets/{client.dataset('mine').id}"),
            *[("CLI", "tid keys create", f"keys/{one.id}") for one in known],
        ]
        assert client.revoke_key(ci.id).revoked_at is not None
        with Client(url, api_key=ci.key) as gone, pytest.raises(ApiError, match="key_invalid"):
            list(gone.jobs())

    listed = tid("keys", "list").out
    assert re.search(r"boss +admin .* 3 +- +good", listed)
    assert re.search(r"ci +write .* revoked", listed)
    assert not KEY.search(listed)
    ids = re.findall(r"^([0-9a-f]{12}) +(?:boss|reader)", listed, re.MULTILINE)
    assert tid("keys", "revoke", ids[0]).code == 0
    assert "the last one" in keys_command("revoke", ids[1])
    deadline = time.monotonic() + 10  # the server takes two seconds to hear of it
    with httpx.Client(base_url=url) as http:
        while http.get("/jobs", headers={"Authorization": f"Bearer {boss}"}).status_code == 200:
            assert time.monotonic() < deadline
            time.sleep(0.2)
        assert http.get("/jobs").status_code == 401
    assert "tid keys create" in str(binding.refusal(Settings(home=home, host="0.0.0.0")))


def test_a_key_that_was_made_elsewhere(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As docker/init.sh makes one: any number of processes may bring it, and a revoked one is not let in again."""
    monkeypatch.setenv("TID_HOME", str(tmp_path))
    monkeypatch.setenv("TID_DATABASE_URL", database_url)
    file = tmp_path / "tid_admin_key"
    key = f"tid_0123456789ab_{'5e' * 32}"
    file.write_text(f"{key}\n")
    command = ["adopt", "--name", "boss", "--scope", "admin", "--file", str(file)]
    many = [subprocess.Popen([sys.executable, "-m", "api.gate.keys", *command], stdout=-1, text=True) for _ in range(2)]
    said = [process.communicate(timeout=60)[0] for process in many]
    assert sorted(said) == [
        "key 0123456789ab of 'boss', admin, is good from now on\n",
        "key 0123456789ab of 'boss', admin, was here already\n",
    ]
    assert binding.refusal(Settings(host="0.0.0.0")) is None
    database = Database(database_url)
    with database.read() as session:
        assert [(row.name, keys.fits(key, row.hash)) for row in keys.usable(session=session)] == [("boss", True)]
        assert [entry.path for entry in audit.page(session=session)] == ["tid keys adopt"]
    database.close()

    assert api_keys.main(["revoke", key]) == 0
    assert api_keys.main(command) == 0
    assert "was here already, and is revoked" in capsys.readouterr().out
    assert "tid keys create" in str(binding.refusal(Settings(host="0.0.0.0")))
    for content, told in ((key.replace("5e", "e5"), "another secret"), ("tid_1", "not an API key"), (None, "No such")):
        file.unlink(missing_ok=True)
        if content is not None:
            file.write_text(content)
        assert api_keys.main(command) == 1
        assert told in (error := capsys.readouterr().err)
        assert not KEY.search(error)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["create", "--name", "x", "--scope", "root"], "invalid choice"),
        (["create", "--name", "x", "--scope", "read", "--expires", "soon"], "write 12h, 90d or 52w"),
        (["create", "--name", "x", "--scope", "read", "--expires", "0d"], "write 12h, 90d or 52w"),
        (["create", "--name", "", "--scope", "read"], "1 to 120 characters"),
        (["revoke", "nobody"], "there is no key 'nobody'"),
    ],
)
def test_what_cannot_be_done_is_told(
    home: Path, arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with suppress(SystemExit):  # by argparse
        assert api_keys.main(arguments) == 1
    assert told in capsys.readouterr().err
    assert api_keys.main(["list"]) == 0
    assert "no keys yet" in capsys.readouterr().out


def test_everything_on_one_machine_goes_on_when_there_are_keys(tid: Ran, tmp_path: Path) -> None:
    """`tid up` asks its own server whether it is well; that needs no key."""
    home = tmp_path / "up"
    key = tid("keys", "create", "--name", "me", "--scope", "write", "--home", home).out.strip()
    with Embedded(home, port=0, workers=0) as embedded:
        with Client(embedded.url, api_key=key) as client:
            assert list(client.jobs()) == []
        with Client(embedded.url) as client, pytest.raises(ApiError, match="TID_API_KEY") as refused:
            list(client.jobs())
    assert refused.value.status == 401


def test_where_a_key_comes_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TID_API_KEY", raising=False)
    monkeypatch.delenv("TID_API_KEY_FILE", raising=False)
    assert find_key() is None
    (tmp_path / "key").write_text("from-file\n")
    monkeypatch.setenv("TID_API_KEY_FILE", str(tmp_path / "key"))
    assert find_key() == "from-file"
    monkeypatch.setenv("TID_API_KEY", "from-variable")
    assert find_key() == "from-variable"
    assert find_key("given") == "given"
    with pytest.raises(BadKey) as refused:
        find_key("two words")
    assert "two words" not in str(refused.value)
    monkeypatch.delenv("TID_API_KEY")
    monkeypatch.setenv("TID_API_KEY_FILE", str(tmp_path / "none"))
    with pytest.raises(BadKey, match="No such file"):
        find_key()


def test_the_key_is_not_sent_on_to_another_server() -> None:
    """Where a server redirects elsewhere."""
    import http.server
    import threading

    heard: list[str | None] = []

    class There(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            heard.append(self.headers.get("Authorization"))
            self.send_response(302 if self.path == "/jobs/x" else 200)
            self.send_header("Location", f"http://localhost:{self.server.server_address[1]}/else")  # type: ignore[misc]
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), There) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with (
            Client(f"http://127.0.0.1:{server.server_address[1]}", api_key="secret") as client,
            pytest.raises(AnswerNotUnderstood),
        ):
            client.job("x")
        server.shutdown()
    assert heard == ["Bearer secret", None]
