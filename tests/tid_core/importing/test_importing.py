"""What is read off a checkpoint, what is refused and with which words, and what the written file is good for."""

import json
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tid_core.catalogue import COCO_CATEGORIES
from tid_core.detectors.build import build_detector, build_teacher
from tid_core.detectors.weights import file_classes
from tid_core.distillers import build_distiller
from tid_core.importing.__main__ import main
from tid_core.importing.config_text import ConfigText, Normalisation
from tid_core.importing.folding import OURS, fold_normalisation
from tid_core.importing.mmdetection import COCO_80, import_mmdetection
from tid_core.importing.recognise import find_trunk
from tid_core.importing.refusal import ImportRefused
from tid_core.plan import TeacherPlan
from tid_core.spec import DataSpec, JobSpec
from tid_core.training.precision import Precision
from tid_core.training.step import Teacher, TrainingStep

torch.set_num_threads(1)


def refused(path: Path, **options: Any) -> ImportRefused:
    with pytest.raises(ImportRefused) as caught:
        import_mmdetection(path, **options)
    return caught.value


def rename(state: dict[str, Any], old: str, new: str) -> None:
    state[new] = state.pop(old)


# ---- keys


def test_what_does_not_map_is_named(tmp_path: Path, public: Any) -> None:
    source = public("gfl", 18)
    state = source.state()
    del state["neck.lateral_convs.1.conv.bias"]
    state["bbox_head.extra.weight"] = torch.zeros(1)
    state["backbone.layer3.0.conv1.weight"] = torch.zeros(256, 64, 3, 3)
    state["bbox_head.gfl_reg.bias"] = torch.full((68,), float("nan"))
    error = refused(source.save(tmp_path / "x.pth", state))
    assert error.code == "keys_unfit"
    for told in (
        "missing: neck.lateral_convs.1.conv.bias;",
        "unknown: bbox_head.extra.weight;",
        "wrong shape: backbone.layer3.0.conv1.weight [256, 64, 3, 3] instead of [256, 128, 3, 3];",
        "not finite: bbox_head.gfl_reg.bias",
        "gfl_resnet18_fpn",
    ):
        assert told in error.detail


@pytest.mark.parametrize("levels", [4, 17])
def test_bins_of_another_range_are_unknown(tmp_path: Path, public: Any, levels: int) -> None:
    source = public("gfl", 18)
    state = source.state()
    state["bbox_head.integral.project"] = torch.linspace(0, 8, levels)
    assert "bbox_head.integral.project" in refused(source.save(tmp_path / "x.pth", state)).detail


def test_half_of_the_towers_biases_are_missing(tmp_path: Path, public: Any) -> None:
    source = public("fcos", 18)
    state = source.state()
    del state["bbox_head.reg_convs.2.conv.bias"]
    assert "missing: bbox_head.reg_convs.2.conv.bias" in refused(source.save(tmp_path / "x.pth", state)).detail


def test_another_architecture_is_told_by_its_keys(tmp_path: Path, public: Any) -> None:
    source = public("retinanet", 18)
    body = {key: value for key, value in source.state().items() if not key.startswith("bbox_head.")}
    faster = {**body, "rpn_head.rpn_cls.weight": torch.zeros(3), "roi_head.bbox_head.fc_cls.weight": torch.zeros(3)}
    error = refused(source.save(tmp_path / "faster.pth", faster))
    assert error.code == "other_architecture"
    assert "rpn_head.rpn_cls.weight, roi_head.bbox_head.fc_cls.weight" in error.detail
    error = refused(source.save(tmp_path / "tood.pth", {**body, "bbox_head.tood_cls.weight": torch.zeros(3)}))
    assert "bbox_head.tood_cls.weight" in error.detail
    assert (
        "backbone.conv1.weight"
        in refused(source.save(tmp_path / "trunk.pth", {"backbone.conv1.weight": body["backbone.conv1.weight"]})).detail
    )


def test_another_backbone_is_told(tmp_path: Path, public: Any) -> None:
    source = public("gfl", 18)
    state = source.state()
    deeper = {**state, "backbone.layer3.2.conv1.weight": torch.zeros(256, 256, 3, 3)}
    error = refused(source.save(tmp_path / "x.pth", deeper))
    assert (error.code, "[2, 2, 3, 2]" in error.detail) == ("other_backbone", True)
    swin = {key.replace("backbone.layer", "backbone.stages."): value for key, value in state.items()}
    assert "backbone.stages.1.0.conv1.weight" in refused(source.save(tmp_path / "x.pth", swin)).detail
    dcn = {**state, "backbone.layer2.0.conv2.conv_offset.weight": torch.zeros(1)}
    assert "unknown: backbone.layer2.0.conv2.conv_offset.weight" in refused(source.save(tmp_path / "x.pth", dcn)).detail


def test_depths() -> None:
    for blocks, bottleneck, name in (((3, 4, 6, 3), False, "resnet34"), ((3, 4, 23, 3), True, "resnet101")):
        convolutions = 3 if bottleneck else 2
        state = {
            f"backbone.layer{stage}.{block}.conv{i}.weight": torch.zeros(1)
            for stage, count in enumerate(blocks, 1)
            for block in range(count)
            for i in range(1, convolutions + 1)
        }
        assert find_trunk(state) == (name, bottleneck)


def test_old_names_prefixes_and_precision(tmp_path: Path, public: Any) -> None:
    """FCOS of mmdetection 2.0, saved from DataParallel in half precision."""
    source = public("fcos", 18)
    state = source.state()
    for new, old in (("conv_cls", "fcos_cls"), ("conv_reg", "fcos_reg"), ("conv_centerness", "fcos_centerness")):
        for part in ("weight", "bias"):
            rename(state, f"bbox_head.{new}.{part}", f"bbox_head.{old}.{part}")
    halves = {f"module.{key}": value.half() if value.is_floating_point() else value for key, value in state.items()}
    loaded = import_mmdetection(source.save(tmp_path / "x.pth", halves)).detector.model.state_dict()
    assert torch.equal(
        loaded["head.classification_head.cls_logits.weight"], state["bbox_head.fcos_cls.weight"].half().float()
    )
    assert {value.dtype for value in loaded.values()} == {torch.float32}


# ---- reading


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("ran"),)


def test_nothing_in_a_file_is_run(tmp_path: Path, public: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = public("gfl", 18).save(tmp_path / "x.pth", meta={"hook": Evil()})
    error = refused(path)
    assert error.code == "unsafe"
    assert "pathlib" in error.detail
    assert "weights_only=False" not in error.detail
    assert not Path("ran").exists()


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (None, "unreadable"),
        (b"", "unreadable"),
        (b"<html>404</html>" * 99, "unreadable"),
        ([1, 2], "no_state_dict"),
        ({"state_dict": {}}, "no_state_dict"),
        ({"state_dict": {"a": 1}}, "no_state_dict"),
    ],
)
def test_files_that_are_no_checkpoints(tmp_path: Path, content: Any, code: str) -> None:
    path = tmp_path / "x.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    error = refused(path)
    assert error.code == code
    assert str(path) in error.detail


def test_the_older_format_of_torch(tmp_path: Path, public: Any) -> None:
    """Which mmdetection publishes its checkpoints in."""
    source = public("gfl", 18)
    whole = {"meta": source.meta(), "state_dict": source.state()}
    torch.save(whole, tmp_path / "x.pth", _use_new_zipfile_serialization=False)
    assert import_mmdetection(tmp_path / "x.pth").detector.info.name == "gfl_resnet18_fpn"


def test_a_truncated_file(tmp_path: Path, public: Any) -> None:
    path = public("gfl", 18).save(tmp_path / "x.pth")
    path.write_bytes(path.read_bytes()[:-1000])
    assert refused(path).code == "unreadable"


