"""GFL, ATSS, RetinaNet and FCOS of mmdetection (Chen et al., arXiv 1906.07155) as detectors of this project.

Names and layouts follow the public definitions: ResNet and FPN with `start_level=1` and five levels, heads with four
3x3 convolutions a tower. docs/import.md says what maps and what does not.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from tid_core.catalogue import COCO_CATEGORIES, DETECTORS, DetectorInfo, close_names
from tid_core.detectors.base import DenseDetector
from tid_core.detectors.build import build_detector
from tid_core.importing.config_text import STYLES
from tid_core.importing.folding import fold_normalisation
from tid_core.importing.names import OLD_OUTPUTS, OUTPUTS, public_name
from tid_core.importing.reading import Checkpoint, State, read_checkpoint
from tid_core.importing.recognise import check_config, find_detector, find_family, find_style, find_trunk
from tid_core.importing.refusal import ImportRefused, some
from tid_core.text import CONTROLS

COCO_80 = tuple(name for name in COCO_CATEGORIES if name not in ("__background__", "N/A"))
"""mmdetection's outputs for COCO: category ids in their order, without the gaps."""
BINS = "bbox_head.integral.project"
"""GFL: 0, 1, ... reg_max, kept as a buffer."""


@dataclass(frozen=True)
class Imported:
    detector: DenseDetector
    classes: list[str]
    style: str
    notes: list[str]
    """What was assumed, in sentences."""


def import_mmdetection(
    path: Path, *, style: str | None = None, detector: str | None = None, classes: Sequence[str] | None = None
) -> Imported:
    """A detector of the catalogue that computes what the checkpoint's did.

    Args:
        style: of the ResNet, `pytorch` or `caffe`; None = as the config in the file says.
        detector: a name of the catalogue, where the file does not tell.
        classes: names of the outputs in their order; None = those in the file, or COCO's where there are 80 outputs.

    Raises:
        ImportRefused: the file cannot be read, is of another architecture, or has keys missing, unknown or of another
            shape; each is named.
    """
    checkpoint = _modern(read_checkpoint(path))
    info, style = _info_and_style(checkpoint, style, detector)
    notes: list[str] = []
    names = _classes(checkpoint, info, classes, notes)
    built = build_detector(info.name, num_classes=len(names), norm="frozen")
    state = _mapped(built, checkpoint)
    _fold(state, checkpoint, style, notes)
    built.model.load_state_dict(state)
    return Imported(built.eval(), names, style, notes)


