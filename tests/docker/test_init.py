"""docker/init.sh: what `docker compose up` needs, made once."""

import json
import re
import shutil
import stat
import subprocess
from pathlib import Path

import pytest
from sqlalchemy import make_url

from store import keys

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def site(tmp_path: Path) -> Path:
    (tmp_path / "docker").mkdir()
    for name in ("docker/init.sh", ".env.example"):
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def init(site: Path) -> str:
    return subprocess.run(["sh", "docker/init.sh"], cwd=site, check=True, capture_output=True, text=True).stdout


def content(site: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in (site / "docker/secrets").iterdir()}


def test_secrets_fit_together_and_are_for_this_account_alone(site: Path) -> None:
    init(site)
    found = content(site)
    url = make_url(found["tid_database_url"].strip())
    assert (url.host, url.password) == ("postgres", found["postgres_password"])
    assert found["tid_broker_url"] == f"redis://:{found['valkey_auth'].split()[1]}@valkey:6379/0\n"
    (identity,) = json.loads(found["s3.json"])["identities"]
    given = {"accessKey": found["tid_s3_access_key_id"], "secretKey": found["tid_s3_secret_access_key"]}
    assert identity["credentials"] == [given]
    assert {action.partition(":")[2] for action in identity["actions"]} == {"tid-artifacts"}
    for name in ("tid_admin_key", "tid_prometheus_key"):
        assert keys.id_of(found[name].strip()), name
    assert len(set(re.findall(r"[0-9a-f]{64}", " ".join(found.values())))) == 5, "each secret is another one"
    folder = site / "docker/secrets"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    # Containers of other accounts read them, each mounted by itself.
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o444}
    assert stat.S_IMODE((site / ".env").stat().st_mode) == 0o600


def test_what_is_there_stays(site: Path) -> None:
    init(site)
    (site / ".env").write_text("PUBLISH=0.0.0.0:80\nDEMO_UID=5\n")
    before = content(site)
    (site / "docker/secrets/tid_admin_key").unlink()
    told = init(site)
    assert "made docker/secrets/tid_admin_key\n" in told
    assert told.count("made ") == 1
    after = content(site)
    assert before.pop("tid_admin_key") != after.pop("tid_admin_key")
    assert before == after
    assert (site / ".env").read_text() == "PUBLISH=0.0.0.0:80\nDEMO_UID=5\n"
