"""The index: the same content has the same hash, `val` is carved the same way, and nothing is kept of a bad dataset."""

import hashlib
import io
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from tests.tid_core.formats.small import CLASSES, picture, read, voc_object, write_coco, write_voc, write_yolo
from tid_core.data.annotations import read_coco
from tid_core.data.coco import CocoDetection
from tid_core.data.index import IndexOptions, build_index, index_splits
from tid_core.data.problems import DatasetError
from tid_core.events import TrainingFailure
from tid_core.facts import DatasetFacts, HistogramBin, read_facts
from tid_core.spec import DataSpec


def build(root: Path, out: Path, **options: Any) -> DatasetFacts:
    return build_index(root, out, name="pets", options=IndexOptions.model_validate(options))


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} if folder.exists() else set()


def test_the_index_holds_what_the_dataset_holds(tmp_path: Path) -> None:
    root = write_coco(tmp_path / "root", {"train": 5, "val": 3})
    facts = build(root, tmp_path / "out")
    assert files(tmp_path / "out") == {"train.json", "val.json", "facts.json", "sample.jpg"}
    assert DatasetFacts.model_validate_json((tmp_path / "out/facts.json").read_bytes()) == facts
    assert facts.model_copy(update={"sha256": None}) == read_facts(root, "pets", check_images=True)
    source = read(root)
    for split, paths in index_splits(root, tmp_path / "out").items():
        coco = read_coco(paths.annotations)
        assert (coco.classes, coco.category_ids) == (CLASSES, [3, 5, 9])
        assert coco.boxes == source.splits[split].boxes
        assert [image._replace(sha256=None) for image in coco.images] == source.splits[split].images
        contents = [(paths.images / image.file_name).read_bytes() for image in coco.images]
        assert [image.sha256 for image in coco.images] == [hashlib.sha256(data).hexdigest() for data in contents]


def test_training_stops_at_an_image_that_is_not_the_registered_one(tmp_path: Path) -> None:
    root = write_coco(tmp_path / "root", {"train": 3, "val": 2})
    build(root, tmp_path / "out")
    paths = index_splits(root, tmp_path / "out")["train"]
    dataset = CocoDetection(paths, None, DataSpec(flip=0.0), train=True)
    image, _ = dataset[0, 1]
    place = root / dataset.record(1).file_name
    before = place.read_bytes()
    Image.new("RGB", (image.shape[2], image.shape[1]), "red").save(place)
    with pytest.raises(TrainingFailure, match=f"changed_image: .*{place.name}: is not the file that was registered"):
        dataset[1, 1]
    dataset[0, 0]
    place.write_bytes(before)
    assert torch.equal(dataset[0, 1][0], image)


def test_an_index_of_an_index_hashes_the_files_anew(tmp_path: Path) -> None:
    root = write_coco(tmp_path / "root", {"train": 3, "val": 2})
    build(root, tmp_path / "out")
    for split in ("train", "val"):
        shutil.copy(tmp_path / f"out/{split}.json", tmp_path / f"{split}.json")
        shutil.copytree(root, tmp_path / split)
    name = read_coco(tmp_path / "train.json").images[0].file_name
    Image.open(tmp_path / "train" / name).transpose(Image.Transpose.ROTATE_180).save(tmp_path / "train" / name)
    again = tmp_path / "again"
    build_index(tmp_path, again, name="again", options=IndexOptions(format="coco"))
    for image in read_coco(again / "train.json").images:
        assert image.sha256 == hashlib.sha256((tmp_path / image.file_name).read_bytes()).hexdigest()


def test_the_same_content_has_the_same_hash_wherever_it_lies_and_other_content_another(tmp_path: Path) -> None:
    root = write_coco(tmp_path / "root", {"train": 3, "val": 2})
    copy = shutil.copytree(root, tmp_path / "elsewhere" / "copy")
    first = build(root, tmp_path / "out")
    assert build_index(copy, tmp_path / "out2", name="other").sha256 == first.sha256
    again = build(root, tmp_path / "out")
    assert again == first
    picture(copy / "train" / "train01.png", Image.open(copy / "train" / "train01.png").size, seed=7)
    assert build(copy, tmp_path / "out3").sha256 != first.sha256
    content = json.loads((root / "val.json").read_bytes())
    content["annotations"][0]["bbox"][0] += 0.5
    (root / "val.json").write_text(json.dumps(content))
    assert build(root, tmp_path / "out4").sha256 != first.sha256


def test_boxes_that_cannot_be_used_are_left_out_and_stay_told(tmp_path: Path) -> None:
    write_yolo(
        tmp_path / "root", {"train": {"a": "0 .5 .5 .2 .2\n7 .5 .5 .2 .2\n0 .5 .5 .2 0"}, "val": {"b": "0 .5 .5 1 1"}}
    )
    facts = build(tmp_path / "root", tmp_path / "out")
    told = {problem.code: problem.count for problem in facts.splits["train"].problems}
    assert told == {"unknown_category": 1, "zero_size_box": 1}
    coco = read_coco(tmp_path / "out/train.json")
    assert (len(coco.boxes), coco.problems.counts) == (1, {})