def _modern(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint with today's names, without counters and GFL's bins."""
    state = {key: value for key, value in checkpoint.state.items() if not key.endswith("num_batches_tracked")}
    for old, new in OLD_OUTPUTS.items():
        for part in ("weight", "bias"):
            if f"bbox_head.{old}.{part}" in state:
                state[f"bbox_head.{new}.{part}"] = state.pop(f"bbox_head.{old}.{part}")
    bins = state.get(BINS)
    if bins is not None and torch.equal(bins.float(), torch.arange(17.0)):
        del state[BINS]
    return Checkpoint(checkpoint.path, state, checkpoint.config, checkpoint.classes)


def _info_and_style(checkpoint: Checkpoint, style: str | None, detector: str | None) -> tuple[DetectorInfo, str]:
    """The entry of the catalogue, and the style of its ResNet."""
    family = find_family(checkpoint.state)
    _, bottlenecks = find_trunk(checkpoint.state)
    check_config(checkpoint, family)
    if detector is None:
        style = find_style(checkpoint, bottlenecks, style)
        return find_detector(checkpoint, style), style
    if detector not in DETECTORS:
        close = ", ".join(close_names(detector)) or "none"
        raise ImportRefused("unknown_detector", f"there is no detector {detector!r}; close are {close}")
    info = DETECTORS[detector]
    if info.family != family:
        raise ImportRefused("other_architecture", f"--detector says {info.family}, the file holds {family}")
    implied = ("caffe" if info.trunk.caffe else "pytorch") if bottlenecks else None
    if style is not None and implied not in (None, style):
        raise ImportRefused("style_contradicted", f"--style says {style}, but {detector} is of style {implied}")
    style = find_style(checkpoint, bottlenecks, style or implied)
    _check_asked(checkpoint, info, style)
    return info, style


def _check_asked(checkpoint: Checkpoint, info: DetectorInfo, style: str) -> None:
    """A detector that was asked for may only settle what the file leaves open."""
    try:
        told = find_detector(checkpoint, style)
    except ImportRefused as refused:
        if refused.code != "head_unknown":
            raise
        return
    if told != info:
        raise ImportRefused("detector_contradicted", f"--detector says {info.name}, the file holds {told.name}")


def _classes(checkpoint: Checkpoint, info: DetectorInfo, given: Sequence[str] | None, notes: list[str]) -> list[str]:
    key = f"bbox_head.{OUTPUTS[info.family][0]}.weight"
    outputs = sum(checkpoint.state[key].shape[:1]) // info.anchors_per_location
    names = list(given) if given is not None else checkpoint.classes
    source = "--classes" if given is not None else "the file's meta"
    if names is None and outputs == len(COCO_80):
        notes.append("the file names no classes; 80 outputs are taken for COCO's in their order")
        names = list(COCO_80)
    if names is None:
        detail = f"{key} has {outputs} classes and the file does not name them; give --classes"
        raise ImportRefused("classes_unknown", detail)
    if len(names) != outputs or len(set(names)) != len(names):
        detail = f"{source} has {len(names)} names ({len(set(names))} different), {key} has {outputs} classes"
        raise ImportRefused("classes_unfit", detail)
    odd = [name for name in names if CONTROLS.search(name) or not name.strip()]
    if odd:
        raise ImportRefused("classes_unfit", f"{source} has names that are empty or hold control characters: {odd}")
    return names


def _mapped(detector: DenseDetector, checkpoint: Checkpoint) -> State:
    """The model's state out of the checkpoint's, every tensor used once.

    Raises:
        ImportRefused: `keys_unfit`, naming in mmdetection's words what is missing, unknown, of another shape or not
            finite.
    """
    wanted = {public_name(detector.info, key): (key, value) for key, value in detector.model.state_dict().items()}
    given = dict(checkpoint.state)
    _no_bias_is_zero(wanted, given)
    shapes = [
        f"{name} {list(given[name].shape)} instead of {list(value.shape)}"
        for name, (_, value) in wanted.items()
        if name in given and given[name].shape != value.shape
    ]
    problems = {
        "missing": [name for name in wanted if name not in given],
        "unknown": [name for name in given if name not in wanted],
        "wrong shape": shapes,
        "not finite": [name for name in wanted if name in given and not given[name].isfinite().all()],
    }
    told = [f"{what}: {some(names)}" for what, names in problems.items() if names]
    if told:
        detail = f"{checkpoint.path} does not fit {detector.info.name}; {'; '.join(told)}"
        raise ImportRefused("keys_unfit", detail)
    return {key: given[name].to(value) for name, (key, value) in wanted.items()}


def _no_bias_is_zero(wanted: dict[str, tuple[str, Tensor]], given: State) -> None:
    """A tower's convolution may lack the bias (FCOS with `conv_bias` off), if all of them do."""
    biases = [name for name in wanted if name.startswith("bbox_head.") and name.endswith(".conv.bias")]
    if not any(name in given for name in biases) and any(name.endswith("gn.weight") for name in wanted):
        given.update({name: torch.zeros_like(wanted[name][1]) for name in biases})


def _fold(state: State, checkpoint: Checkpoint, style: str, notes: list[str]) -> None:
    said = checkpoint.config.normalisation()
    if said is None:
        notes.append(f"the file's config gives no normalisation of its images; taken to be that of style {style}")
    weight, mean = "backbone.body.conv1.weight", "backbone.body.bn1.running_mean"
    state[weight], state[mean], levels = fold_normalisation(state[weight], state[mean], said or STYLES[style])
    if levels > 0.01:
        off = f"up to {levels:.2f} of 255 grey levels from ImageNet's"
        notes.append(f"its mean colour is {off}: folded in exactly but for the padding around the image")
