"""The methods on offer, as facts. Free of torch, so that the API can list and check them."""

from dataclasses import dataclass
from typing import Literal

Need = Literal["strides", "classes", "anchors", "distribution", "channels"]
"""What a method asks of a pair: pyramid levels of the same strides; a teacher that knows every class by name; as many
anchors per location; two heads that predict distributions of sides (GFL); as many channels in both heads."""


@dataclass(frozen=True)
class MethodInfo:
    name: str
    title: str
    source: str
    needs: tuple[Need, ...]
    """What must agree between student and teacher; what differs only in channels gets an adapter, unless it must."""
    published: str = ""


def _info(name: str, title: str, source: str, needs: tuple[Need, ...], published: str = "") -> MethodInfo:
    told = f"{published} (COCO mAP, published elsewhere, not this project's)" if published else ""
    return MethodInfo(name, title, source, needs, told)


HEADS_ALONE = frozenset({"ld", "crosskd", "bckd"})
"""Methods that compare no features of the pyramid, and so train no adapters."""

METHODS: dict[str, MethodInfo] = {
    info.name: info
    for info in (
        _info(
            "tid",
            "Task Integration Distillation: features weighted by both tasks and by what the student has yet to learn",
            "Su, Jian, Yu, arXiv 2404.01699; Neurocomputing 624 (2025) 129386; partly reconstructed",
            ("strides", "classes"),
            "GFL R101->R50 40.1 -> 42.0",
        ),
        _info(
            "fitnet",
            "Uniform imitation of the pyramid features",
            "Romero et al., FitNets, ICLR 2015, arXiv 1412.6550",
            ("strides",),
            "GFL R101->R50 40.1 -> 40.7",
        ),
        _info(
            "fgfi",
            "Fine-grained feature imitation: the points whose anchors lie near an object",
            "Wang et al., CVPR 2019, arXiv 1906.03609",
            ("strides",),
            "RetinaNet 37.4 -> 38.6",
        ),
        _info(
            "defeat",
            "Decoupled features: objects and background apart, each by its own size",
            "Guo et al., CVPR 2021, arXiv 2103.14475",
            ("strides",),
            "RetinaNet 36.5 -> 39.7",
        ),
        _info(
            "fgd",
            "Focal and global distillation: attention over points and channels, and the relation of all points",
            "Yang et al., CVPR 2022, arXiv 2111.11837",
            ("strides",),
            "GFL 40.2 -> 43.5; RetinaNet 37.4 -> 40.7",
        ),
        _info(
            "mgd",
            "Masked generative distillation: the teacher's features out of a part of the student's",
            "Yang et al., ECCV 2022, arXiv 2205.01529",
            ("strides",),
            "RetinaNet 37.4 -> 41.0",
        ),
        _info(
            "cwd",
            "Channel-wise distillation: where in the picture each channel looks",
            "Shu et al., ICCV 2021, arXiv 2011.13256",
            ("strides",),
            "GFL 40.2 -> 41.9",
        ),
        _info(
            "pkd",
            "Pearson correlation of the features, channel by channel",
            "Cao et al., NeurIPS 2022, arXiv 2207.02039",
            ("strides",),
            "RetinaNet 37.4 -> 40.8",
        ),
        _info(
            "frs",
            "Feature richness: features and class scores where the teacher sees any class at all",
            "Du et al., NeurIPS 2021, arXiv 2111.00674",
            ("strides", "classes", "anchors"),
            "GFL 40.2 -> 43.6",
        ),
        _info(
            "pgd",
            "Prediction-guided distillation: features near each object where the teacher predicts it best",
            "Yang et al., ECCV 2022, arXiv 2203.05469",
            ("strides", "classes"),
            "GFL 40.2 -> 43.8; ATSS 39.6 -> 44.2",
        ),
        _info(
            "ld",
            "Localisation distillation: the distribution of each side of a box, and the classes",
            "Zheng et al., CVPR 2022, arXiv 2102.12252",
            ("strides", "classes", "anchors", "distribution"),
            "GFL 40.1 -> 42.1",
        ),
        _info(
            "crosskd",
            "Cross-head distillation: the student's head features through the rest of the teacher's head",
            "Wang et al., CVPR 2024, arXiv 2306.11369",
            ("strides", "classes", "channels"),
            "GFL 40.2 -> 43.7",
        ),
        _info(
            "bckd",
            "Binary class and box distillation: what the heads answer, most where the two disagree",
            "Yang et al., ICCV 2023, arXiv 2308.14286",
            ("strides", "classes", "anchors"),
            "GFL 40.1 -> 43.2",
        ),
        _info(
            "tbd",
            "Task-balanced distillation: features weighted by how well class score and box agree",
            "Tang et al., Task-Balanced Distillation for Object Detection, arXiv 2208.03006; reconstructed",
            ("strides", "classes"),
            "RetinaNet R50 41.0",
        ),
        _info(
            "tar",
            "Task adaptive regularization: features around objects, boxes only where the teacher's are better",
            "Sun et al., arXiv 2006.13108; reconstructed",
            ("strides", "classes", "anchors"),
            "Faster R-CNN R50 36.3 -> 39.0",
        ),
        MethodInfo("none", "Plain training, no distillation", "", ()),
    )
}