def test_sizes_of_boxes_are_counted_in_doublings(tmp_path: Path) -> None:
    sides = [0.5, 1, 1.9, 4, 7.9, 16]
    lines = "\n".join(f"0 .5 .5 {side / 64} {side / 48}" for side in sides)
    write_yolo(tmp_path / "root", {"train": {"a": lines}, "val": {"b": lines}})
    bins = build(tmp_path / "root", tmp_path / "out").splits["train"].box_side_histogram
    expected = [(0, 1, 1), (1, 2, 2), (2, 4, 0), (4, 8, 2), (8, 16, 0), (16, 32, 1)]
    assert bins == [HistogramBin(low=low, high=high, boxes=boxes) for low, high, boxes in expected]


def carved(root: Path, **options: Any) -> dict[str, set[str]]:
    source = read(root, **options)
    return {name: {image.file_name for image in split.images} for name, split in source.splits.items()}


def test_a_carved_val_is_the_same_each_time_and_stays_when_images_are_added(tmp_path: Path) -> None:
    cat = voc_object("cat", 1, 1, 9, 9)
    small = write_voc(tmp_path / "small", {"": {f"{i:03d}": cat for i in range(40)}}, listed=False)
    large = write_voc(tmp_path / "large", {"": {f"{i:03d}": cat for i in range(80)}}, listed=False)
    a, b = carved(small, val_fraction=0.25), carved(large, val_fraction=0.25)
    assert a == carved(small, val_fraction=0.25)
    assert a["val"] < b["val"]
    assert a["train"] < b["train"]
    assert not b["val"] & b["train"]
    assert 8 <= len(b["val"]) <= 32
    assert carved(small, val_fraction=0.25, val_seed=1) != a
    assert a["val"] < carved(small, val_fraction=0.5)["val"], "more is taken, none is given back"


def test_a_carve_keeps_each_image_with_its_boxes(tmp_path: Path) -> None:
    root = write_coco(tmp_path, {"train": 24})
    before = read(write_coco(tmp_path / "both", {"train": 24, "val": 2})).splits["train"]
    after = read(root, val_fraction=0.4).splits
    boxes = {
        image.file_name: [box.xyxy for box in before.boxes if box.image == i] for i, image in enumerate(before.images)
    }
    for split in (after["train"], after["val"]):
        for i, image in enumerate(split.images):
            assert [box.xyxy for box in split.boxes if box.image == i] == boxes.pop(image.file_name)
    assert not boxes


