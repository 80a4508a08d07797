"""The dataset and its loader: the same samples wherever they are made, and bad data named instead of trained on."""

import gc
import json
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tid_core.data.coco import CocoDetection
from tid_core.data.loader import Batch, EpochLoader, make_loader, to_device
from tid_core.data.synthetic import write_demo_data
from tid_core.data.transforms import Composed, Flip, build_augmentation, training_transform
from tid_core.events import TrainingFailure
from tid_core.plan import SplitPaths
from tid_core.spec import DataSpec

torch.set_num_threads(1)
AUGMENTED = DataSpec(photometric=0.8, scale_jitter=(0.5, 1.6))
PLAIN = DataSpec(flip=0.0)


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> SplitPaths:
    root = tmp_path_factory.mktemp("data") / "digits"
    write_demo_data(root, images=20, seed=0)
    return SplitPaths(images=root / "train", annotations=root / "train.json")


def make_split(root: Path, annotations: list[dict[str, Any]], **content: Any) -> SplitPaths:
    """One image of 40 x 30 pixels, its left half red and its right half blue."""
    (root / "images").mkdir(exist_ok=True)
    image = Image.new("RGB", (40, 30), "red")
    image.paste("blue", (20, 0, 40, 30))
    image.save(root / "images" / "a.png")
    images = [{"id": 7, "file_name": "a.png", "width": 40, "height": 30}]
    categories = [{"id": 9, "name": "dog"}, {"id": 2, "name": "cat"}]
    full = [{"id": i, "image_id": 7, "category_id": 2, **entry} for i, entry in enumerate(annotations)]
    coco = {"images": images, "annotations": full, "categories": categories, **content}
    (root / "a.json").write_text(json.dumps(coco))
    return SplitPaths(images=root / "images", annotations=root / "a.json")


def assert_same(a: list[Batch], b: list[Batch]) -> None:
    assert len(a) == len(b) > 0
    for (images_a, targets_a), (images_b, targets_b) in zip(a, b, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(images_a, images_b, strict=True))
        for x, y in zip(targets_a, targets_b, strict=True):
            assert x.keys() == y.keys()
            assert all(torch.equal(x[k], y[k]) if isinstance(x[k], Tensor) else x[k] == y[k] for k in x)


def test_workers_resume_and_the_state_of_the_process_change_nothing(digits: SplitPaths) -> None:
    dataset = CocoDetection(digits, None, AUGMENTED, train=True, seed=4)
    whole = list(make_loader(dataset, batch_size=4, epoch=3))
    before = torch.get_rng_state()
    assert_same(list(make_loader(dataset, batch_size=4, epoch=3, start_batch=2)), whole[2:])
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)
    assert_same(list(make_loader(dataset, batch_size=4, epoch=3, workers=2)), whole)


@pytest.fixture
def open_loader(digits: SplitPaths) -> Iterator[Callable[..., EpochLoader]]:
    """An EpochLoader of batches of 4 with two workers, closed after the test; keyword arguments change it."""
    loaders: list[EpochLoader] = []

    def opened(**changes: Any) -> EpochLoader:
        dataset = CocoDetection(digits, None, AUGMENTED, train=True, seed=4)
        options = {"batch_size": 4, "workers": 2, "pin_memory": False, **changes}
        loaders.append(EpochLoader(dataset, **options))
        return loaders[-1]

    yield opened
    for loader in loaders:
        loader.close()


def test_epochs_from_lasting_workers_hold_what_each_would_alone(digits: SplitPaths, open_loader: Any) -> None:
    dataset = CocoDetection(digits, None, AUGMENTED, train=True, seed=4)
    alone = [list(make_loader(dataset, batch_size=4, epoch=epoch)) for epoch in range(3)]
    loader = open_loader()
    assert_same(list(loader.epoch(0)), alone[0])
    workers = {child.pid for child in multiprocessing.active_children()}
    assert len(workers) == 2
    assert_same([next(loader.epoch(1))], alone[1][:1])  # and left there, as by a run that is asked to stop
    assert_same(list(loader.epoch(2, start_batch=3)), alone[2][3:])
    assert_same(list(loader.epoch(1)), alone[1])
    assert {child.pid for child in multiprocessing.active_children()} == workers
    assert_same(list(open_loader(workers=0).epoch(2)), alone[2])


