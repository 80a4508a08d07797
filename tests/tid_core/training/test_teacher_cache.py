"""A run that keeps its teacher's outputs is the run that does not, bit for bit."""

import json
import shutil
import signal
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torchvision.models.detection.image_list import ImageList

from tid_core.plan import SplitPaths
from tid_core.training import cache_setup, launcher
from tid_core.training.cache_setup import forecast, open_cache
from tid_core.training.moulds import mould_of, take_apart
from tid_core.training.precision import choose_precision
from tid_core.training.setup import build_parts
from tid_core.training.teacher_cache import FOLDER, TeacherCache, identity_of

CPU = torch.device("cpu")
STILL = {"min_size": [64], "max_size": 96, "flip": 0.0}
STEPS = {"log_every_steps": 1, "warmup_steps": 0, "batch_size": 2}
QUICK = {"maps": 0, "teacher": False, "every_epochs": 9}
SIZES = [(64, 64), (96, 64), (64, 96), (80, 48), (48, 48)]


@pytest.fixture(scope="module")
def mixed(tmp_path_factory) -> SplitPaths:
    """14 pictures of several sizes, so that batches are padded in several ways."""
    root = tmp_path_factory.mktemp("mixed")
    random = np.random.default_rng(3)
    images, annotations = [], []
    for i in range(14):
        width, height = SIZES[i % len(SIZES)] if i % 3 == 0 else SIZES[0]
        Image.fromarray(random.integers(0, 255, (height, width, 3)).astype(np.uint8)).save(root / f"{i}.png")
        images.append({"id": i, "file_name": f"{i}.png", "width": width, "height": height})
        box = {"id": i, "image_id": i, "bbox": [4, 6, 24, 20 + i % 7], "area": 480, "iscrowd": 0}
        annotations.append({**box, "category_id": 1 + i % 10})
    categories = [{"id": 1 + k, "name": str(k)} for k in range(10)]
    (root / "all.json").write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return SplitPaths(images=root, annotations=root / "all.json")


@pytest.fixture
def plans(make_plan, mixed):
    """The same run with the cache and without."""

    def plans(name: str, **changes):
        pair = []
        for cache in (True, False):
            plan = make_plan(out=f"{name}-{cache}", **{"data": STILL, "evaluation": QUICK, **changes})
            teacher = plan.spec.teacher.model_copy(update={"cache": cache})
            spec = plan.spec.model_copy(update={"teacher": teacher})
            pair.append(plan.model_copy(update={"spec": spec, "train": mixed, "val": mixed}))
        return pair

    return plans


def assert_same(cached, plain, folders: list[Path]) -> None:
    for done in (cached, plain):
        assert done.finished.outcome == "succeeded", done.finished
    same = [
        {
            name: points
            for name, points in done.series.items()
            if not name.startswith(("time/", "throughput/", "memory/"))
        }
        for done in (cached, plain)
    ]
    assert "teacher/cache_hit_share" not in same[1]
    same[0].pop("teacher/cache_hit_share")
    assert same[0] == same[1]
    weights = [load_file(folder / "checkpoints" / "last.safetensors") for folder in folders]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


CASES = {
    "tid": {"training": {**STEPS, "epochs": 2}},
    "micro-batches": {"training": {**STEPS, "epochs": 2, "batch_size": 6, "accumulate": 3}},
    "one short batch, its last part shorter": {"training": {**STEPS, "epochs": 4, "batch_size": 16, "accumulate": 4}},
    "one image at a time": {"training": {**STEPS, "epochs": 2, "accumulate": 2}},
    "channels last": {"training": {**STEPS, "epochs": 2, "channels_last": True}},
    "reduced precision": {"training": {**STEPS, "epochs": 2, "precision": "bf16"}},
    "another head and method": {"student": {"detector": "gfl_conv5_tiny"}, "method": "fitnet",
                                "training": {**STEPS, "epochs": 2}},
}  # fmt: skip


