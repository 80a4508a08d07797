"""Weights from torchvision and from files, and what to do where they do not fit."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from pickle import UnpicklingError
from zipfile import BadZipFile, ZipFile, is_zipfile

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.models import WeightsEnum, get_model_weights
from torchvision.models.detection import (
    FCOS_ResNet50_FPN_Weights,
    RetinaNet_ResNet50_FPN_V2_Weights,
    RetinaNet_ResNet50_FPN_Weights,
)

from tid_core.catalogue import DetectorInfo
from tid_core.detectors.backbones import Norm
from tid_core.events import TrainingFailure

State = dict[str, Tensor]

DETECTOR_WEIGHTS: dict[str, type[WeightsEnum]] = {
    "retinanet_resnet50_fpn": RetinaNet_ResNet50_FPN_Weights,
    "retinanet_resnet50_fpn_v2": RetinaNet_ResNet50_FPN_V2_Weights,
    "fcos_resnet50_fpn": FCOS_ResNet50_FPN_Weights,
}
CLASS_OUTPUTS = ("head.classification_head.cls_logits.weight", "head.classification_head.cls_logits.bias")
NAMED = 4
"""Keys named in a message before the rest is counted."""


def read_state(path: Path) -> State:
    """A state_dict from a .safetensors file, or from a .pt/.pth read with `weights_only=True`.

    A training checkpoint that keeps it under `model` or `state_dict` will do.

    Raises:
        TrainingFailure: `checkpoint_invalid`: there is no such file, or it is no checkpoint.
    """
    if not path.is_file():
        raise _invalid(path, "there is no such file")
    _refuse_compressed(path)
    try:
        loaded = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except Exception as error:  # an unpickler fed with something else raises whatever it likes
        # torch's own advice for a pickle is to read it unsafely.
        is_pickle = path.suffix != ".safetensors" and not isinstance(error, RuntimeError)
        why = f"{type(error).__name__}: a .pt may hold nothing but tensors" if is_pickle else _first_line(error)
        raise _invalid(path, f"not a checkpoint that can be read safely ({why})") from error
    for wrapper in ("model", "state_dict"):
        if isinstance(loaded, Mapping) and isinstance(loaded.get(wrapper), Mapping):
            loaded = loaded[wrapper]
    if not isinstance(loaded, Mapping) or not loaded or not all(isinstance(v, Tensor) for v in loaded.values()):
        raise _invalid(path, "holds no state_dict (a mapping of names to tensors)")
    return {str(key).removeprefix("module."): value for key, value in loaded.items()}


def _refuse_compressed(path: Path) -> None:
    """torch.save compresses nothing, and a small file that does could unpack to more than the memory holds."""
    if path.suffix == ".safetensors" or not is_zipfile(path):
        return
    try:
        with ZipFile(path) as archive:
            compressed = [entry for entry in archive.infolist() if entry.file_size > entry.compress_size]
    except (BadZipFile, OSError, ValueError, NotImplementedError, RuntimeError) as error:
        raise _invalid(path, f"not a checkpoint that can be read safely ({_first_line(error)})") from error
    if compressed:
        raise _invalid(path, "its content is compressed, which torch.save never does")


def file_classes(path: Path) -> list[str] | None:
    """Class names kept in a safetensors file that this project wrote; None for any other file."""
    if path.suffix != ".safetensors" or not path.is_file():
        return None
    try:
        with safe_open(path, "pt") as file:
            names = (file.metadata() or {}).get("classes")
    except Exception as error:  # safetensors' own error type is not public
        raise _invalid(path, f"not a safetensors file ({_first_line(error)})") from error
    return names.split("\n") if names else None


def torchvision_state(info: DetectorInfo, name: str) -> State:
    """torchvision's weights `name` for the whole detector or, with the keys of the trunk alone, for its backbone.

    Raises:
        ValueError: the detector has no such weights.
        TrainingFailure: `weights_unavailable`: they are neither in torch's cache nor to be downloaded.
    """
    if name in info.weights:
        return modern_keys(info, _fetch(DETECTOR_WEIGHTS[info.name][name]))
    name = info.trunk.weights[0] if name == "imagenet" and info.trunk.weights else name
    if name not in info.trunk.weights:
        known = [*info.weights, *(["imagenet"] if info.has_imagenet else []), *info.trunk.weights]
        raise ValueError(f"{info.name} has no weights {name!r}; it has {', '.join(known) or 'none, only files'}")
    return trunk_keys(_fetch(get_model_weights(info.trunk.builder)[name]))


def is_trunk(state: State) -> bool:
    """Whether this is a backbone alone, such as torchvision's classifiers have, and no detector."""
    return not any(key.startswith("backbone.") for key in state)