def test_ranks_load_their_slices(open_loader: Any) -> None:
    whole = list(open_loader(workers=0).epoch(1))
    shares = [list(open_loader(workers=0, rank=rank, world=2).epoch(1)) for rank in range(2)]
    assert_same([(a[0] + b[0], a[1] + b[1]) for a, b in zip(*shares, strict=True)], whole)


def test_a_closed_loader_leaves_no_process_and_no_descriptor(open_loader: Any) -> None:
    list(open_loader(workers=1).epoch(0))  # what multiprocessing itself opens once
    multiprocessing.active_children()
    children = {child.pid for child in multiprocessing.active_children()}
    gc.collect()  # of earlier tests
    before = set(os.listdir("/proc/self/fd"))  # noqa: PTH208 - numbers, not paths
    loader = open_loader()
    next(loader.epoch(0))
    loader.close()
    assert {child.pid for child in multiprocessing.active_children()} == children
    gc.collect()
    assert set(os.listdir("/proc/self/fd")) <= before  # noqa: PTH208
    loader.close()  # twice does no harm
    assert next(loader.epoch(0))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="pinned memory is a GPU's")
@pytest.mark.parametrize("workers", [0, 2])
def test_batches_for_a_gpu_are_pinned(open_loader: Any, workers: int) -> None:
    plain, pinned = (list(open_loader(workers=workers, pin_memory=pin).epoch(0)) for pin in (False, True))
    assert_same(plain, pinned)
    assert all(image.is_pinned() for images, _ in pinned for image in images)
    assert all(target["boxes"].is_pinned() for _, targets in pinned for target in targets)


LEFT_OPEN = """
import sys
from tid_core.data.coco import CocoDetection
from tid_core.data.loader import EpochLoader, make_loader
from tid_core.plan import SplitPaths
from tid_core.spec import DataSpec

split = SplitPaths(images=sys.argv[1], annotations=sys.argv[2])
dataset = CocoDetection(split, None, DataSpec(), train=True)
loader = EpochLoader(dataset, batch_size=2, workers=1, pin_memory=False)
batches, others = loader.epoch(0), iter(make_loader(dataset, batch_size=2, workers=1))
next(batches), next(others)
"""


