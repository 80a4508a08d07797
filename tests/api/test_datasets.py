"""A dataset from its registration to its end, on both databases."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastapi.testclient import TestClient

from store.settings import Settings

Make = Callable[..., Path]
Settled = Callable[..., dict[str, Any]]


def add(client: TestClient, root: Path, name: str = "pets", **options: Any) -> Any:
    return client.post("/datasets", json={"name": name, "root": str(root), "options": options})


def test_a_dataset_is_looked_through_listed_and_found_by_name_or_id(
    client: TestClient, make_dataset: Make, settings: Settings, settled: Settled
) -> None:
    root = make_dataset(settings.data_roots[0] / "pets")
    created = add(client, root)
    assert (created.status_code, created.json()["state"]) == (201, "validating")
    assert created.headers["Location"] == f"/datasets/{created.json()['id']}"
    dataset = settled(client, "pets")
    assert (dataset["state"], dataset["report"], dataset["progress"]) == ("ready", [], None)
    assert (dataset["classes"], dataset["format"], len(dataset["sha256"])) == (["cat", "dog"], "coco", 64)
    train = dataset["splits"]["train"]
    assert (train["images"], train["boxes"], train["images_checked"]) == (16, 32, "decoded")
    assert (train["per_class"], train["box_side_histogram"]) == (
        {"cat": 16, "dog": 16},
        [{"low": 16, "high": 32, "boxes": 32}],
    )
    assert client.get("/datasets").json() == {"data": [dataset], "has_more": False, "next_cursor": None}
    assert client.get("/datasets/pets").json() == client.get(f"/datasets/{dataset['id']}").json() == dataset
    assert client.get("/datasets/cars").json()["code"] == "dataset_not_found"


def test_splits_and_classes_are_told_in_their_order(
    client: TestClient, make_dataset: Make, settings: Settings, settled: Settled
) -> None:
    """PostgreSQL sorts the keys of an object by their length."""
    add(client, make_dataset(settings.data_roots[0] / "pets", images=2, classes=("horse", "ox", "cat")))
    dataset = settled(client, "pets")
    assert list(dataset["splits"]) == ["train", "val"]
    assert [list(split["per_class"]) for split in dataset["splits"].values()] == [["horse", "ox", "cat"]] * 2


def test_a_name_is_one_dataset_s_and_content_may_have_several(
    client: TestClient, make_dataset: Make, settings: Settings, settled: Settled
) -> None:
    root = make_dataset(settings.data_roots[0] / "pets", images=2)
    assert add(client, root).status_code == 201
    again = add(client, root)
    assert (again.status_code, again.json()["code"]) == (409, "name_taken")
    assert add(client, root, "animals").status_code == 201
    assert settled(client, "pets")["sha256"] == settled(client, "animals")["sha256"]


def test_a_job_needs_a_dataset_that_is_ready(
    client: TestClient, make_dataset: Make, settings: Settings, settled: Settled, spec: Callable[..., dict[str, Any]]
) -> None:
    assert client.post("/datasets", json={"name": "pets"}).json()["state"] == "uploading"
    refused = client.post("/jobs", json=spec())
    assert (refused.status_code, refused.json()["code"]) == (409, "dataset_not_ready")
    assert "uploading" in refused.json()["detail"]
    dry = client.post("/jobs?dry_run=true", json=spec()).json()
    assert (dry["ok"], [problem["code"] for problem in dry["problems"]]) == (False, ["dataset_not_ready"])
    root = make_dataset(settings.data_roots[0] / "broken", images=2)
    (root / "train" / "1.png").write_bytes(b"no picture")
    add(client, root, "broken")
    assert settled(client, "broken")["state"] == "invalid"
    refused = client.post("/jobs", json=spec(dataset="broken"))
    assert (refused.status_code, refused.json()["code"]) == (422, "dataset_invalid")
    assert "unreadable_image" in refused.json()["detail"]
    assert "train/1.png" in refused.json()["detail"]


def test_a_deleted_dataset_leaves_its_name_and_nothing_else(
    client: TestClient, make_dataset: Make, settings: Settings, settled: Settled
) -> None:
    root = make_dataset(settings.data_roots[0] / "pets", images=2)
    add(client, root)
    settled(client, "pets")
    assert list((settings.artifacts / "datasets").rglob("train.json"))
    assert client.delete("/datasets/pets").status_code == 204
    assert client.get("/datasets/pets").status_code == client.delete("/datasets/pets").status_code == 404
    assert not list((settings.artifacts / "datasets").rglob("*"))
    assert (root / "train.json").exists(), "the folder is not the service's"
    assert add(client, root).status_code == 201


def test_a_dataset_that_jobs_name_stays(client: TestClient, submit: Callable[..., dict[str, Any]]) -> None:
    job = submit()
    refused = client.delete("/datasets/pets")
    assert (refused.status_code, refused.json()["code"]) == (409, "dataset_in_use")
    assert job["id"] in refused.json()["detail"]
    assert client.get("/datasets/pets").json()["state"] == "ready"


def test_the_sample_is_a_picture_with_an_etag(client: TestClient, pets: str) -> None:
    picture = client.get(f"/datasets/{pets}/sample")
    assert (picture.status_code, picture.headers["content-type"]) == (200, "image/jpeg")
    assert picture.content[:3] == b"\xff\xd8\xff"
    again = client.get(f"/datasets/{pets}/sample", headers={"If-None-Match": picture.headers["ETag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert client.head(f"/datasets/{pets}/sample").headers["ETag"] == picture.headers["ETag"]
    client.post("/datasets", json={"name": "later"})
    assert client.get("/datasets/later/sample").json()["code"] == "dataset_not_ready"
