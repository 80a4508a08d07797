"""The detectors and methods on offer, as facts. Free of torch, so that the API can list and check them.

A detector is a trunk (a torchvision classification network), a feature pyramid and a dense head.
`tid_core.detectors` builds exactly what stands here; tests hold the two together.
"""

from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Literal

Family = Literal["retinanet", "fcos", "gfl", "atss"]
Size = Literal["standard", "small"]
Flavour = Literal["torchvision", "mm", "mm_exp"]


@dataclass(frozen=True)
class TrunkInfo:
    """A torchvision network cut at its stages of stride 8, 16 and 32."""

    builder: str
    """Name for `torchvision.models.get_model`; those of CONV_TRUNKS are this project's own."""
    layers: tuple[str, str, str]
    """Modules whose outputs feed the pyramid."""
    channels: tuple[int, int, int]
    weights: tuple[str, ...] = ()
    """torchvision's ImageNet weights, the first of which `imagenet` stands for."""
    stages: tuple[tuple[str, ...], ...] = ()
    """Top-level modules per stage, from the last to the first: what `trainable_layers` counts."""
    eps: float = 1e-5
    """Of the trunk's batch normalisation."""
    caffe: bool = False
    """Whether a bottleneck's stride is in its first 1x1 convolution, as in Caffe's ResNets, and not in its 3x3."""

    @property
    def sequential(self) -> bool:
        """Whether the layers are numbered modules of a sequence, which torchvision keeps under `features`."""
        return self.layers[0].isdigit()


def _resnet(builder: str, expansion: int, *weights: str) -> TrunkInfo:
    channels = (128 * expansion, 256 * expansion, 512 * expansion)
    stages = (("layer4",), ("layer3",), ("layer2",), ("layer1",), ("conv1", "bn1"))
    return TrunkInfo(builder, ("layer2", "layer3", "layer4"), channels, weights, stages)


def _modules(*bounds: tuple[int, int]) -> tuple[tuple[str, ...], ...]:
    """Stages of a sequential trunk, from the last to the first, given as [first, last] module numbers."""
    return tuple(tuple(str(i) for i in range(first, last + 1)) for first, last in bounds)


# The stages of the MobileNets start at their strided blocks, as in torchvision's `mobilenet_backbone`.
TRUNKS: dict[str, TrunkInfo] = {
    "resnet18": _resnet("resnet18", 1, "IMAGENET1K_V1"),
    "resnet34": _resnet("resnet34", 1, "IMAGENET1K_V1"),
    "resnet50": _resnet("resnet50", 4, "IMAGENET1K_V1", "IMAGENET1K_V2"),
    "resnet101": _resnet("resnet101", 4, "IMAGENET1K_V1", "IMAGENET1K_V2"),
    "resnet50_caffe": replace(_resnet("resnet50", 4), caffe=True),
    "resnet101_caffe": replace(_resnet("resnet101", 4), caffe=True),
    "mobilenet_v2": TrunkInfo(
        "mobilenet_v2",
        ("6", "13", "18"),
        (32, 96, 1280),
        ("IMAGENET1K_V1", "IMAGENET1K_V2"),
        _modules((18, 18), (14, 17), (7, 13), (4, 6), (2, 3), (0, 1)),
    ),
    "mobilenet_v3_large": TrunkInfo(
        "mobilenet_v3_large",
        ("6", "12", "16"),
        (40, 112, 960),
        ("IMAGENET1K_V1", "IMAGENET1K_V2"),
        _modules((16, 16), (13, 15), (7, 12), (4, 6), (2, 3), (0, 1)),
        eps=1e-3,
    ),
    "conv5": TrunkInfo("conv5", ("2", "3", "4"), (32, 48, 64), (), _modules((4, 4), (3, 3), (2, 2), (1, 1), (0, 0))),
    "conv10": TrunkInfo(
        "conv10", ("5", "7", "9"), (128, 192, 256), (), _modules((8, 9), (6, 7), (4, 5), (2, 3), (0, 1))
    ),
}