@pytest.mark.parametrize("changes", CASES.values(), ids=CASES)
def test_losses_and_student_are_those_without_it(plans, run, changes):
    first, second = plans("run", **changes)
    cached, plain = run(first), run(second)
    assert_same(cached, plain, [first.out_dir, second.out_dir])
    shares = list(cached.series["teacher/cache_hit_share"].values())
    assert shares[0] == 0.0
    assert max(shares) > 0, "it was of use"
    assert not (first.out_dir / FOLDER).exists()
    assert "on disk until the run ends" in cached.warnings["teacher_cache"]
    assert "teacher_cache_inexact" not in cached.warnings


def test_a_killed_run_goes_on_with_what_is_there(plans, run, start_process):
    options = {"training": {**STEPS, "epochs": 4, "save_every_steps": 2}}
    first, second = plans("killed", **options)
    process = start_process(first)
    process.end_when(lambda event: event.type == "metrics" and event.step == 8, signal.SIGKILL)
    kept = sorted((first.out_dir / FOLDER).rglob("*.safetensors"))
    assert len(kept) >= 12
    kept[0].write_bytes(kept[0].read_bytes()[:-50])  # torn
    spoilt = bytearray(kept[1].read_bytes())
    spoilt[-9] ^= 1
    kept[1].write_bytes(spoilt)
    cached, plain = run(first), run(second)
    (started,) = cached.of("started")
    assert started.resumed_from_step > 0
    later = {name: {step: value for step, value in points.items() if step > started.resumed_from_step}
             for name, points in plain.series.items() if not name.startswith("teacher/AP")}  # fmt: skip
    for name, points in later.items():
        if name.startswith(("loss/", "distill/", "grad/", "areas/", "val/")):
            told = {step: value for step, value in cached.series[name].items() if step > started.resumed_from_step}
            assert told == points, name
    weights = [load_file(plan.out_dir / "checkpoints" / "last.safetensors") for plan in (first, second)]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


def test_two_ranks_share_one_cache(plans, run):
    options = {"student": {"norm": "group"}, "training": {**STEPS, "epochs": 2}, "resources": {"gpus": 2}}
    first, second = plans("ranks", **options)
    cached, plain = run(first, trainer=launcher.run), run(second, trainer=launcher.run)
    assert_same(cached, plain, [first.out_dir, second.out_dir])
    assert max(cached.series["teacher/cache_hit_share"].values()) > 0


