"""TID_ARTIFACTS and TID_S3_*: what they mean, and what is said of those that cannot be used."""

from pathlib import Path
from typing import Any

import pytest

from store.artifacts import open_artifacts
from store.places import S3Place
from store.settings import Settings, SettingsError, load_settings


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(f"TID_{name.upper()}", raising=False)
    monkeypatch.setenv("TID_HOME", str(tmp_path))


@pytest.mark.parametrize(
    ("value", "place"),
    [
        ("s3://bucket", S3Place("bucket")),
        ("s3://my.bucket/a//b/", S3Place("my.bucket", "a/b")),
        ("/srv/artifacts", Path("/srv/artifacts")),
        ("s3", Path.cwd() / "s3"),
    ],
)
def test_a_folder_or_a_bucket(monkeypatch: pytest.MonkeyPatch, value: str, place: Path | S3Place) -> None:
    monkeypatch.setenv("TID_ARTIFACTS", value)
    assert load_settings().artifacts == place
    assert Settings(artifacts=place).artifacts == place


@pytest.mark.parametrize(
    ("variables", "says"),
    [
        (
            {"TID_ARTIFACTS": "gs://bucket/x"},
            "TID_ARTIFACTS: gs: is unknown here; write a folder's path or s3://BUCKET",
        ),
        ({"TID_ARTIFACTS": "s3:/bucket/x"}, "TID_ARTIFACTS: s3: is unknown here"),
        (
            {"TID_ARTIFACTS": "s3://KEY:hush@bucket/x"},
            "TID_ARTIFACTS: not the name of a bucket; write s3://BUCKET/PREFIX",
        ),
        ({"TID_ARTIFACTS": "s3://bucket/a b"}, "TID_ARTIFACTS: not a prefix"),
        ({"TID_ARTIFACTS": "s3://bucket/../x"}, "TID_ARTIFACTS: not a prefix"),
        ({"TID_S3_ENDPOINT": "localhost:8333"}, "TID_S3_ENDPOINT: not the URL of a server; write http://HOST:PORT"),
        (
            {"TID_S3_ENDPOINT": "https://key:hush@host"},
            "TID_S3_ENDPOINT: has more in it than a server; .*ACCESS_KEY_ID",
        ),
        ({"TID_S3_PUBLIC_ENDPOINT": "https://host/bucket"}, "TID_S3_PUBLIC_ENDPOINT: has more in it than a server"),
        ({"TID_S3_ENDPOINT": "http://host:http"}, "TID_S3_ENDPOINT: not the URL of a server"),
        ({"TID_S3_SECRET_ACCESS_KEY": "hush"}, "TID_S3_SECRET_ACCESS_KEY is set and TID_S3_ACCESS_KEY_ID is not"),
        ({"TID_S3_ACCESS_KEY_ID": "key"}, "TID_S3_ACCESS_KEY_ID is set and TID_S3_SECRET_ACCESS_KEY is not"),
    ],
)
def test_what_cannot_be_used_is_named_without_its_secrets(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], says: str
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match=says) as caught:
        load_settings()
    assert "hush" not in str(caught.value)


def test_aws_s_own_variables_fill_what_is_empty_and_no_more(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, s3_server: Any
) -> None:
    """Those of another account, which lie about for another program, do no harm beside TID_S3_*."""
    ours, place = s3_server.settings(tmp_path, "aws"), s3_server.place("aws")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "of-another-account")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hush")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "hush")
    open_artifacts(ours).check()

    monkeypatch.delenv("AWS_SESSION_TOKEN")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", ours.s3_endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ours.s3_access_key_id)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", ours.s3_secret_access_key.get_secret_value())
    open_artifacts(Settings(home=tmp_path, artifacts=place)).check()
