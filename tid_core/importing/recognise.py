"""Which detector a state_dict of mmdetection belongs to: by its keys and shapes, by its config where these are mute."""

import re
from ast import literal_eval
from collections.abc import Iterable

from tid_core.catalogue import DETECTORS, DetectorInfo, Family
from tid_core.importing.names import OUTPUTS
from tid_core.importing.reading import Checkpoint, State
from tid_core.importing.refusal import ImportRefused, some

_DEPTHS: dict[tuple[bool, tuple[int, ...]], int] = {
    (False, (2, 2, 2, 2)): 18,
    (False, (3, 4, 6, 3)): 34,
    (True, (3, 4, 6, 3)): 50,
    (True, (3, 4, 23, 3)): 101,
}
"""(bottlenecks?, blocks of each stage) of the ResNets that can be imported."""

_ELSEWHERE = ("roi_head.", "rpn_head.", "mask_head.", "bbox_head.transformer.", "encoder.", "decoder.", "query_head.")
"""Beginnings of keys that only detectors of other kinds have."""

_ONE_ANCHOR: dict[str, tuple[object, ...]] = {
    "octave_base_scale": (8,),
    "scales_per_octave": (1,),
    "ratios": ([1.0],),
    "center_offset": (0.0,),
    "num_groups": (32,),
    "add_extra_convs": ("on_output", True),
    "relu_before_extra_convs": (False,),
}
_HOLDABLE: dict[Family, dict[str, tuple[object, ...]]] = {
    "retinanet": {
        "octave_base_scale": (4,),
        "scales_per_octave": (3,),
        "ratios": ([0.5, 1.0, 2.0],),
        "center_offset": (0.0,),
        "target_stds": ([1.0, 1.0, 1.0, 1.0],),
        "relu_before_extra_convs": (False,),
    },
    "fcos": {
        "num_groups": (32,),
        "add_extra_convs": ("on_output", True),
        "relu_before_extra_convs": (True,),
    },
    "gfl": _ONE_ANCHOR,
    "atss": {**_ONE_ANCHOR, "target_stds": ([0.1, 0.1, 0.2, 0.2],)},
}
"""Settings of a config that no shape shows, with the values that the detectors here can hold."""


def find_family(state: State) -> Family:
    """Raises ImportRefused `other_architecture`, naming the keys that tell."""
    other = [key for key in state if key.startswith(_ELSEWHERE)]
    found = [family for family, (classes, *_) in OUTPUTS.items() if f"bbox_head.{classes}.weight" in state]
    if other or len(found) != 1 or (found == ["fcos"] and "bbox_head.conv_centerness.weight" not in state):
        telling = other or [key for key in state if not key.startswith(("backbone.", "neck."))] or list(state)
        detail = f"not one of RetinaNet, FCOS, GFL, ATSS as mmdetection has them; it holds {some(telling)}"
        raise ImportRefused("other_architecture", detail)
    return found[0]


def find_trunk(state: State) -> tuple[str, bool]:
    """`resnet18` and the like, and whether it has bottlenecks.

    Raises:
        ImportRefused: `other_backbone`.
    """
    blocks = [_count(key for key in state if key.startswith(f"backbone.layer{stage}.")) for stage in range(1, 5)]
    bottlenecks = "backbone.layer1.0.conv3.weight" in state
    depth = _DEPTHS.get((bottlenecks, tuple(blocks)))
    if depth is None:
        has = some([key for key in state if key.startswith("backbone.")]) or "no key that starts with `backbone.`"
        detail = f"its backbone is no ResNet-18, 34, 50 or 101 (blocks a stage: {blocks}); it has {has}"
        raise ImportRefused("other_backbone", detail)
    return f"resnet{depth}", bottlenecks


def _count(keys: Iterable[str]) -> int:
    return len({key.split(".")[2] for key in keys})


def find_style(checkpoint: Checkpoint, bottlenecks: bool, asked: str | None) -> str:
    """`pytorch` or `caffe`: where the stride is, which no shape shows.

    Raises:
        ImportRefused: `style_unknown`, or `style_contradicted` by the file's config.
    """
    said = checkpoint.config.value("style")
    if asked is not None and said is not None and asked != said:
        raise ImportRefused("style_contradicted", f"--style says {asked}, the config in the file {said}")
    style = asked or said or (None if bottlenecks else "pytorch")
    if style is None:
        detail = "nothing in the file says whether the ResNet is of style pytorch or caffe; give --style"
        raise ImportRefused("style_unknown", detail)
    return style


def find_detector(checkpoint: Checkpoint, style: str) -> DetectorInfo:
    """The entry of the catalogue.

    Raises:
        ImportRefused: `other_backbone`, `head_unknown` or `head_unsupported`.
    """
    family = find_family(checkpoint.state)
    trunk, bottlenecks = find_trunk(checkpoint.state)
    trunk += "_caffe" if bottlenecks and style == "caffe" else ""
    suffix = {"retinanet": "_mm", "fcos": "_mm"}.get(family, "")
    if family == "fcos" and _exponential(checkpoint):
        suffix = "_mm_exp"
    name = f"{family}_{trunk}_fpn{suffix}"
    if name not in DETECTORS:
        others = [other for other in DETECTORS if re.fullmatch(rf"{family}_\w+_fpn{suffix}", other)]
        raise ImportRefused("other_backbone", f"there is no {name} here; of this kind there are {', '.join(others)}")
    return DETECTORS[name]


def _exponential(checkpoint: Checkpoint) -> bool:
    """Whether this is FCOS as first published. Only the config tells."""
    switches = {name: checkpoint.config.values(name) or {"False"} for name in ("norm_on_bbox", "centerness_on_reg")}
    if not checkpoint.config.text or any(len(values) > 1 for values in switches.values()):
        detail = (
            "the file does not say how this FCOS codes its boxes; give --detector: fcos_..._fpn_mm for norm_on_bbox "
            "and centerness_on_reg (the `center-normbbox-centeronreg` configs), fcos_..._fpn_mm_exp for neither"
        )
        raise ImportRefused("head_unknown", detail)
    first, second = switches.values()
    if first != second:
        told = ", ".join(f"{name}={', '.join(values)}" for name, values in switches.items())
        raise ImportRefused("head_unsupported", f"FCOS with {told}: only both or neither can be held")
    return first == {"False"}


def check_config(checkpoint: Checkpoint, family: Family) -> None:
    """Refuse what the config says and no shape shows.

    Raises:
        ImportRefused: `head_unsupported`.
    """
    for name, holdable in _HOLDABLE[family].items():
        values = checkpoint.config.values(name)
        if name == "relu_before_extra_convs" and checkpoint.config.text and not values:
            values = {"False"}  # its default
        other = sorted(value for value in values if _literal(value) not in holdable)
        if other:
            only = " or ".join(map(str, holdable))
            detail = f"the config in the file has {name}={', '.join(other)}; of {family} only {only} can be held"
            raise ImportRefused("head_unsupported", detail)


def _literal(text: str) -> object:
    try:
        return literal_eval(text)
    except (ValueError, SyntaxError):
        return text