def test_a_carve_that_conflicts_or_leaves_a_side_empty_is_refused(tmp_path: Path) -> None:
    root = write_coco(tmp_path, {"train": 2, "val": 2})
    for options, code, words in (
        ({"val_fraction": 0.5}, "split_conflict", "has a `val` split of its own"),
        ({"val_fraction": 1e-9, "splits": {"train": "train"}}, "split_empty", "leaves no `val`"),
        ({"val_fraction": 1 - 1e-9, "splits": {"train": "train+val"}}, "split_empty", "leaves only `val`"),
    ):
        with pytest.raises(DatasetError, match=words) as caught:
            read(root, **options)
        assert caught.value.code == code


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"splits": {"val": "test"}}, "must name `train`"),
        ({"splits": {"train": "a", "val": "b"}, "val_fraction": 0.5}, "leave `val` out of splits"),
        ({"splits": {"train": "a", "dev": "b"}}, "dev"),
        ({"val_fraction": 0}, "greater than 0"),
        ({"val_fraction": float("nan")}, "val_fraction"),
        ({"format": "kitti"}, "'auto', 'coco', 'voc' or 'yolo'"),
        ({"root": "/"}, "Extra inputs"),
        ({"splits": {"train": "a\0"}}, "control character"),
        ({"splits": {"train": "a++b"}}, "must be names of splits"),
        ({"splits": {"train": "../a"}}, "must be names of splits"),
        ({"splits": {"train": "/etc/passwd"}}, "must be names of splits"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        IndexOptions.model_validate(options)


def test_copies_within_a_split_and_across_are_told(tmp_path: Path) -> None:
    root = write_coco(tmp_path / "root", {"train": 3, "val": 2})
    content = json.loads((root / "val.json").read_bytes())
    sizes = json.loads((root / "train.json").read_bytes())["images"]
    shutil.copy(root / "train/train00.png", root / "train/train01.png")
    shutil.copy(root / "train/train00.png", root / "val/val00.png")
    content["images"][0] |= {side: sizes[0][side] for side in ("width", "height")}
    sizes[1] |= {side: sizes[0][side] for side in ("width", "height")}
    (root / "train.json").write_text(json.dumps({**json.loads((root / "train.json").read_bytes()), "images": sizes}))
    (root / "val.json").write_text(json.dumps(content))
    facts = build(root, tmp_path / "out")
    told = {name: {p.code: p.examples for p in split.problems} for name, split in facts.splits.items()}
    assert told["train"]["duplicate_image"] == ["train/train00.png is train/train01.png"]
    assert told["val"]["leaked_image"] == ["val/val00.png is train/train01.png"]


def test_the_sample_shows_boxes_on_at_most_nine_images(tmp_path: Path) -> None:
    write_yolo(
        tmp_path / "root", {"train": {f"{i:02d}": "0 .5 .5 .5 .5" for i in range(20)}, "val": {"v": "0 .5 .5 1 1"}}
    )
    build(tmp_path / "root", tmp_path / "out")
    sample = Image.open(io.BytesIO((tmp_path / "out/sample.jpg").read_bytes()))
    assert (sample.format, sample.size) == ("JPEG", (3 * 320 + 8, 3 * 320 + 8))
    one = sample.crop((0, 0, 320, 320)).convert("RGB")
    # The first image is 320 x 240 in its cell; its box goes from a quarter to three quarters, in the first colour.
    for place in ((80, 160), (239, 160), (160, 219)):
        red, green, blue = one.getpixel(place)  # type: ignore[misc]
        assert red > 150 > green + 30, place
        assert blue < 150


@pytest.mark.parametrize("harm", ["missing", "truncated", "other size"])
def test_an_image_that_cannot_be_trained_on_makes_the_dataset_invalid(tmp_path: Path, harm: str) -> None:
    root = write_coco(tmp_path / "root", {"train": 3, "val": 2})
    victim = root / "val" / "val01.png"
    data = victim.read_bytes()
    victim.unlink()
    if harm == "truncated":
        victim.write_bytes(data[: len(data) // 2])
    elif harm == "other size":
        picture(victim, (9, 9))
    with pytest.raises(DatasetError, match=r"val/val01\.png") as caught:
        build(root, tmp_path / "out")
    assert caught.value.code == "images_unusable"
    codes = {"missing": "missing_image", "truncated": "unreadable_image", "other size": "size_mismatch"}
    assert [(p.code, p.count) for p in caught.value.problems["val"]] == [(codes[harm], 1)]
    assert files(tmp_path / "out") == set()


def test_a_split_without_a_usable_box_is_refused_with_the_reasons(tmp_path: Path) -> None:
    write_yolo(tmp_path / "root", {"train": {"a": "0 32 24 16 12\n" * 3}, "val": {"b": "0 .5 .5 1 1"}})
    with pytest.raises(DatasetError, match=r"no box of the `train` split .*3 x outside_0_1") as caught:
        build(tmp_path / "root", tmp_path / "out")
    assert caught.value.code == "no_boxes"


def test_a_new_index_leaves_nothing_of_the_old(tmp_path: Path) -> None:
    root = write_coco(tmp_path / "root", {"train": 3, "val": 2, "test": 2})
    build(root, tmp_path / "out")
    assert "test.json" in files(tmp_path / "out")
    build(root, tmp_path / "out", splits={"train": "train", "val": "val"})
    assert set(index_splits(root, tmp_path / "out")) == {"train", "val"}


def command(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tid_core.data.index", *map(str, arguments)], capture_output=True, text=True
    )


def test_the_command_builds_and_tells_how_far_it_is(tmp_path: Path) -> None:
    root = write_coco(tmp_path / "root", {"train": 3, "test": 2})
    options = json.dumps({"splits": {"train": "train", "val": "test"}})
    done = command(root, tmp_path / "out", "--name", "pets", "--options", options, "--progress")
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr.split("\n")[-2] == "5 5"
    assert json.loads((tmp_path / "out/facts.json").read_bytes())["name"] == "pets"
    refused = command(root, tmp_path / "out2", "--name", "pets")
    assert refused.returncode == 3
    told = json.loads(refused.stdout)
    assert told["code"] == "split_missing"
    assert "no `val` split" in told["detail"]
    assert not (tmp_path / "out2").exists()
    wrong = command(root, tmp_path / "out2", "--name", "pets", "--options", '{"val_fraction": 2}')
    assert wrong.returncode == 2
    assert "val_fraction: Input should be less than 1" in wrong.stderr


def test_an_index_is_built_without_torch_or_numpy(tmp_path: Path) -> None:
    root = write_coco(tmp_path / "root", {"train": 3, "val": 2})
    code = (
        "import sys, pathlib; from tid_core.data.index import build_index;"
        "build_index(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), name='pets');"
        "print(*({'torch', 'numpy', 'pycocotools'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, root, tmp_path / "out"], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == []
