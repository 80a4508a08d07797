"""Weights by torchvision's names and from files: what fits is taken, what does not is named."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.models import get_model, get_model_weights
from torchvision.models.detection import retinanet_resnet50_fpn

from tid_core.catalogue import COCO_CATEGORIES
from tid_core.detectors.build import build_detector, build_teacher
from tid_core.detectors.weights import DETECTOR_WEIGHTS
from tid_core.events import TrainingFailure
from tid_core.plan import TeacherPlan
from tid_core.spec import DataSpec

torch.set_num_threads(1)

CLASSES = ["cat", "dog", "bird"]
SMALL = DataSpec(min_size=[64], max_size=64)
OUTPUTS = "head.classification_head.cls_logits.weight"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of torch's hub, and a network that refuses every connection."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


def into_cache(cache: Path, weights: Any, state: dict[str, Tensor]) -> None:
    torch.save(state, cache / weights.url.rsplit("/", 1)[-1])


def randomised(model: nn.Module) -> dict[str, Tensor]:
    """A state with statistics that are not 0 and 1, so that an epsilon matters."""
    generator = torch.Generator().manual_seed(3)
    state = model.state_dict()
    for key, value in state.items():
        if key.endswith(("running_mean", "running_var")):
            value.copy_(torch.rand(value.shape, generator=generator) * 0.1 + 0.5)
    return state


def tiny(**options: Any) -> nn.Module:
    return build_detector("fcos_conv5_tiny", num_classes=3, data=SMALL, **options).model  # type: ignore[no-any-return]


def test_coco_teacher_equals_torchvisions_builder(cache: Path) -> None:
    """With torchvision's own keys, norm and epsilon: the same numbers to the last bit."""
    weights = DETECTOR_WEIGHTS["retinanet_resnet50_fpn"]["COCO_V1"]
    source = retinanet_resnet50_fpn(weights=None, weights_backbone=None)
    into_cache(cache, weights, randomised(source))
    expected = retinanet_resnet50_fpn(weights=weights, progress=False, score_thresh=0.0, min_size=64).eval()

    teacher, index_K = build_teacher(
        TeacherPlan(detector="retinanet_resnet50_fpn", weights="COCO_V1"), ["dog", "person"], data=SMALL
    )
    assert teacher.model.state_dict().keys() == expected.state_dict().keys()
    assert [COCO_CATEGORIES[i] for i in index_K] == ["dog", "person"]
    assert not teacher.training
    assert not any(p.requires_grad for p in teacher.parameters())
    images, _ = teacher.transform([torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0))])
    with torch.no_grad():
        outputs = teacher.dense_forward(images)
        head = expected.head(list(expected.backbone(images.tensors).values()))
    assert torch.equal(outputs.logits_NLK, head["cls_logits"])
    assert torch.equal(outputs.head_outputs["bbox_regression"], head["bbox_regression"])

    student = build_detector("retinanet_resnet50_fpn", num_classes=2, classes=["dog", "sofa"], weights="COCO_V1")
    given, taken = source.state_dict(), student.model.state_dict()
    assert all(torch.equal(taken[key], given[key]) for key in taken if "cls_logits" not in key)
    # (anchors x classes) rows, the class changing fastest
    rows, source_rows = taken[OUTPUTS].view(9, 2, -1), given[OUTPUTS].view(9, 91, -1)
    assert torch.equal(rows[:, 0], source_rows[:, COCO_CATEGORIES.index("dog")])
    assert not any(torch.equal(rows[:, 1], source_rows[:, i]) for i in range(91))
    trainable = {n.split(".")[2] for n, p in student.model.named_parameters() if "body" in n and p.requires_grad}
    assert trainable == {"layer2", "layer3", "layer4"}


