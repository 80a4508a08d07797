"""Whole runs in this process: what they say, what they leave behind, what they do to the student."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from tid_core.plan import SplitPaths
from tid_core.training.files import sha256_of
from tid_core.training.precision import choose_precision
from tid_core.training.resume import find_state
from tid_core.training.setup import build_parts


def test_a_run_tells_its_whole_story(make_plan, run):
    plan = make_plan(training={"keep_epochs": True})
    done = run(plan)
    assert done.finished.outcome == "succeeded", done.finished
    assert done.events[-1] == done.finished
    (started,) = done.of("started")
    assert (started.resumed_from_step, started.total_steps, started.steps_per_epoch) == (0, 12, 6)
    assert (started.device, started.precision) == ("cpu", "fp32")
    before = done.events[: done.events.index(started)]
    assert {event.type for event in before} <= {"progress", "warning"}

    series = done.series
    assert list(series["loss/total"]) == [2, 4, 6, 8, 10, 12]
    for name in ("loss/classification", "loss/bbox_regression", "distill/high", "grad/norm", "lr", "areas/high/p3"):
        assert list(series[name]) == [2, 4, 6, 8, 10, 12], name
    for step in series["loss/total"]:
        assert series["loss/total"][step] == pytest.approx(series["loss/task"][step] + series["loss/distill"][step])
    assert list(series["grad/distill_ratio"]) == [2, 10]
    assert list(series["teacher/AP"]) == [0]
    assert list(series["val/AP"]) == list(series["val/class/3/AP"]) == [6, 12]

    assert [(c.name, c.epoch) for c in done.of("checkpoint")][:3] == [("last", 1), ("epoch-1", 1), ("best", 1)]
    for checkpoint in done.of("checkpoint")[-2:]:
        assert {kind: sha256_of(path) for kind, path in checkpoint.files.items()} == checkpoint.sha256
    assert [(state.step, state.epoch) for state in done.of("resume_state")] == [(6, 1), (12, 2)]
    phases = [event.phase for event in done.of("progress")]
    assert phases[0] == "setup"
    assert set(phases) == {"setup", "teacher_evaluation", "training", "evaluation", "export"}
    etas = [event.eta_seconds for event in done.of("progress") if event.eta_seconds is not None]
    assert etas[-1] == 0.0
    assert etas[0] > 0.0


def test_detections_and_card_belong_to_the_best_student(make_plan, run):
    plan = make_plan()
    done = run(plan)
    best = [c for c in done.of("checkpoint") if c.name == "best"][-1]
    (artifact,) = done.of("artifact")
    content = json.loads(artifact.path.read_text())
    assert content["step"] == best.step
    assert len(content["images"]) == 7
    assert {result["image_id"] for result in content["results"]} <= {image["id"] for image in content["images"]}
    card = json.loads(best.files["card"].read_text())
    assert card["spec"] == plan.spec.model_dump(mode="json")
    assert card["evaluation"]["val/AP"] == best.ap == max(done.series["val/AP"].values())
    assert card["teacher_ap"] == done.series["teacher/AP"][0]


def test_the_twin_starts_with_the_same_student_on_the_same_batches(make_plan, run):
    size = {"min_size": [48, 64, 80]}  # drawn anew for each image
    first = {"epochs": 1, "log_every_steps": 1}
    taught = run(make_plan(out="taught", data=size, training=first))
    plan = make_plan(out="taught", data=size, training=first)
    twin = run(plan.model_copy(update={"spec": plan.spec.baseline_twin(), "teacher": None, "resume_from": None}))
    for term in ("classification", "bbox_regression", "bbox_ctrness"):
        assert taught.series[f"loss/{term}"][1] == twin.series[f"loss/{term}"][1]
    assert taught.series["loss/task"][3] != twin.series["loss/task"][3]
    assert not [name for name in twin.series if name.startswith(("distill/", "teacher/", "loss/distill"))]


# Recorded on x86-64 CPUs: the first on an Intel Xeon, the second on an AMD EPYC. Another CPU adds up in another order,
# so across machines the values are held to 1e-5; on one machine two runs must agree to the last bit.
GOLDEN = {
    "weighted_mean": {
        "loss/total": [
            16.876575469970703,
            16.33140754699707,
            20.923736572265625,
            13.836479187011719,
            13.359846115112305,
        ],
        "loss/distill": [
            14.08291244506836,
            13.569727897644043,
            18.189756393432617,
            11.113594055175781,
            10.694953918457031,
        ],
    },
    "region_mean": {
        "loss/total": [21.72891616821289, 15.56986141204834, 22.596864700317383, 16.31328773498535, 11.860939025878906],
        "loss/distill": [
            18.935253143310547,
            12.808181762695312,
            19.862642288208008,
            13.58314323425293,
            9.188636779785156,
        ],
    },
}


@pytest.fixture
def blocks(tmp_path: Path) -> SplitPaths:
    """Eight noisy pictures with one bright block each: nothing in them depends on a library's version."""
    random = np.random.default_rng(5)
    images, annotations = [], []
    (tmp_path / "blocks").mkdir()
    for i in range(8):
        picture = random.integers(0, 96, (64, 64, 3)).astype(np.uint8)
        x, y, width, height = (int(v) for v in random.integers(16, 32, 4))
        picture[y : y + height, x : x + width, i % 3] += 128
        Image.fromarray(picture).save(tmp_path / "blocks" / f"{i}.png")
        images.append({"id": i, "file_name": f"{i}.png", "width": 64, "height": 64})
        box = {"id": i, "image_id": i, "bbox": [x, y, width, height], "area": width * height, "iscrowd": 0}
        annotations.append({**box, "category_id": 1 + i % 2})
    categories = [{"id": 1, "name": "3"}, {"id": 2, "name": "7"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (tmp_path / "blocks.json").write_text(json.dumps(content))
    return SplitPaths(images=tmp_path / "blocks", annotations=tmp_path / "blocks.json")


@pytest.mark.parametrize("norm", GOLDEN)
def test_the_first_losses_are_those_recorded(make_plan, run, blocks, norm):
    data = {"min_size": [48, 64], "max_size": 64}

    def losses(out: str) -> dict[str, list[float]]:
        training = {"epochs": 3, "log_every_steps": 1, "lr": 0.001}
        plan = make_plan(out=out, data=data, training=training, tid={"norm": norm})
        done = run(plan.model_copy(update={"train": blocks, "val": blocks}))
        return {name: list(done.series[name].values())[:5] for name in GOLDEN[norm]}

    first, second = losses("first"), losses("second")
    for name, recorded in GOLDEN[norm].items():
        assert [value.hex() for value in first[name]] == [value.hex() for value in second[name]]
        assert first[name] == pytest.approx(recorded, rel=1e-5), f"{name}: {first[name]}"


def test_micro_batches_give_the_gradient_of_the_batch(make_plan, run):
    # RetinaNet averages over images, and GroupNorm does not look at the batch: the split must not matter.
    student = {"detector": "retinanet_conv5_tiny", "norm": "group"}
    whole, parts = (
        run(
            make_plan(
                out=f"accumulate-{accumulate}",
                plain=True,
                student=student,
                data={"flip": 0.0},
                training={"epochs": 1, "accumulate": accumulate, "log_every_steps": 1},
            )
        ).series
        for accumulate in (1, 4)
    )
    for name in ("loss/total", "grad/norm"):
        assert list(whole[name].values()) == pytest.approx(list(parts[name].values()), rel=1e-4), name


def test_the_teacher_is_outside_of_what_is_trained(make_plan, run, teacher_file):
    plan = make_plan()
    parts = build_parts(plan, choose_precision(plan.spec.training, gpus=0), lambda event: None)
    teacher = {id(p) for p in parts.teacher.detector.parameters()}
    assert not teacher & {id(p) for p in parts.module.parameters()}
    assert not any(p.requires_grad for p in parts.teacher.detector.parameters())
    images, targets = parts.train[0, 0]
    batch, resized = parts.student.transform([images], [{"boxes": targets["boxes"], "labels": targets["labels"]}])
    outputs = parts.teacher(batch)
    assert not outputs.logits_NLK.requires_grad
    parts.module.train()
    parts.module(batch, resized, outputs, 1.0).total.backward()
    assert all(p.grad is None for p in parts.teacher.detector.parameters())
    missing = [name for name, p in parts.module.named_parameters() if p.requires_grad and p.grad is None]
    assert missing == []  # what several GPUs need: no parameter without a gradient
    after = parts.teacher.detector.model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in load_file(teacher_file).items())


def test_with_ema_the_average_is_what_is_exported(make_plan, run):
    plan = make_plan(plain=True, training={"ema": True, "epochs": 1})
    assert run(plan).finished.outcome == "succeeded"
    exported = load_file(plan.out_dir / "checkpoints/last.safetensors")
    content = find_state(plan.out_dir / "resume").state.content
    average = {name.removeprefix("model."): value for name, value in content["ema"]["average"].items()}
    trained = content["module"]
    name = "head.classification_head.cls_logits.weight"
    assert torch.equal(exported[name], average[name])
    assert not torch.equal(exported[name], trained[f"student.model.{name}"])


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_reduced_precision_trains_close_to_fp32(make_plan, run, precision):
    steps = {"epochs": 1, "log_every_steps": 1, "channels_last": True}
    reduced = run(make_plan(out=precision, training={**steps, "precision": precision}))
    assert reduced.finished.outcome == "succeeded", reduced.finished
    full = run(make_plan(out="fp32", training=steps))
    (started,) = reduced.of("started")
    assert started.precision == precision
    assert reduced.series["loss/total"][1] == pytest.approx(full.series["loss/total"][1], rel=0.02)
    assert reduced.series["loss/total"][1] != full.series["loss/total"][1]
    assert (
        load_file(reduced.of("checkpoint")[-1].files["safetensors"])["head.classification_head.cls_logits.weight"].dtype
        == torch.float32
    )


def test_settings_that_cannot_have_their_effect_are_told(make_plan, run):
    changes = {"training": {"epochs": 1, "warmup_steps": 6}, "loss": {"distill": 0.0}}
    done = run(make_plan(**changes))
    assert done.finished.outcome == "succeeded"
    assert {"warmup_never_ends", "distillation_off"} <= done.warnings.keys()
    # Neither of the two has learned anything, so the teacher is not the better one.
    assert "teacher_not_better" in done.warnings


def test_a_strong_pull_of_distillation_is_told_once(make_plan, run):
    done = run(make_plan(loss={"distill": 1000.0}, training={"lr": 1e-6}))
    assert [event.code for event in done.of("warning")].count("distill_ratio") == 1
    assert min(done.series["grad/distill_ratio"].values()) > 10.0
