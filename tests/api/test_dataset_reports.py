"""What cannot be a dataset: refused at once where that shows at once, else invalid with a report."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from store.settings import Settings

Make = Callable[..., Path]
Settled = Callable[..., dict[str, Any]]


@pytest.fixture
def database_url(sqlite_url: str) -> str:
    return sqlite_url


def add(client: TestClient, root: Path, name: str = "pets", **options: Any) -> Any:
    return client.post("/datasets", json={"name": name, "root": str(root), "options": options})


def test_images_that_are_missing_or_cut_off_are_named(
    client: TestClient, make_dataset: Make, settings: Settings, settled: Settled
) -> None:
    root = make_dataset(settings.data_roots[0] / "pets")
    (root / "train" / "3.png").unlink()
    whole = (root / "val" / "5.png").read_bytes()
    (root / "val" / "5.png").write_bytes(whole[: len(whole) // 2])
    assert add(client, root).status_code == 201
    dataset = settled(client, "pets")
    assert (dataset["state"], dataset["splits"], dataset["sha256"]) == ("invalid", {}, None)
    report = {problem["code"]: problem["detail"] for problem in dataset["report"]}
    assert "train/3.png" in report["missing_image"]
    assert "val/5.png" in report["unreadable_image"]
    assert not list((settings.artifacts / "datasets").rglob("*"))


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda root: (root / "train.json").write_text("{"), "not_json"),
        (lambda root: (root / "train.json").write_text("[]"), "not_coco"),
        (lambda root: (root / "val.json").unlink(), "split_missing"),
    ],
)
def test_what_is_no_dataset_is_invalid_with_the_reason(
    client: TestClient,
    make_dataset: Make,
    settings: Settings,
    settled: Settled,
    change: Callable[[Path], Any],
    code: str,
) -> None:
    root = make_dataset(settings.data_roots[0] / "pets", images=2)
    change(root)
    add(client, root)
    assert [problem["code"] for problem in settled(client, "pets")["report"]] == [code]


def test_val_is_carved_out_of_train_where_asked(
    client: TestClient, make_dataset: Make, settings: Settings, settled: Settled
) -> None:
    root = make_dataset(settings.data_roots[0] / "pets")
    (root / "val.json").unlink()
    assert add(client, root, val_fraction=0.5).status_code == 201
    dataset = settled(client, "pets")
    assert dataset["state"] == "ready", dataset["report"]
    sizes = [dataset["splits"][split]["images"] for split in ("train", "val")]
    assert (sum(sizes), min(sizes) > 0) == (16, True)
    assert dataset["options"]["val_fraction"] == 0.5


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"format": "tfrecord"}, "/options/format"),
        ({"val_fraction": 1}, "/options/val_fraction"),
        ({"splits": {"val": "test"}}, "/options"),
        ({"seed": 1}, "/options/seed"),
    ],
)
def test_options_that_mean_nothing(client: TestClient, settings: Settings, options: Any, field: str) -> None:
    response = add(client, settings.data_roots[0], **options)
    assert (response.status_code, response.json()["errors"][0]["field"]) == (422, field)


def test_a_folder_must_be_there_and_lie_under_a_root_by_its_real_path(
    client: TestClient, make_dataset: Make, settings: Settings, tmp_path: Path
) -> None:
    outside = make_dataset(tmp_path / "elsewhere", images=1)
    link = settings.data_roots[0] / "link"
    link.symlink_to(outside)
    for root in (outside, link, settings.data_roots[0] / ".." / "elsewhere", Path("pets")):
        response = add(client, root)
        assert (response.status_code, response.json()["code"]) == (422, "outside_roots")
    assert str(settings.data_roots[0]) in response.json()["errors"][0]["expected"]
    response = add(client, settings.data_roots[0] / "nowhere")
    assert (response.status_code, response.json()["code"]) == (422, "dataset_not_found")


def test_links_inside_the_folder_may_not_lead_out_of_it(
    client: TestClient, make_dataset: Make, settings: Settings, tmp_path: Path, settled: Settled
) -> None:
    root = make_dataset(settings.data_roots[0] / "pets", images=2)
    for name in ("val.json", "train", "train/1.png"):
        inside, outside = root / name, tmp_path / f"outside-{name.replace('/', '-')}"
        inside.rename(outside)
        inside.symlink_to(outside)
        add(client, root)
        dataset = settled(client, "pets")
        assert dataset["state"] == "invalid", name
        assert name in json.dumps(dataset["report"])
        client.delete("/datasets/pets")
        inside.unlink()
        outside.rename(inside)
    add(client, root)
    assert settled(client, "pets")["state"] == "ready"


def test_links_in_a_circle_are_outside(client: TestClient, spec: Callable[..., Any], settings: Settings) -> None:
    loop = settings.data_roots[0] / "loop.pt"
    loop.symlink_to(loop)
    assert (response := add(client, loop)).status_code == 422, response.text
    student = {"detector": "fcos_resnet18_small", "weights": {"file": str(loop)}}
    response = client.post("/jobs", json=spec(student=student))
    assert response.status_code == 422
    assert "outside_roots" in {error["code"] for error in response.json()["errors"]}


@pytest.mark.parametrize("name", ["a\0b", "\ud800", "a\n\x1b[31m"])
def test_class_names_can_be_stored_and_shown(
    client: TestClient, make_dataset: Make, settings: Settings, settled: Settled, name: str
) -> None:
    root = make_dataset(settings.data_roots[0] / "pets", images=2)
    for split in ("train", "val"):
        content = json.loads((root / f"{split}.json").read_text())
        content["categories"][0]["name"] = name
        (root / f"{split}.json").write_text(json.dumps(content))
    add(client, root)
    (problem,) = settled(client, "pets")["report"]
    assert problem["code"] == "not_coco"
    assert "categories[0].name" in problem["detail"]


@pytest.mark.parametrize("name", ["", "../x", "a b", "a/b", "x" * 121])
def test_names_are_safe_in_a_url(client: TestClient, name: str) -> None:
    response = client.post("/datasets", json={"name": name, "root": "/x"})
    assert (response.status_code, response.json()["errors"][0]["field"]) == (422, "/name")