CONV_TRUNKS: dict[str, tuple[tuple[int, ...], int]] = {
    "conv5": ((16, 24, 32, 48, 64), 1),
    "conv10": ((32, 64, 128, 192, 256), 2),
}
"""Widths of the five stages, and 3x3 convolutions in each; the first of a stage has stride 2. Quick on a CPU."""


@dataclass(frozen=True)
class FamilyInfo:
    title: str
    source: str


FAMILIES: dict[Family, FamilyInfo] = {
    "retinanet": FamilyInfo(
        "RetinaNet: nine anchors per location, focal loss", "Lin et al., ICCV 2017, arXiv 1708.02002"
    ),
    "fcos": FamilyInfo("FCOS: points instead of anchors, centerness", "Tian et al., TPAMI 2022, arXiv 2006.09214"),
    "gfl": FamilyInfo(
        "GFL: one anchor, the class score says how good the box is, each side a distribution",
        "Li et al., NeurIPS 2020, arXiv 2006.04388",
    ),
    "atss": FamilyInfo(
        "ATSS: one anchor, positives by the mean and deviation of their IoUs, centerness",
        "Zhang et al., CVPR 2020, arXiv 1912.02424",
    ),
}


@dataclass(frozen=True)
class DetectorInfo:
    name: str
    family: Family
    version: Literal["v1", "v2"]
    """RetinaNet v2: group normalisation in the head, GIoU loss, P6 from C5, as torchvision's `_v2` builders."""
    size: Size
    backbone: str
    """A key of TRUNKS."""
    strides: tuple[int, ...]
    channels: int
    """Channels of every pyramid level."""
    anchors_per_location: int
    tower_convs: int
    """3x3 convolutions in each tower of the head."""
    p6_from: Literal["p5", "c5"] | None
    """What the first level beyond the trunk is computed from: the pyramid's P5 or the trunk's C5."""
    p7_relu: bool
    """Whether a ReLU stands between P6 and P7."""
    parameters: int
    """Count with the 91 outputs of COCO; with fewer classes it is smaller."""
    coco_map: float | None = None
    """Box mAP on COCO val2017 of the COCO_V1 weights, as torchvision publishes it."""
    weights: tuple[str, ...] = ()
    """torchvision's names of weights for the whole detector."""
    flavour: Flavour = "torchvision"
    """Whose definition of RetinaNet and FCOS. mm: mmdetection's, for its checkpoints; mm_exp: its first FCOS, with
    exponential distances and the centerness on the classification tower."""

    @property
    def trunk(self) -> TrunkInfo:
        return TRUNKS[self.backbone]

    @property
    def has_imagenet(self) -> bool:
        return bool(self.trunk.weights)

    @property
    def anchor_sizes(self) -> tuple[tuple[float, ...], ...]:
        """Sides of the anchors per level: FCOS one of a stride; GFL and ATSS one of eight strides; RetinaNet three
        octave steps, from four strides up, in torchvision's definition whole."""
        if self.family != "retinanet":
            side = 1 if self.family == "fcos" else 8
            return tuple((side * stride,) for stride in self.strides)
        scale = 4 if self.size == "standard" else 2
        octaves = (1.0, 2 ** (1.0 / 3), 2 ** (2.0 / 3))
        sides = tuple(tuple(scale * stride * octave for octave in octaves) for stride in self.strides)
        return tuple(tuple(map(int, level)) for level in sides) if self.flavour == "torchvision" else sides