def trunk_keys(state: State) -> State:
    """The keys of a torchvision classifier as the trunk of a detector has them."""
    return {key.removeprefix("features."): value for key, value in state.items()}


def _fetch(weights: WeightsEnum) -> State:
    try:
        state: State = weights.get_state_dict(progress=False, check_hash=True)
    except (OSError, RuntimeError, EOFError, UnpicklingError) as error:  # no network, no space, a broken download
        target = Path(torch.hub.get_dir()) / "checkpoints" / weights.url.rsplit("/", 1)[-1]
        detail = f"cannot load {weights.url} ({_first_line(error)}); a copy may be put at {target}"
        raise TrainingFailure("weights_unavailable", detail) from error
    return state


def modern_keys(info: DetectorInfo, state: State) -> State:
    """Rename the keys of files written before torchvision 0.14, as its own loader does."""
    renamed = {}
    for key, value in state.items():
        key = re.sub(r"(fpn\.\w+_blocks\.\d+)\.(weight|bias)$", r"\1.0.\2", key)
        if info.family == "retinanet":
            key = re.sub(r"_head\.conv\.(\d+)\.(weight|bias)$", lambda m: f"_head.conv.{int(m[1]) // 2}.0.{m[2]}", key)
        renamed[key] = value
    return renamed


def norm_of(state: State) -> Norm:
    """The backbone normalisation that a checkpoint was trained with."""
    body = [key for key in state if key.startswith("backbone.body.")]
    if any(key.endswith("num_batches_tracked") for key in body):
        return "batch"
    return "frozen" if any(key.endswith("running_var") for key in body) else "group"


def match_classes(
    state: State, model: nn.Module, *, source_classes: Sequence[str], classes: Sequence[str], anchors: int, source: str
) -> State:
    """The state with class outputs for `classes`: rows copied where the names meet, fresh elsewhere.

    Raises:
        TrainingFailure: `checkpoint_invalid`: there are not as many outputs as names in `source_classes`.
    """
    pairs = [(i, list(source_classes).index(name)) for i, name in enumerate(classes) if name in source_classes]
    fresh = model.state_dict()
    matched = dict(state)
    for key in CLASS_OUTPUTS:
        if key not in state:
            continue
        if len(state[key]) != anchors * len(source_classes):
            detail = f"{key} has {len(state[key])} outputs, not {anchors} for each of {len(source_classes)} classes"
            raise _invalid(source, detail)
        rows = fresh[key].clone()
        by_class = rows.view(anchors, len(classes), *rows.shape[1:])
        for new, old in pairs:
            by_class[:, new] = state[key].view(anchors, len(source_classes), *rows.shape[1:])[:, old]
        matched[key] = rows
    return matched


def load_state(module: nn.Module, state: State, *, source: str) -> None:
    """Load a state that must fit in every name and shape (BatchNorm's counters apart).

    Raises:
        TrainingFailure: `checkpoint_invalid`, naming the source and the keys that do not fit.
    """
    wanted = {key: value for key, value in module.state_dict().items() if not _counter(key)}
    given = {key: value for key, value in state.items() if not _counter(key)}
    shapes = [
        f"{key} {list(given[key].shape)} instead of {list(value.shape)}"
        for key, value in wanted.items()
        if key in given and given[key].shape != value.shape
    ]
    problems = {
        "missing": [key for key in wanted if key not in given],
        "unexpected": [key for key in given if key not in wanted],
        "wrong shape": shapes,
        "not finite": [key for key in wanted if _same_shape(given, wanted, key) and not given[key].isfinite().all()],
    }
    told = [f"{what}: {_some(keys)}" for what, keys in problems.items() if keys]
    if told:
        raise _invalid(source, "does not fit the detector; " + "; ".join(told))
    module.load_state_dict(state, strict=False)


def _same_shape(given: State, wanted: State, key: str) -> bool:
    """What has another shape is not looked into: a view can claim to be larger than any memory."""
    return key in given and given[key].shape == wanted[key].shape


def _counter(key: str) -> bool:
    return key.endswith("num_batches_tracked")


def _some(keys: Sequence[str]) -> str:
    rest = f" and {len(keys) - NAMED} more" if len(keys) > NAMED else ""
    return ", ".join(keys[:NAMED]) + rest


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _invalid(source: Path | str, detail: str) -> TrainingFailure:
    return TrainingFailure("checkpoint_invalid", f"{source}: {detail}")