class HistoryBuffer:
    """As mmengine pickles its curves: arrays, and its own methods through getattr."""

    def __init__(self) -> None:
        self.history = np.arange(3.0)
        self.count = np.array([np.int64(1)])
        self.methods = OrderedDict(min=HistoryBuffer.least)

    def least(self) -> float:
        return float(self.history.min())


def test_a_trainings_own_checkpoint(tmp_path: Path, public: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """mmengine keeps curves beside the weights; they are passed over."""
    monkeypatch.setattr(HistoryBuffer, "__module__", "mmengine.logging.history_buffer")
    module = type(pytest)("mmengine.logging.history_buffer")
    module.HistoryBuffer = HistoryBuffer  # type: ignore[attr-defined]
    with monkeypatch.context() as patched:
        for name in ("mmengine", "mmengine.logging"):
            patched.setitem(__import__("sys").modules, name, type(pytest)(name))
        patched.setitem(__import__("sys").modules, "mmengine.logging.history_buffer", module)
        source = public("gfl", 18)
        meta = {"cfg": source.meta()["config"], "dataset_meta": {"CLASSES": ("a", "b", "c", "d", "e")}}
        whole = {"meta": meta, "state_dict": source.state(), "message_hub": {"log_scalars": {"loss": HistoryBuffer()}}}
        torch.save(whole, tmp_path / "epoch_12.pth")
    assert import_mmdetection(tmp_path / "epoch_12.pth").classes == list("abcde")


# ---- what the config tells

CAFFE = "norm_cfg = dict(mean=[103.53, 116.28, 123.675], std=[1.0, 1.0, 1.0], to_rgb=False)"


def test_normalisation_of_a_config() -> None:
    caffe = Normalisation((103.53, 116.28, 123.675), (1.0, 1.0, 1.0), rgb=False)
    assert ConfigText(CAFFE).normalisation() == caffe
    new = "dict(bgr_to_rgb=False, mean=[\n103.53,\n116.28, 123.675], std=[1.0, 1.0, 1.0]), init=dict(std=0.01)"
    assert ConfigText(new).normalisation() == caffe
    assert ConfigText(CAFFE + CAFFE.replace("103.53", "102.9801")).normalisation() is None
    assert ConfigText("").normalisation() is None
    assert ConfigText("target_means=[0., 0., 0.], target_stds=[1., 1., 1.], to_rgb=True").normalisation() is None


def test_folding_our_own_normalisation_changes_no_bit() -> None:
    weight, mean = torch.rand(4, 3, 7, 7), torch.rand(4)
    same_weight, same_mean, levels = fold_normalisation(weight, mean, OURS)
    assert same_weight is weight
    assert same_mean is mean
    assert levels == 0


def test_style_of_bottlenecks_must_be_known(tmp_path: Path, public: Any) -> None:
    source = public("retinanet", 50, caffe=True)
    silent = source.save(tmp_path / "silent.pth", meta={})
    assert refused(silent, classes=list("abcde")).code == "style_unknown"
    imported = import_mmdetection(silent, detector="retinanet_resnet50_caffe_fpn_mm", classes=list("abcde"))
    assert imported.style == "caffe"
    assert "style caffe" in imported.notes[0]
    speaking = source.save(tmp_path / "speaking.pth")
    assert refused(speaking, style="pytorch").code == "style_contradicted"
    assert refused(speaking, detector="retinanet_resnet50_fpn_mm").code == "style_contradicted"
    assert refused(speaking, detector="gfl_resnet50_fpn").code == "other_architecture"
    assert "retinanet_resnet50" in refused(speaking, detector="retinanet_resnet5_fpn").detail
    gfl = public("gfl", 50, caffe=True).save(tmp_path / "gfl.pth")
    assert "gfl_resnet50_caffe_fpn" in refused(gfl).detail


def test_fcos_without_a_config_needs_its_name(tmp_path: Path, public: Any) -> None:
    source = public("fcos", 18)
    path = source.save(tmp_path / "x.pth", meta={"CLASSES": source.meta()["CLASSES"]})
    error = refused(path)
    assert (error.code, "--detector" in error.detail) == ("head_unknown", True)
    assert import_mmdetection(path, detector="fcos_resnet18_fpn_mm").detector.info.flavour == "mm"
    assert refused(path, detector="fcos_resnet18_fpn").code == "keys_unfit"


def test_a_detector_asked_for_may_not_contradict_the_file(tmp_path: Path, public: Any) -> None:
    speaking = public("fcos", 50, caffe=True, exponential=True).save(tmp_path / "x.pth")
    error = refused(speaking, detector="fcos_resnet50_caffe_fpn_mm")
    assert error.code == "detector_contradicted"
    assert "fcos_resnet50_caffe_fpn_mm_exp" in error.detail
    both = public("fcos", 18).meta()
    both["config"] += "other = dict(norm_on_bbox=False)"
    assert refused(public("fcos", 18).save(tmp_path / "both.pth", meta=both)).code == "head_unknown"


@pytest.mark.parametrize(
    ("family", "old", "new", "told"),
    [
        ("fcos", "centerness_on_reg=True", "centerness_on_reg=False", "norm_on_bbox=True, centerness_on_reg=False"),
        ("fcos", "relu_before_extra_convs=True", "relu_before_extra_convs=False", "of fcos only True can"),
        ("fcos", "relu_before_extra_convs=True", "num_outs=5", "relu_before_extra_convs=False"),
        ("atss", "type='ResNet'", "norm=dict(num_groups=16)", "num_groups=16"),
        ("gfl", "type='ResNet'", "add_extra_convs='on_lateral'", "add_extra_convs=on_lateral"),
        ("retinanet", "type='ResNet'", "target_stds=[0.1, 0.1, 0.2, 0.2]", "target_stds=[0.1,0.1,0.2,0.2]"),
        ("gfl", "type='ResNet'", "type='ResNet', octave_base_scale=4", "octave_base_scale=4; of gfl only 8"),
        ("retinanet", "type='ResNet'", "type='ResNet', ratios=[1.0]", "only [0.5, 1.0, 2.0]"),
    ],
)
def test_heads_that_cannot_be_held(tmp_path: Path, public: Any, family: str, old: str, new: str, told: str) -> None:
    source = public(family, 18)
    meta = source.meta()
    assert old in meta["config"]
    meta["config"] = meta["config"].replace(old, new)
    error = refused(source.save(tmp_path / "x.pth", meta=meta))
    assert error.code == "head_unsupported"
    assert told in error.detail


# ---- classes


def test_classes(tmp_path: Path, public: Any) -> None:
    assert len(COCO_80) == 80
    assert (COCO_80[0], COCO_80[11], COCO_80[79]) == ("person", "stop sign", "toothbrush")
    assert set(COCO_80) < set(COCO_CATEGORIES)
    source = public("gfl", 18)
    silent = source.save(tmp_path / "silent.pth", meta={})
    assert refused(silent).code == "classes_unknown"
    assert import_mmdetection(silent, classes=list("vwxyz")).classes == list("vwxyz")
    assert "4 names" in refused(silent, classes=list("vwxy")).detail
    assert "4 different" in refused(silent, classes=list("vwxyy")).detail
    for odd in ("y\nz", " "):
        assert repr(odd) in refused(silent, classes=[*"vwxy", odd]).detail
    scalar = {**source.state(), "bbox_head.gfl_cls.weight": torch.tensor(1.0)}
    assert "0 classes" in refused(source.save(tmp_path / "scalar.pth", scalar)).detail
    whole = public("gfl", 18, num_classes=80).save(tmp_path / "coco.pth", meta={})
    imported = import_mmdetection(whole)
    assert imported.classes == list(COCO_80)
    assert any("COCO" in note for note in imported.notes)


# ---- the file


def test_the_written_file(tmp_path: Path, public: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """A teacher and a student of it are the imported detector, and meet a dataset's classes by name."""
    source = public("atss", 18)
    state = source.state()
    path = source.save(tmp_path / "x.pth", state)
    out = tmp_path / "sub" / "x.safetensors"
    arguments = [str(path), "--from", "mmdetection", "--classes", '["cat", "dog", "emu", "fox", "gnu"]', "-o", str(out)]
    assert main(arguments) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["detector"] == "atss_resnet18_fpn"
    assert answer["notes"] == []
    assert file_classes(out) == answer["classes"] == ["cat", "dog", "emu", "fox", "gnu"]
    first = out.read_bytes()
    assert main(arguments) == 0
    assert out.read_bytes() == first

    plan = TeacherPlan(detector="atss_resnet18_fpn", file=out)
    teacher, index_K = build_teacher(plan, ["gnu", "cat"], data=DataSpec(min_size=[64], max_size=64))
    assert index_K.tolist() == [4, 0]
    held = teacher.model.state_dict()
    assert torch.equal(held["head.classification_head.cls_logits.weight"], state["bbox_head.atss_cls.weight"])
    assert torch.equal(held["backbone.body.conv1.weight"], state["backbone.conv1.weight"])
    assert held.keys() == load_file(out).keys()

    student = build_detector("atss_resnet18_fpn", num_classes=2, classes=["gnu", "cat"], weights=out).model.state_dict()
    rows = student["head.classification_head.cls_logits.weight"]
    assert torch.equal(rows, state["bbox_head.atss_cls.weight"][[4, 0]])


def test_an_imported_teacher_teaches(tmp_path: Path, public: Any) -> None:
    """One step of TID from an imported file, read as `{file: ...}`, into a student of mmdetection's flavour."""
    out = tmp_path / "teacher.safetensors"
    path = public("gfl", 18).save(tmp_path / "x.pth", meta={})
    assert main([str(path), "--from", "mmdetection", "--classes", '["a", "b", "c", "d", "e"]', "-o", str(out)]) == 0
    spec = JobSpec.model_validate(
        {
            "teacher": {"detector": "gfl_resnet18_fpn", "weights": {"file": str(out)}},
            "student": {"detector": "fcos_resnet18_fpn_mm"},
            "dataset": "d",
            "data": {"min_size": [96], "max_size": 96},
        }
    )
    precision = Precision(torch.device("cpu"), "fp32")
    plan = TeacherPlan(detector="gfl_resnet18_fpn", file=out)
    teacher = Teacher(*build_teacher(plan, ["c", "a"], data=spec.data), precision)
    torch.manual_seed(0)
    student = build_detector("fcos_resnet18_fpn_mm", num_classes=2, data=spec.data)
    step = TrainingStep(student, build_distiller(spec, student, teacher.detector), spec.loss, precision)
    target = {"boxes": torch.tensor([[10.0, 12.0, 70.0, 80.0]]), "labels": torch.tensor([1])}
    images, targets = student.transform([torch.rand(3, 96, 96)], [target])
    losses = step(images, targets, teacher(images), 1.0)
    assert losses.distill is not None
    assert losses.distill > 0
    losses.total.backward()
    scales = [scale.scale.grad for scale in student.model.head.scales]
    assert any(gradient is not None and gradient.abs() > 0 for gradient in scales)


def test_a_refusal_on_the_command_line(tmp_path: Path, public: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """Also where nothing can be written."""
    out = tmp_path / "x.safetensors"
    assert main([str(tmp_path / "none.pth"), "--from", "mmdetection", "-o", str(out)]) == 3
    answer = json.loads(capsys.readouterr().out)
    assert answer["code"] == "unreadable"
    assert "no such file" in answer["detail"]
    path = public("gfl", 18).save(tmp_path / "x.pth")
    assert main([str(path), "--from", "mmdetection", "-o", str(path / "x.safetensors")]) == 3
    answer = json.loads(capsys.readouterr().out)
    assert answer["code"] == "not_written"
    assert [one.name for one in tmp_path.iterdir()] == ["x.pth"]
