import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from store.settings import Settings

Make = Callable[..., Path]


def add(client: TestClient, root: Path, name: str = "pets") -> Any:
    return client.post("/datasets", json={"name": name, "root": str(root)})


def test_a_dataset_is_scanned_listed_and_found_by_name_or_id(
    client: TestClient, make_dataset: Make, settings: Settings
) -> None:
    root = make_dataset(settings.data_roots[0] / "pets")
    created = add(client, root)
    assert created.status_code == 201
    dataset = created.json()
    assert created.headers["Location"] == f"/datasets/{dataset['id']}"
    assert dataset["classes"] == ["cat", "dog"]
    assert (dataset["splits"]["train"]["images"], dataset["splits"]["train"]["boxes"]) == (16, 32)
    assert client.get("/datasets").json() == {"data": [dataset], "has_more": False, "next_cursor": None}
    assert client.get("/datasets/pets").json() == client.get(f"/datasets/{dataset['id']}").json() == dataset
    assert client.get("/datasets/cars").json()["code"] == "dataset_not_found"
    again = add(client, root)
    assert (again.status_code, again.json()["code"]) == (409, "name_taken")


def test_images_that_are_missing_or_cut_off_are_named(
    client: TestClient, make_dataset: Make, settings: Settings
) -> None:
    root = make_dataset(settings.data_roots[0] / "pets")
    (root / "train" / "3.png").unlink()
    whole = (root / "val" / "5.png").read_bytes()
    (root / "val" / "5.png").write_bytes(whole[: len(whole) // 2])
    response = add(client, root)
    assert (response.status_code, response.json()["code"]) == (422, "dataset_invalid")
    problems = {error["code"]: error["detail"] for error in response.json()["errors"]}
    assert "3.png" in problems["missing_image"]
    assert "5.png" in problems["unreadable_image"]
    assert client.get("/datasets").json()["data"] == []


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda root: (root / "train.json").write_text("{"), "not_json"),
        (lambda root: (root / "train.json").write_text("[]"), "not_coco"),
        (lambda root: (root / "val.json").unlink(), "split_missing"),
    ],
)
def test_what_is_no_dataset_is_refused_with_the_reason(
    client: TestClient, make_dataset: Make, settings: Settings, change: Callable[[Path], Any], code: str
) -> None:
    root = make_dataset(settings.data_roots[0] / "pets", images=2)
    change(root)
    response = add(client, root)
    assert (response.status_code, response.json()["code"]) == (422, code), response.text


def test_a_folder_must_lie_under_a_root_by_its_real_path(
    client: TestClient, make_dataset: Make, settings: Settings, tmp_path: Path
) -> None:
    outside = make_dataset(tmp_path / "elsewhere", images=1)
    link = settings.data_roots[0] / "link"
    link.symlink_to(outside)
    for root in (outside, link, settings.data_roots[0] / ".." / "elsewhere", Path("pets")):
        response = add(client, root)
        assert (response.status_code, response.json()["code"]) == (422, "outside_roots")
    assert str(settings.data_roots[0]) in response.json()["errors"][0]["expected"]


def test_links_inside_the_folder_may_not_lead_out_of_the_roots(
    client: TestClient, make_dataset: Make, settings: Settings, tmp_path: Path
) -> None:
    root = make_dataset(settings.data_roots[0] / "pets", images=2)
    for name in ("val.json", "train"):
        inside, outside = root / name, tmp_path / f"outside-{name}"
        inside.rename(outside)
        inside.symlink_to(outside)
        response = add(client, root)
        assert (response.status_code, response.json()["code"]) == (422, "outside_roots")
        inside.unlink()
        outside.rename(inside)
    assert add(client, root).status_code == 201


def test_links_in_a_circle_are_outside(client: TestClient, spec: Callable[..., Any], settings: Settings) -> None:
    loop = settings.data_roots[0] / "loop.pt"
    loop.symlink_to(loop)
    assert (response := add(client, loop)).status_code == 422, response.text
    student = {"detector": "fcos_resnet18_small", "weights": {"file": str(loop)}}
    response = client.post("/jobs", json=spec(student=student))
    assert response.status_code == 422
    assert "outside_roots" in {error["code"] for error in response.json()["errors"]}


@pytest.mark.parametrize("name", ["a\0b", "\ud800", "a\n\x1b[31m", "", "x" * 201])
def test_class_names_can_be_stored_and_shown(
    client: TestClient, make_dataset: Make, settings: Settings, name: str
) -> None:
    root = make_dataset(settings.data_roots[0] / "pets", images=2)
    for split in ("train", "val"):
        content = json.loads((root / f"{split}.json").read_text())
        content["categories"][0]["name"] = name
        (root / f"{split}.json").write_text(json.dumps(content))
    response = add(client, root)
    assert (response.status_code, response.json()["code"]) == (422, "not_coco"), response.text
    assert "categories[0].name" in response.json()["detail"]


@pytest.mark.parametrize("name", ["", "../x", "a b", "a/b", "x" * 121])
def test_names_are_safe_in_a_url(client: TestClient, name: str) -> None:
    response = client.post("/datasets", json={"name": name, "root": "/x"})
    assert (response.status_code, response.json()["errors"][0]["field"]) == (422, "/name")