def test_a_process_ends_although_its_loaders_are_open(digits: SplitPaths) -> None:
    """Its loader processes leave SIGTERM to it, by which multiprocessing would end them."""
    arguments = [sys.executable, "-c", LEFT_OPEN, str(digits.images), str(digits.annotations)]
    done = subprocess.run(arguments, timeout=100, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_bad_image_ends_the_epoch_and_the_loader_can_still_be_closed(tmp_path: Path) -> None:
    split = make_split(tmp_path, [{"bbox": [0, 0, 5, 5]}])
    (split.images / "a.png").unlink()
    loader = EpochLoader(CocoDetection(split, None, PLAIN, train=True), batch_size=1, workers=1, pin_memory=False)
    children = {child.pid for child in multiprocessing.active_children()}
    with pytest.raises(TrainingFailure, match=r"a\.png: no such file") as caught:
        list(loader.epoch(0))
    assert caught.value.reason == "dataset_invalid"
    loader.close()
    assert {child.pid for child in multiprocessing.active_children()} == children


def test_seed_and_epoch_change_the_augmentation(digits: SplitPaths) -> None:
    dataset = CocoDetection(digits, None, AUGMENTED, train=True, seed=4)
    other_seed = CocoDetection(digits, None, AUGMENTED, train=True, seed=5)
    image = dataset[0, 3][0]
    assert torch.equal(image, dataset[0, 3][0])
    for another in (dataset[1, 3][0], other_seed[0, 3][0]):
        assert another.shape != image.shape or not torch.equal(another, image)


def test_without_training_an_image_is_its_file_in_every_epoch(digits: SplitPaths) -> None:
    dataset = CocoDetection(digits, None, AUGMENTED, train=False)
    image, target = dataset[0, 3]
    assert torch.equal(image, dataset[5, 3][0])
    assert (image.shape, image.dtype) == ((3, 96, 96), torch.uint8)
    assert (target["index"], target["image_id"], target["size"]) == (3, 4, (96, 96))


def test_boxes_follow_the_flip(tmp_path: Path) -> None:
    split = make_split(tmp_path, [{"bbox": [0, 5, 20, 10]}])
    image, target = CocoDetection(split, None, DataSpec(flip=1.0), train=True)[0, 0]
    assert target["boxes"].tolist() == [[20, 5, 40, 15]]
    assert image[:, 10, 25].tolist() == [255, 0, 0]
    assert type(image) is Tensor
    assert type(target["boxes"]) is Tensor


@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_boxes_follow_the_zoom_and_stay_in_the_image(tmp_path: Path, factor: float) -> None:
    split = make_split(tmp_path, [{"bbox": [0, 0, 20, 30]}, {"bbox": [20, 0, 20, 30], "category_id": 9}])
    dataset = CocoDetection(split, None, DataSpec(flip=0.0, scale_jitter=(factor, factor)), train=True)
    seen = set()
    for epoch in range(12):
        image, target = dataset[epoch, 0]
        assert image.shape == (3, 30 / factor, 40 / factor)
        for box, label in zip(target["boxes"].tolist(), target["labels"].tolist(), strict=True):
            left, top, right, bottom = (round(value) for value in box)
            assert 0 <= left < right <= 40 / factor
            # Every pixel of the cat's box is red, of the dog's blue.
            inside = image[:, top:bottom, left:right].reshape(3, -1).T.tolist()
            assert {tuple(pixel) for pixel in inside} == {[(255, 0, 0), (0, 0, 255)][label]}
        seen.add(tuple(target["boxes"].flatten().tolist()))
    assert len(seen) > 3


@pytest.mark.parametrize("p", [0.0, 0.5, 1.0])
def test_a_flip_alone_is_the_transform_of_torchvision(p: float) -> None:
    random = np.random.default_rng(0)
    corners = random.uniform(0, 30, (6, 2)).astype(np.float32)
    sides = np.array([[9, 9], [0.5, 9], [9, 0.5], [1, 1], [10, 10], [90, 90]], dtype=np.float32)
    boxes, labels = torch.from_numpy(np.hstack([corners, corners + sides])), torch.arange(6)
    pixels = random.integers(0, 256, (41, 43, 3), dtype=np.uint8)
    for seed in range(20):
        quick = Flip(p)(seed, pixels, boxes, labels)
        general = Composed(training_transform(DataSpec(flip=p)))(seed, pixels, boxes, labels)
        assert all(torch.equal(a, b) for a, b in zip(quick, general, strict=True))
        assert quick[0].is_contiguous()
        assert 0 < len(quick[2]) < 6


def test_a_small_factor_shrinks_the_image_instead_of_growing_its_frame() -> None:
    pixels = np.zeros((200, 300, 3), dtype=np.uint8)
    pixels[50:150, 60:240] = 255
    boxes, labels = torch.tensor([[60.0, 50.0, 240.0, 150.0]]), torch.tensor([3])
    zoom = build_augmentation(DataSpec(flip=0.0, scale_jitter=(0.1, 0.1)))
    corners = set()
    for seed in range(8):
        image, (box,), label = zoom(seed, pixels, boxes, labels)
        assert image.shape == (3, 400, 600)
        left, top, right, bottom = (round(value) for value in box.tolist())
        # A tenth of the picture: its frame is twice as long, and it is a fifth of itself.
        assert (right - left, bottom - top) == (36, 20)
        assert image[:, top + 2 : bottom - 2, left + 2 : right - 2].min() > 200
        assert image[:, top - 8 : top - 2, left:right].max() < 60
        assert label.tolist() == [3]
        corners.add((left, top))
    assert len(corners) > 4


def test_classes_are_ordered_by_category_id_or_mapped_by_name(tmp_path: Path) -> None:
    split = make_split(tmp_path, [{"bbox": [0, 0, 5, 5]}, {"bbox": [9, 9, 5, 5], "category_id": 9}])
    own = CocoDetection(split, None, PLAIN, train=False)
    assert own.classes == ["cat", "dog"]
    assert own[0, 0][1]["labels"].tolist() == [0, 1]
    mapped = CocoDetection(split, ["bird", "dog", "cat"], PLAIN, train=False)
    assert mapped[0, 0][1]["labels"].tolist() == [2, 1]
    assert mapped.truth is not None
    assert mapped.truth.category_ids[1:] == [9, 2]
    with pytest.raises(TrainingFailure, match=r"categories \['cat'\]") as caught:
        CocoDetection(split, ["dog"], PLAIN, train=False)
    assert caught.value.reason == "dataset_invalid"


BAD: list[dict[str, Any]] = [
    {"bbox": [0, 0, 5, 5]},
    {"bbox": [3, 3, 0, 5]},
    {"bbox": [90, 3, 5, 5]},
    {"bbox": [0, 0, 5, 5], "category_id": 4},
]


def test_unusable_boxes_are_dropped_or_refused_by_policy(tmp_path: Path) -> None:
    split = make_split(tmp_path, BAD)
    dropped = CocoDetection(split, None, PLAIN, train=True)
    assert dropped[0, 0][1]["boxes"].tolist() == [[0, 0, 5, 5]]
    assert [problem.code for problem in dropped.problems] == ["zero_size_box", "box_outside_image", "unknown_category"]
    with pytest.raises(TrainingFailure) as caught:
        CocoDetection(split, None, DataSpec(invalid_boxes="refuse"), train=True)
    assert caught.value.reason == "dataset_invalid"
    assert "1 x zero_size_box" in caught.value.detail
    assert "annotations[1] (id 1)" in caught.value.detail


def test_crowds_and_overhang_are_not_refused_and_only_evaluation_sees_the_crowd(tmp_path: Path) -> None:
    split = make_split(tmp_path, [{"bbox": [30, 20, 20, 20], "area": 55}, {"bbox": [0, 0, 20, 20], "iscrowd": 1}])
    strict = DataSpec(flip=0.0, invalid_boxes="refuse")
    assert CocoDetection(split, None, strict, train=True)[0, 0][1]["boxes"].tolist() == [[30, 20, 40, 30]]
    truth = CocoDetection(split, None, strict, train=False).truth
    assert truth is not None
    assert truth.crowd_B.tolist() == [0, 1]
    assert truth.area_B.tolist() == [55, 400]
    assert truth.xywh_B4[0].tolist() == [30, 20, 20, 20]


def test_empty_images_are_trained_on_unless_left_out(tmp_path: Path) -> None:
    images = [{"id": i, "file_name": "a.png", "width": 40, "height": 30} for i in (6, 7, 8)]
    split = make_split(tmp_path, [{"bbox": [0, 0, 5, 5]}], images=images)
    dataset = CocoDetection(split, None, AUGMENTED, train=True)
    assert [len(dataset[0, i][1]["boxes"]) for i in range(3)] == [0, 1, 0]
    assert dataset[0, 0][1]["boxes"].shape == (0, 4)
    left = DataSpec(drop_empty=True)
    assert [CocoDetection(split, None, left, train=True)[0, 0][1]["image_id"]] == [7]
    assert len(CocoDetection(split, None, left, train=False)) == 3


def test_nothing_to_train_on_is_a_failure(tmp_path: Path) -> None:
    split = make_split(tmp_path, [{"bbox": [0, 0, 5, 5], "iscrowd": 1}])
    with pytest.raises(TrainingFailure, match="no box that can be trained on"):
        CocoDetection(split, None, PLAIN, train=True)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("harm", ["truncated", "missing", "other size"])
def test_an_image_that_cannot_be_read_is_named(tmp_path: Path, harm: str, workers: int) -> None:
    split = make_split(tmp_path, [{"bbox": [0, 0, 5, 5]}])
    path = split.images / "a.png"
    if harm == "truncated":
        path.write_bytes(path.read_bytes()[:60])
    elif harm == "missing":
        path.unlink()
    else:
        Image.new("RGB", (30, 40)).save(path)
    loader = make_loader(CocoDetection(split, None, PLAIN, train=True), batch_size=1, workers=workers)
    children = {child.pid for child in multiprocessing.active_children()}
    with pytest.raises(TrainingFailure, match=r"a\.png") as caught:
        list(loader)
    assert caught.value.reason == "dataset_invalid"
    assert {child.pid for child in multiprocessing.active_children()} == children


def test_images_of_any_mode_arrive_as_rgb(tmp_path: Path) -> None:
    split = make_split(tmp_path, [{"bbox": [0, 0, 5, 5]}])
    for mode in ("L", "P", "RGBA", "CMYK", "1"):
        Image.new(mode, (40, 30)).save(split.images / "a.png", format="TIFF")
        assert CocoDetection(split, None, PLAIN, train=False)[0, 0][0].shape == (3, 30, 40)


def test_batches_on_the_device_are_floats_between_0_and_1(tmp_path: Path) -> None:
    split = make_split(tmp_path, [{"bbox": [0, 0, 5, 5]}])
    (batch,) = make_loader(CocoDetection(split, None, PLAIN, train=True), batch_size=1)
    (image,), (target,) = to_device(batch, torch.device("cpu"))
    assert image.dtype == torch.float32
    assert image[:, 0, 0].tolist() == [1, 0, 0]
    assert target["image_id"] == 7