# Counted with 91 outputs; a test counts again.
_PARAMETERS = {
    "retinanet_resnet18_fpn": 21_048_471,
    "retinanet_resnet34_fpn": 31_156_631,
    "retinanet_resnet50_fpn": 34_068_119,
    "retinanet_resnet101_fpn": 53_060_247,
    "retinanet_mobilenet_v2_fpn": 12_226_903,
    "retinanet_mobilenet_v3_large_fpn": 12_899_207,
    "retinanet_resnet18_fpn_v2": 21_640_343,
    "retinanet_resnet34_fpn_v2": 31_748_503,
    "retinanet_resnet50_fpn_v2": 38_198_935,
    "retinanet_resnet101_fpn_v2": 57_191_063,
    "fcos_resnet18_fpn": 19_303_072,
    "fcos_resnet34_fpn": 29_411_232,
    "fcos_resnet50_fpn": 32_322_720,
    "fcos_resnet101_fpn": 51_314_848,
    "fcos_mobilenet_v2_fpn": 10_481_504,
    "fcos_mobilenet_v3_large_fpn": 11_153_808,
    "fcos_resnet18_small": 11_927_904,
    "fcos_mobilenet_v2_small": 3_024_416,
    "fcos_conv10_small": 2_595_072,
    "fcos_conv5_tiny": 731_840,
    "retinanet_resnet18_small": 12_584_055,
    "retinanet_mobilenet_v2_small": 3_680_567,
    "retinanet_conv10_small": 3_251_223,
    "retinanet_conv5_tiny": 1_387_991,
    "gfl_resnet18_fpn": 19_446_244,
    "gfl_resnet34_fpn": 29_554_404,
    "gfl_resnet50_fpn": 32_465_892,
    "gfl_resnet101_fpn": 51_458_020,
    "gfl_mobilenet_v2_fpn": 10_624_676,
    "gfl_mobilenet_v3_large_fpn": 11_296_980,
    "gfl_resnet18_small": 11_982_018,
    "gfl_mobilenet_v2_small": 3_078_530,
    "gfl_conv10_small": 2_649_186,
    "gfl_conv5_tiny": 785_954,
    "atss_resnet18_fpn": 19_301_029,
    "atss_resnet34_fpn": 29_409_189,
    "atss_resnet50_fpn": 32_320_677,
    "atss_resnet101_fpn": 51_312_805,
    "atss_mobilenet_v2_fpn": 10_479_461,
    "atss_mobilenet_v3_large_fpn": 11_151_765,
    "atss_resnet18_small": 11_927_523,
    "atss_mobilenet_v2_small": 3_024_035,
    "atss_conv10_small": 2_594_691,
    "atss_conv5_tiny": 731_459,
    "retinanet_resnet18_fpn_mm": 21_638_295,
    "retinanet_resnet34_fpn_mm": 31_746_455,
    "retinanet_resnet50_fpn_mm": 38_196_887,
    "retinanet_resnet101_fpn_mm": 57_189_015,
    "retinanet_resnet50_caffe_fpn_mm": 38_196_887,
    "retinanet_resnet101_caffe_fpn_mm": 57_189_015,
    "fcos_resnet18_fpn_mm": 19_303_077,
    "fcos_resnet34_fpn_mm": 29_411_237,
    "fcos_resnet50_fpn_mm": 32_322_725,
    "fcos_resnet101_fpn_mm": 51_314_853,
    "fcos_resnet50_caffe_fpn_mm": 32_322_725,
    "fcos_resnet101_caffe_fpn_mm": 51_314_853,
    "fcos_resnet50_caffe_fpn_mm_exp": 32_322_725,
    "fcos_resnet101_caffe_fpn_mm_exp": 51_314_853,
}
_COCO_MAP = {"retinanet_resnet50_fpn": 36.4, "retinanet_resnet50_fpn_v2": 41.5, "fcos_resnet50_fpn": 39.2}
_STANDARD = ("resnet18", "resnet34", "resnet50", "resnet101", "mobilenet_v2", "mobilenet_v3_large")
_PUBLIC = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet50_caffe", "resnet101_caffe")
_SMALL = {
    "resnet18_small": "resnet18",
    "mobilenet_v2_small": "mobilenet_v2",
    "conv10_small": "conv10",
    "conv5_tiny": "conv5",
}


