"""Datasets from the client's side: sent, waited for, shown, forgotten; also over a wire that breaks."""

import gzip
import json
import secrets
import shutil
import tarfile
from pathlib import Path

import httpx
import pytest

from client.client import Client
from client.datasets import UploadError
from client.errors import ApiError, DatasetInvalid
from tid_core.data.archive_readers import zstd


@pytest.fixture
def name() -> str:
    return f"set-{secrets.token_hex(4)}"


@pytest.fixture(scope="session")
def packed(server, tmp_path_factory) -> Path:
    """The demo data as an archive."""
    file = tmp_path_factory.mktemp("packed") / "digits.tar.gz"
    with tarfile.open(file, "w:gz") as archive:
        archive.add(server.data, "digits")
    return file


def test_an_archive_is_sent_and_waited_for(client, name, packed) -> None:
    sent, seen = [], []
    dataset = client.add_dataset(
        name,
        archive=packed,
        on_bytes=lambda done, total: sent.append((done, total)),
        on_progress=lambda dataset: seen.append(dataset.state),
    )
    size = packed.stat().st_size
    assert (dataset.state, dataset.source, dataset.bytes) == ("ready", "archive", size)
    assert dataset.sha256 == client.dataset("digits").sha256, "the same content, however it came"
    assert sent[-1] == (size, size)
    assert seen[-1] == "ready"
    assert client.dataset_sample(name)[:2] == b"\xff\xd8"
    client.delete_dataset(name)
    with pytest.raises(ApiError, match="dataset_not_found"):
        client.dataset(name)


def test_without_waiting_it_is_told_later(client, name, server) -> None:
    dataset = client.add_dataset(name, server.data, wait=False)
    assert dataset.state in ("validating", "ready")
    assert client.wait_for_dataset(name).state == "ready"


def test_what_the_server_finds_wrong_is_an_error_with_its_report(client, name, server, tmp_path) -> None:
    broken = server.home / "data" / name
    shutil.copytree(server.data, broken)
    (broken / "val.json").unlink()
    with pytest.raises(DatasetInvalid, match="split_missing") as caught:
        client.add_dataset(name, broken)
    assert f"tid datasets delete {name}" in str(caught.value)
    assert client.dataset(name).state == "invalid"
    client.delete_dataset(name)
    dataset = client.add_dataset(name, broken, val_fraction=0.3)
    assert dataset.splits["val"].images > 0


def test_a_wire_that_breaks_on_the_way_up_is_tried_again(cut_wire, name, packed) -> None:
    with cut_wire(sends=(20_000, 5_000)) as wire, Client(wire.url, backoff=0.01) as client:
        assert client.add_dataset(name, archive=packed).state == "ready"
        assert wire.connections >= 3


def test_a_lost_answer_does_not_send_twice(cut_wire, name, packed) -> None:
    with cut_wire() as plain:
        httpx.post(f"{plain.url}/datasets", json={"name": f"{name}-0"})
        answer = plain.answered
    sent = []
    with cut_wire(answer + 100) as wire, Client(wire.url, backoff=0.01) as client:
        dataset = client.add_dataset(name, archive=packed, on_bytes=lambda done, _total: sent.append(done))
        assert dataset.state == "ready"
    assert sent == sorted(sent), "from the beginning to the end once"


def test_a_wire_that_keeps_breaking_is_given_up_and_the_next_try_goes_on(cut_wire, client, name, packed) -> None:
    with (
        cut_wire(sends=(20_000,) * 50) as wire,
        Client(wire.url, backoff=0.01) as unlucky,
        pytest.raises(UploadError, match="could not be sent"),
    ):
        unlucky.add_dataset(name, archive=packed)
    assert client.dataset(name).state == "uploading"
    with pytest.raises(ApiError, match="name_taken"):
        client.add_dataset(name, archive=packed, val_fraction=0.5)  # other options: another dataset
    assert client.add_dataset(name, archive=packed).state == "ready"
    with pytest.raises(ApiError, match="name_taken"):
        client.add_dataset(name, archive=packed)


def test_an_archive_that_is_refused_leaves_no_name_behind(client, name, tmp_path) -> None:
    (tmp_path / "a.zip").write_bytes(b"no archive" * 100)
    with pytest.raises(ApiError, match="archive_unknown"):
        client.add_dataset(name, archive=tmp_path / "a.zip")
    with pytest.raises(ApiError, match="dataset_not_found"):
        client.dataset(name)
    with pytest.raises(UploadError, match=r"gone\.zip"):
        client.add_dataset(name, archive=tmp_path / "gone.zip")
    with pytest.raises(ValueError, match="either"):
        client.add_dataset(name)


def test_tid_sends_an_archive_and_shows_what_is_in_it(tid, name, packed, tmp_path) -> None:
    plain = tmp_path / "plain.tar.zst"
    plain.write_bytes(zstd.compress(gzip.decompress(packed.read_bytes())))
    added = tid("datasets", "add", name, plain)
    assert added.code == 0, added.err
    assert "sending" in added.out
    assert "train: 10 images" in added.out
    assert "█" in added.out
    assert "sha256 " in added.out
    assert "boxes by side" in added.out
    shown = tid("datasets", "show", name).out
    assert shown in added.out
    assert name in tid("datasets", "list").out
    picture = tmp_path / "sample.jpg"
    assert str(picture) in tid("datasets", "sample", name, "-o", picture).out
    assert picture.read_bytes()[:2] == b"\xff\xd8"
    assert tid("datasets", "delete", name).code == 0
    assert "dataset_not_found" in tid("datasets", "show", name).err


def test_tid_says_why_a_folder_is_no_dataset(tid, name, server) -> None:
    assert "digits" in tid("datasets", "list").out
    refused = tid("datasets", "add", "outside", "/etc")
    assert (refused.code, "/etc" in refused.err) == (1, True)
    broken = server.home / "data" / name
    (broken / "train").mkdir(parents=True)
    (broken / "train.json").write_text(json.dumps({"images": []}))
    refused = tid("datasets", "add", name, broken)
    assert (refused.code, "is invalid" in refused.err) == (1, True)
    shown = tid("datasets", "show", name)
    assert (shown.code, "invalid" in shown.out) == (0, True)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--split", "train"), "--split"),
        (("--split", "best=x"), "--split"),
        (("--split", "train=a", "--split", "train=b"), "once"),
        (("--split", "val=a"), "--split"),
        (("--val-fraction", "2"), "--val-fraction"),
        (("--format", "tfrecord"), "--format"),
    ],
)
def test_tid_refuses_options_that_mean_nothing(tid, server, name, options, says) -> None:
    refused = tid("datasets", "add", name, server.data, *options)
    assert (refused.code, says in refused.err) == (2, True), refused.err


def test_tid_says_how_to_go_on_with_an_archive_that_did_not_come(tid, server, name) -> None:
    httpx.post(f"{server.url}/datasets", json={"name": name}).raise_for_status()
    assert f"`tid datasets add {name} ARCHIVE` with the same options" in tid("datasets", "show", name).out
    assert "with the same options, delete it" in tid("datasets", "add", name, server.data).err


def test_tid_takes_names_of_the_dataset_s_own_splits(tid, server, name) -> None:
    added = tid("datasets", "add", name, server.data, "--split", "train=val", "--split", "val=train", "--no-wait")
    assert added.code == 0, added.err
    with Client(server.url) as client:
        assert client.wait_for_dataset(name).splits["val"].images == 10
