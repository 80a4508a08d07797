"""What is registered is what is learnt from, in whatever format; VOC's metric is told where it is asked for."""

import json
from pathlib import Path

import yaml

from benchmarks.dataset_formats import to_voc
from tid_core.data.index import IndexOptions, build_index, index_splits
from tid_core.run import main
from tid_core.training.standalone import run_spec


def test_vocs_metric_is_among_the_values_of_a_run(make_plan, run):
    done = run(make_plan(evaluation={"metrics": ["coco", "voc"], "maps": 0}, training={"epochs": 1}))
    assert done.finished.outcome == "succeeded", done.finished
    for name in ("val/AP", "val/VOC07_mAP", "val/VOC_mAP", "teacher/VOC_mAP", "val/class/3/VOC07_AP"):
        assert name in done.series, name
    (best,) = [checkpoint for checkpoint in done.of("checkpoint") if checkpoint.name == "best"]
    card = json.loads((best.files["safetensors"].parent / "best.card.json").read_text())
    assert card["evaluation"]["val/VOC07_mAP"] == done.series["val/VOC07_mAP"][6]


def test_whole_pixels_train_to_the_same_bits_from_voc(dataset, make_plan, run, tmp_path):
    """The boxes of the digits are whole pixels, which VOC can say; YOLO's decimals move some matches."""
    build_index(dataset, tmp_path / "index", name="digits")
    to_voc(dataset, tmp_path / "index", tmp_path / "copy")
    build_index(tmp_path / "copy", tmp_path / "copy-index", name="digits")
    splits = index_splits(tmp_path / "copy", tmp_path / "copy-index")
    plain = make_plan(plain=True, training={"epochs": 1})
    again = make_plan(plain=True, training={"epochs": 1}, out="again")
    first = run(plain)
    done = run(again.model_copy(update={"train": splits["train"], "val": splits["val"]}))
    assert done.series["loss/total"] == first.series["loss/total"]
    assert {k: v for k, v in done.series.items() if k.startswith("val/")} == {
        k: v for k, v in first.series.items() if k.startswith("val/")
    }


def test_without_the_service_options_choose_splits(dataset, tmp_path, capsys):
    """The validation scenes serve as training scenes, too: which is told."""
    content = {
        "student": {"detector": "fcos_conv5_tiny"},
        "dataset": str(dataset),
        "data": {"min_size": [64], "max_size": 96},
        "training": {"epochs": 1, "batch_size": 4, "threads": 1, "device": "cpu", "warmup_steps": 1},
        "evaluation": {"maps": 0},
    }
    spec = tmp_path / "job.yaml"
    spec.write_text(yaml.safe_dump(content))
    options = IndexOptions(splits={"train": "val"}, val_fraction=0.5)
    out = tmp_path / "out"
    assert run_spec(spec, out, None, lambda: False, options) == "succeeded"
    images = {name: json.loads((out / "dataset" / f"{name}.json").read_bytes())["images"] for name in ("train", "val")}
    names = [Path(image["file_name"]) for found in images.values() for image in found]
    assert len(set(names)) == 7
    assert {name.parent.name for name in names} == {"val"}
    capsys.readouterr()
    assert main([str(spec), "--out", str(out), "--dataset-options", '{"val_fractoin": 1}']) == 1
    assert "val_fractoin: Extra inputs" in capsys.readouterr().err
