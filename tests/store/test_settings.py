"""Settings come from TID_* variables, and a bad one is named."""

from pathlib import Path

import pytest

from store.settings import Settings, SettingsError, load_settings


@pytest.fixture(autouse=True)
def bare(monkeypatch, tmp_path):
    for name in Settings.model_fields:
        monkeypatch.delenv(f"TID_{name.upper()}", raising=False)
    monkeypatch.setenv("TID_HOME", str(tmp_path))


def test_what_is_not_set_lies_under_home(tmp_path):
    settings = load_settings()
    assert settings.database_url == f"sqlite:///{tmp_path}/tid.db"
    assert (settings.artifacts, settings.data_roots) == (tmp_path / "artifacts", (tmp_path / "data",))
    assert Settings(home=tmp_path / "other").artifacts == tmp_path / "other" / "artifacts"


def test_values_are_read_as_they_are_meant(monkeypatch):
    monkeypatch.setenv("TID_DATA_ROOTS", "/data:/more")
    monkeypatch.setenv("TID_DATABASE_URL", "postgres://tid:p%40ss@db/tid")
    monkeypatch.setenv("TID_PORT", "")
    settings = load_settings()
    assert settings.data_roots == (Path("/data"), Path("/more"))
    assert settings.database_url == "postgresql+psycopg://tid:p%40ss@db/tid"
    assert settings.port == Settings.model_fields["port"].default
    assert "p%40ss" not in repr(settings)


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("TID_PORT", "http", "TID_PORT: .*'http'"),
        ("TID_LEASE_SECONDS", "3", "TID_LEASE_SECONDS .*at least twice TID_HEARTBEAT_SECONDS"),
        ("TID_REAPER_SECONDS", "0", "TID_REAPER_SECONDS: .*greater than 0"),
        (
            "TID_DATABASE_URL",
            "mysql://u:secret@h/d",
            "TID_DATABASE_URL: 'mysql' is not .* sqlite and postgresql",
        ),
        ("TID_DATABASE_URL", "tid.db", "TID_DATABASE_URL: not a database URL; write sqlite:///FILE"),
    ],
)
def test_a_bad_value_is_named_with_what_would_be_right(monkeypatch, name, value, says):
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match=says) as caught:
        load_settings()
    assert "secret" not in str(caught.value)


def test_a_home_that_is_nobody_s_is_told(monkeypatch):
    for name in ("TID_HOME", "TID_DATA_ROOTS"):
        with monkeypatch.context() as patch:
            patch.setenv(name, "~nobody-of-this-name/x")
            with pytest.raises(SettingsError, match=f"{name}: ~nobody-of-this-name is nobody's home here"):
                load_settings()


def test_secrets_come_from_files_and_variables_win(monkeypatch, tmp_path):
    files = {"tid_database_url": "postgresql://tid:s@db/tid\n", "tid_broker_url": "", "TID_PORT": "1", "other": "x"}
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    monkeypatch.setenv("TID_SECRETS_DIR", str(tmp_path))
    settings = load_settings()
    assert (settings.database_url, settings.port) == ("postgresql+psycopg://tid:s@db/tid", 1)
    assert settings.broker_url == Settings.model_fields["broker_url"].default
    monkeypatch.setenv("TID_PORT", "2")
    assert load_settings().port == 2


def test_secrets_that_cannot_be_read_are_told(monkeypatch, tmp_path):
    monkeypatch.setenv("TID_SECRETS_DIR", str(tmp_path / "none"))
    with pytest.raises(SettingsError, match=r"TID_SECRETS_DIR: .*/none cannot be read: No such file"):
        load_settings()
    monkeypatch.setenv("TID_SECRETS_DIR", str(tmp_path))
    file = tmp_path / "tid_database_url"
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(SettingsError, match="TID_SECRETS_DIR: a file in it is not text"):
        load_settings()
    file.write_text("mysql://u:secret@h/d")
    with pytest.raises(SettingsError, match="TID_DATABASE_URL: 'mysql' is not") as caught:
        load_settings()
    assert "secret" not in str(caught.value)
    file.unlink()
    file.mkdir()  # what Docker makes where the file to mount is missing
    with pytest.raises(SettingsError, match=r"TID_SECRETS_DIR: .*/tid_database_url cannot be read: Is a directory"):
        load_settings()
