"""A student written for use: a plain torchvision state_dict, twice, and a card that says what it is."""

import errno
import hashlib
import io
import json
from pathlib import Path
from typing import Any

import torch
import torchvision
from safetensors.torch import save as safetensors_bytes
from torch import Tensor
from torchvision.ops import FrozenBatchNorm2d

from tid_core.detectors.base import DenseDetector
from tid_core.detectors.snippet import torchvision_snippet
from tid_core.detectors.weights import norm_of
from tid_core.events import TrainingFailure
from tid_core.training.files import replace_file


def export_student(detector: DenseDetector, out_dir: Path, name: str, card: dict[str, Any]) -> dict[str, Path]:
    """Write NAME.safetensors, NAME.pt and NAME.card.json, each in one step; the card comes last.

    Args:
        detector: its `model` is what is written, in fp32.
        card: what to record: `spec`, `classes` (names in output order), mAP, provenance. JSON-serialisable.

    Returns:
        Path by format: safetensors, pt, card.

    Raises:
        TrainingFailure: `disk_full`.
    """
    state = plain_state(detector)
    classes: list[str] = card.get("classes", [])
    metadata = {"format": "pt", "detector": detector.info.name, "classes": "\n".join(classes)}
    contents = {"safetensors": safetensors_file(state, metadata), "pt": _torch_bytes(state)}
    paths = {suffix: out_dir / f"{name}.{suffix}" for suffix in contents} | {"card": out_dir / f"{name}.card.json"}
    files = {
        suffix: {"name": paths[suffix].name, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        for suffix, data in contents.items()
    }
    contents["card"] = json.dumps(_card(detector, state, files, paths["pt"].name) | card, indent=2).encode()
    for suffix, data in contents.items():
        _write(paths[suffix], data)
    return paths


def plain_state(detector: DenseDetector) -> dict[str, Tensor]:
    """The model's state_dict on the CPU, contiguous, for layers with their ordinary epsilon.

    Weights that torchvision runs with an epsilon of zero get it folded into the variance, so that the file means
    the same to whoever builds the model.
    """
    state = {key: value.detach().cpu().contiguous().clone() for key, value in detector.model.state_dict().items()}
    for name, module in detector.model.named_modules():
        if isinstance(module, FrozenBatchNorm2d):
            state[f"{name}.running_var"] += module.eps - detector.info.trunk.eps
    return state


def _card(detector: DenseDetector, state: dict[str, Tensor], files: dict[str, Any], pt_name: str) -> dict[str, Any]:
    model, info = detector.model, detector.info
    options = {
        "min_size": tuple(model.transform.min_size),
        "max_size": model.transform.max_size,
        "score_thresh": model.score_thresh,
        "nms_thresh": model.nms_thresh,
        "detections_per_img": model.detections_per_img,
    }
    num_classes = model.head.classification_head.num_classes
    norm = norm_of(state)
    return {
        "card_version": 1,
        "detector": info.name,
        "family": info.family,
        "backbone": info.backbone,
        "strides": list(info.strides),
        "num_classes": num_classes,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "norm": norm,
        "files": files,
        "versions": {"torch": torch.__version__, "torchvision": torchvision.__version__},
        "torchvision": torchvision_snippet(info, norm=norm, num_classes=num_classes, options=options, file=pt_name),
    }


def safetensors_file(state: dict[str, Tensor], metadata: dict[str, str]) -> bytes:
    """A safetensors file with sorted metadata: the library writes them in an order drawn for each file, and then equal
    students would differ in their sha256."""
    data = safetensors_bytes(state, metadata)
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    encoded = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    encoded += b" " * (-len(encoded) % 8)  # tensors start at a multiple of eight
    return len(encoded).to_bytes(8, "little") + encoded + data[8 + size :]


def _torch_bytes(state: dict[str, Tensor]) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def _write(path: Path, data: bytes) -> None:
    try:
        replace_file(path, data)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise TrainingFailure("disk_full", f"no space left to write {path} ({len(data)} bytes)") from error
        raise