@pytest.mark.parametrize("name", ["retinanet_resnet50_fpn_v2", "fcos_resnet50_fpn"])
def test_standard_models_are_torchvisions(name: str) -> None:
    with torch.device("meta"):
        expected = get_model(name, weights=None, weights_backbone=None)
        found = build_detector(name, num_classes=91).model
    assert {k: v.shape for k, v in found.state_dict().items()} == {k: v.shape for k, v in expected.state_dict().items()}
    assert str(found.backbone) == str(expected.backbone)
    # FCOS's head has a class of its own, which shares the losses' divisors among ranks.
    assert str(found.head).replace("SharedFcosHead", "FCOSHead") == str(expected.head)
    assert found.head.regression_head.__dict__.get("_loss_type") == expected.head.regression_head.__dict__.get(
        "_loss_type"
    )
    for one, other in zip(found.anchor_generator.cell_anchors, expected.anchor_generator.cell_anchors, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("trunk", ["resnet18", "mobilenet_v3_large"])
def test_imagenet_backbone(cache: Path, trunk: str) -> None:
    source = get_model(trunk, weights=None)
    into_cache(cache, get_model_weights(trunk)["IMAGENET1K_V1"], randomised(source))
    model = build_detector(f"fcos_{trunk}_fpn", num_classes=3, weights="imagenet").model
    features = source.features if trunk.startswith("mobile") else source
    given = {key: value for key, value in features.state_dict().items() if not key.endswith("tracked")}
    taken = model.backbone.body.state_dict()
    assert taken
    assert all(torch.equal(taken[key], given[key]) for key in taken)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in model.backbone.body.modules())


def test_weights_that_cannot_be_had(cache: Path) -> None:
    with pytest.raises(TrainingFailure, match=r"weights_unavailable.*resnet18-.*\.pth.*checkpoints"):
        build_detector("fcos_resnet18_fpn", num_classes=3, weights="imagenet")
    with pytest.raises(ValueError, match="has no weights 'COCO_V1'; it has imagenet, IMAGENET1K_V1"):
        build_detector("fcos_resnet18_fpn", num_classes=3, weights="COCO_V1")
    with pytest.raises(ValueError, match="group"):
        build_detector("fcos_resnet18_fpn", num_classes=3, weights="imagenet", norm="group")
    with pytest.raises(ValueError, match="'imagenet' to teach with"):
        build_teacher(TeacherPlan(detector="fcos_resnet18_fpn", weights="imagenet"), ["dog"])
    assert list(cache.iterdir()) == []
    (cache / "resnet18-f37072fd.pth").write_text("half a download")
    with pytest.raises(TrainingFailure, match="weights_unavailable"):
        build_detector("fcos_resnet18_fpn", num_classes=3, weights="imagenet")


@pytest.mark.parametrize("norm", ["batch", "frozen", "group"])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_file_is_taken_as_it_was_trained(tmp_path: Path, suffix: str, norm: str) -> None:
    source, path = tiny(norm=norm), tmp_path / f"student{suffix}"
    if suffix == ".pt":  # wrapped and prefixed as training scripts leave it
        torch.save({"model": {f"module.{k}": v for k, v in source.state_dict().items()}, "epoch": 3}, path)
    else:
        save_file(source.state_dict(), path)
    loaded = tiny(weights=path)
    assert str(loaded) == str(source)
    assert all(torch.equal(value, source.state_dict()[key]) for key, value in loaded.state_dict().items())
    assert all(p.requires_grad for p in loaded.parameters())


def test_classes_of_a_file_meet_by_name(tmp_path: Path) -> None:
    source, path = tiny(), tmp_path / "student.safetensors"
    save_file(source.state_dict(), path, {"classes": "\n".join(CLASSES)})
    given = source.state_dict()
    loaded = build_detector("fcos_conv5_tiny", num_classes=2, classes=["bird", "fish"], weights=path).model.state_dict()
    assert torch.equal(loaded[OUTPUTS][0], given[OUTPUTS][2])
    assert torch.equal(loaded["backbone.fpn.inner_blocks.0.0.weight"], given["backbone.fpn.inner_blocks.0.0.weight"])
    _, index_K = build_teacher(TeacherPlan(detector="fcos_conv5_tiny", file=path), ["bird", "cat"])
    assert index_K.tolist() == [2, 0]
    with pytest.raises(TrainingFailure, match=r"classes_missing.*fish"):
        build_teacher(TeacherPlan(detector="fcos_conv5_tiny", file=path), ["bird", "fish"])
    with pytest.raises(TrainingFailure, match=r"checkpoint_invalid.*3 outputs, not 1 for each of 2 classes"):
        build_detector("fcos_conv5_tiny", num_classes=1, classes=["x"], weights=path, weights_classes=["cat", "dog"])