def _info(name: str, family: Family, version: Literal["v1", "v2"], size: Size, backbone: str) -> DetectorInfo:
    return DetectorInfo(
        name=name,
        family=family,
        version=version,
        size=size,
        backbone=backbone,
        strides=(8, 16, 32, 64, 128) if size == "standard" else (8, 16, 32),
        channels=256 if size == "standard" else 96,
        anchors_per_location=9 if family == "retinanet" else 1,
        tower_convs=4 if size == "standard" else 2,
        p6_from=None if size == "small" else "c5" if version == "v2" else "p5",
        p7_relu=family in ("retinanet", "fcos"),
        parameters=_PARAMETERS[name],
        coco_map=_COCO_MAP.get(name),
        weights=("COCO_V1",) if name in _COCO_MAP else (),
    )


def _public(family: Family, trunk: str, flavour: Flavour) -> DetectorInfo:
    """RetinaNet or FCOS as mmdetection defines it."""
    name = f"{family}_{trunk}_fpn_{flavour}"
    info = _info(name, family, "v1", "standard", trunk)
    return replace(info, flavour=flavour, p6_from="c5" if family == "retinanet" else "p5", p7_relu=family == "fcos")


def _catalogue() -> dict[str, DetectorInfo]:
    infos = [_info(f"retinanet_{trunk}_fpn", "retinanet", "v1", "standard", trunk) for trunk in _STANDARD]
    infos += [_info(f"retinanet_{trunk}_fpn_v2", "retinanet", "v2", "standard", trunk) for trunk in _STANDARD[:4]]
    infos += [_info(f"fcos_{trunk}_fpn", "fcos", "v1", "standard", trunk) for trunk in _STANDARD]
    infos += [_info(f"fcos_{suffix}", "fcos", "v1", "small", trunk) for suffix, trunk in _SMALL.items()]
    infos += [_info(f"retinanet_{suffix}", "retinanet", "v2", "small", trunk) for suffix, trunk in _SMALL.items()]
    one_anchor: tuple[Family, ...] = ("gfl", "atss")
    for family in one_anchor:
        infos += [_info(f"{family}_{trunk}_fpn", family, "v1", "standard", trunk) for trunk in _STANDARD]
        infos += [_info(f"{family}_{suffix}", family, "v1", "small", trunk) for suffix, trunk in _SMALL.items()]
    infos += [_public("retinanet", trunk, "mm") for trunk in _PUBLIC]
    infos += [_public("fcos", trunk, "mm") for trunk in _PUBLIC]
    infos += [_public("fcos", trunk, "mm_exp") for trunk in _PUBLIC[4:]]
    return {info.name: info for info in infos}


DETECTORS: dict[str, DetectorInfo] = _catalogue()


COCO_CATEGORIES: tuple[str, ...] = tuple(
    """
    __background__, person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light,
    fire hydrant, N/A, stop sign, parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra,
    giraffe, N/A, backpack, umbrella, N/A, N/A, handbag, tie, suitcase, frisbee, skis, snowboard, sports ball, kite,
    baseball bat, baseball glove, skateboard, surfboard, tennis racket, bottle, N/A, wine glass, cup, fork, knife,
    spoon, bowl, banana, apple, sandwich, orange, broccoli, carrot, hot dog, pizza, donut, cake, chair, couch,
    potted plant, bed, N/A, dining table, N/A, N/A, toilet, N/A, tv, laptop, mouse, remote, keyboard, cell phone,
    microwave, oven, toaster, sink, refrigerator, N/A, book, clock, vase, scissors, teddy bear, hair drier,
    toothbrush
    """.strip()
    .replace("\n    ", " ")
    .split(", ")
)
"""Class names of the COCO_V1 weights in the order of their outputs: raw category ids, with gaps."""


def close_names(name: str, names: list[str] | None = None) -> list[str]:
    """The three names most like a wrong one, best first."""
    return get_close_matches(name, list(DETECTORS) if names is None else names, n=3, cutoff=0.4)