def test_a_run_that_the_disk_cannot_hold_is_not_begun(plans, run, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(cache_setup.shutil, "disk_usage", lambda _path: usage(10**6, 10**6 - 1000, 1000))
    done = run(plans("full")[0])
    assert (done.finished.outcome, done.finished.reason) == ("failed", "disk_full")
    assert "1000 B left" in done.finished.detail
    assert "teacher.cache: false" in done.finished.detail


@pytest.fixture
def parts(plans):
    plan = plans("parts", training={**STEPS, "epochs": 3})[0]
    precision = choose_precision(plan.spec.training, gpus=0)
    return build_parts(plan, precision, lambda _event: None), plan


def a_batch(parts, indices: list[int]) -> tuple[ImageList, list[torch.Tensor]]:
    pixels = [parts.train[0, i][0] for i in indices]
    images, _ = parts.student.transform(pixels)
    return images, pixels


def test_what_is_taken_apart_is_put_together_to_the_same_bits_and_strides(parts):
    built, _ = parts
    built.teacher.detector.to(memory_format=torch.channels_last)
    images, _ = a_batch(built, [0, 1, 2])
    with torch.no_grad():
        outputs = built.teacher(images)
    filled = mould_of(outputs).fill(take_apart(outputs), CPU)
    pairs = [*zip(filled.features, outputs.features, strict=True), *zip(filled.valid, outputs.valid, strict=True)]
    pairs += [(filled.boxes_NL4, outputs.boxes_NL4), (filled.anchors_L4, outputs.anchors_L4)]
    pairs += [(filled.head_outputs[name], value) for name, value in outputs.head_outputs.items()]
    for again, before in pairs:
        assert torch.equal(again, before)
        assert (again.stride(), again.dtype) == (before.stride(), before.dtype)
    assert any(not feat_NCHW.is_contiguous() for feat_NCHW in outputs.features), "strides are at stake"
    assert (filled.logits_NLK is filled.head_outputs["cls_logits"]) is (
        outputs.logits_NLK is outputs.head_outputs["cls_logits"]
    )
    assert (filled.strides, filled.num_anchors) == (outputs.strides, outputs.num_anchors)


def test_an_entry_is_of_the_pixels_the_padding_and_the_number_of_images(parts, tmp_path):
    built, _ = parts
    calls = []

    def teacher(images: ImageList):
        calls.append(len(images.image_sizes))
        return built.teacher(images)

    cache = TeacherCache(teacher, tmp_path, "id", lambda code, detail: pytest.fail(detail))
    cache(*a_batch(built, [0, 3]))
    assert calls == [2, 2], "the second to see that the place makes no difference"
    cache(*a_batch(built, [3, 0]))
    assert calls == [2, 2]
    assert cache.hit_share() == 0.5
    cache(*a_batch(built, [0, 3, 6]))
    cache(*a_batch(built, [0, 1]))  # another padding
    assert calls == [2, 2, 3, 2]
    images, pixels = a_batch(built, [0, 3])
    cache(images, [pixels[0], 255 - pixels[1]])
    assert calls == [2, 2, 3, 2, 2]


def test_a_teacher_whose_outputs_depend_on_their_place_is_not_trusted(parts, tmp_path):
    built, _ = parts

    def teacher(images: ImageList):
        outputs = built.teacher(images)
        outputs.logits_NLK[0] += 1e-6
        return outputs

    told = []
    cache = TeacherCache(teacher, tmp_path, "id", lambda code, detail: told.append(code))
    for _ in range(2):
        cache(*a_batch(built, [0, 3]))
    assert (told, cache.hit_share()) == (["teacher_cache_inexact"], 0.0)


def test_without_room_it_reads_what_it_has_and_says_so_once(parts, tmp_path):
    built, _ = parts
    (tmp_path / "id").write_text("a file where the folder should be")
    told = []
    cache = TeacherCache(built.teacher, tmp_path, "id", lambda code, detail: told.append(code))
    for _ in range(2):
        outputs = cache(*a_batch(built, [0, 3]))
    assert torch.equal(outputs.logits_NLK, built.teacher(a_batch(built, [0, 3])[0]).logits_NLK)
    assert told == ["teacher_cache_full"]


def test_other_weights_are_another_identity(parts):
    teacher = parts[0].teacher
    before = identity_of(teacher, channels_last=False)
    assert before == identity_of(teacher, channels_last=False)
    assert before != identity_of(teacher, channels_last=True)
    with torch.no_grad():
        next(teacher.detector.parameters()).view(-1)[0] += 1e-3
    assert before != identity_of(teacher, channels_last=False)


def test_the_forecast_is_what_it_comes_to(plans, run):
    plan = plans("forecast", training={**STEPS, "epochs": 3})[0]
    precision = choose_precision(plan.spec.training, gpus=0)
    parts = build_parts(plan, precision, lambda _event: None)
    expected = forecast(parts.train, parts.teacher, plan.spec)
    sizes: list[int] = []
    kept = TeacherCache.delete

    def weighed(self, *, others_only: bool = False) -> None:
        if not others_only:
            sizes.append(self.bytes_on_disk())
        kept(self, others_only=others_only)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TeacherCache, "delete", weighed)
        done = run(plan)
    assert sizes[0] == pytest.approx(expected.num_bytes, rel=0.05)
    shares = done.series["teacher/cache_hit_share"].values()
    assert sum(shares) / len(shares) == pytest.approx(expected.hit_share, abs=0.01)


def test_what_another_run_left_is_removed(parts):
    built, plan = parts
    stale = plan.out_dir / FOLDER / "0123456789abcdef" / "ab"
    stale.mkdir(parents=True)
    (stale / "ab.safetensors").write_bytes(b"x")
    assert open_cache(built, plan.spec, plan.out_dir, lambda _event: None) is not None
    assert not stale.exists()
    off = plan.spec.model_copy(update={"teacher": plan.spec.teacher.model_copy(update={"cache": False})})
    assert open_cache(built, off, plan.out_dir, lambda _event: None) is None
    shutil.rmtree(plan.out_dir)