def _broken(kind: str, path: Path) -> str:
    """Write something that is no fitting checkpoint; what the failure must name."""
    state = tiny().state_dict()
    if kind == "absent":
        return "no such file"
    if kind in ("text", "empty"):
        path.write_bytes(b"" if kind == "empty" else b"not a checkpoint at all\n" * 9)
        return "nothing but tensors"
    if kind == "truncated":
        torch.save(state, path)
        path.write_bytes(path.read_bytes()[:5000])
        return "not a checkpoint"
    if kind == "code":
        torch.save({"model": state, "run": Path("x").exists}, path)
        return "nothing but tensors"
    if kind == "list":
        torch.save([1, 2], path)
        return "no state_dict"
    if kind == "nan":
        state[OUTPUTS][0] = float("nan")
    elif kind == "shape":
        state[OUTPUTS] = state[OUTPUTS][:2]
    else:
        state["head.extra"] = state.pop("backbone.fpn.inner_blocks.0.0.weight")
    torch.save(state, path)
    return {"nan": "not finite: " + OUTPUTS, "shape": r"\[2, 96, 3, 3\] instead of \[3, 96, 3, 3\]"}.get(
        kind, "missing: backbone.fpn.inner_blocks.0.0.weight; unexpected: head.extra"
    )


@pytest.mark.parametrize("kind", ["absent", "text", "empty", "truncated", "code", "list", "nan", "shape", "keys"])
def test_files_that_are_no_checkpoint(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "student.pt"
    told = _broken(kind, path)
    with pytest.raises(TrainingFailure, match=told) as caught:
        tiny(weights=path)
    assert caught.value.reason == "checkpoint_invalid"
    assert str(path) in caught.value.detail


def test_a_text_named_safetensors(tmp_path: Path) -> None:
    path = tmp_path / "student.safetensors"
    path.write_text("{}")
    with pytest.raises(TrainingFailure, match="checkpoint_invalid"):
        tiny(weights=path)


def test_keys_of_old_torchvision(tmp_path: Path) -> None:
    """Files from before version 0.14 call the layers otherwise; torchvision's COCO files are such."""
    source = build_detector("retinanet_resnet18_fpn", num_classes=2).model
    old = {}
    for key, value in source.state_dict().items():
        if "_head.conv." in key:
            head, _, rest = key.partition(".conv.")
            index, _, name = rest.split(".")
            key = f"{head}.conv.{2 * int(index)}.{name}"
        elif "_blocks." in key and "extra" not in key:
            key = key.replace(".0.weight", ".weight").replace(".0.bias", ".bias")
        old[key] = value
    assert "head.regression_head.conv.6.weight" in old
    assert "backbone.fpn.layer_blocks.2.bias" in old
    torch.save(old, tmp_path / "old.pth")
    loaded = build_detector("retinanet_resnet18_fpn", num_classes=2, weights=tmp_path / "old.pth").model.state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in source.state_dict().items())


def test_freezing_stages(tmp_path: Path) -> None:
    path = tmp_path / "student.pt"
    torch.save(tiny().state_dict(), path)
    body = tiny(weights=path, trainable_layers=2).backbone.body
    assert {name.split(".")[0] for name, p in body.named_parameters() if p.requires_grad} == {"3", "4"}
    assert all(p.requires_grad for p in tiny(trainable_layers=2).parameters()), "nothing is frozen at random"
    with pytest.raises(ValueError, match="trainable_layers is 6, but conv5 has 5 stages"):
        tiny(weights=path, trainable_layers=6)


def test_a_classifiers_file_fills_the_backbone(tmp_path: Path) -> None:
    """As `imagenet` does: the trunk's numbers, frozen statistics, the early stages fixed."""
    state = randomised(get_model("mobilenet_v2", weights=None))
    torch.save(state, tmp_path / "mobilenet_v2.pth")
    model = build_detector(
        "fcos_mobilenet_v2_fpn", num_classes=3, data=SMALL, weights=tmp_path / "mobilenet_v2.pth"
    ).model
    body = model.backbone.body.state_dict()
    assert body.keys() <= {key.removeprefix("features.") for key in state}
    assert all(torch.equal(value, state[f"features.{key}"]) for key, value in body.items())
    assert not next(model.backbone.body.parameters()).requires_grad


def test_a_backbone_alone_is_no_teacher(tmp_path: Path) -> None:
    torch.save(get_model("mobilenet_v2", weights=None).state_dict(), tmp_path / "mobilenet_v2.pth")
    plan = TeacherPlan(detector="fcos_mobilenet_v2_fpn", file=tmp_path / "mobilenet_v2.pth", classes=CLASSES)
    with pytest.raises(TrainingFailure, match="a teacher is a whole detector"):
        build_teacher(plan, CLASSES, data=SMALL)
