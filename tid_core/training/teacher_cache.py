"""The teacher's outputs on disk, for runs in which it sees the same pixels in every epoch.

What a forward gives for an image depends on its pixels, on how far the batch is padded and, by the last bit on the CPU,
on how many images are in the batch, because other kernels are chosen; on which images they are and where among them
this one stands, it does not (measured; see docs/cost.md). So an entry belongs to the pixels of an image, its resized
and padded size, and the number of images, and a batch is read only where all of its images are there: of a batch that
was computed in part, the part would be of another size. The first batch of every attempt is computed a second time in
the opposite order, to see that it is so on this machine, too.

    teacher-cache/IDENTITY/KEY[:2]/KEY.safetensors      the tensors of one image, and their checksum

Entries are renamed into place; one that is torn or was changed is computed again.
"""

import hashlib
import os
import shutil
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from torchvision.models.detection.image_list import ImageList

from tid_core.detectors.outputs import DenseOutputs
from tid_core.training.moulds import Mould, mould_of, take_apart
from tid_core.training.step import Teacher

Warn = Callable[[str, str], None]
"""Hears a code and a sentence."""
FOLDER = "teacher-cache"
"""Within the output of a run; it goes when the run ends."""


class TeacherCache:
    """Stands in for a teacher. Ranks share one folder: the same image has the same entry on all of them.

    Args:
        identity: see `identity_of`; entries of other identities are not looked at.
        warn: told, once each, `teacher_cache_full` and `teacher_cache_inexact`.
    """

    def __init__(self, teacher: Teacher, folder: Path, identity: str, warn: Warn) -> None:
        self._teacher = teacher
        self._folder = folder
        self._identity = identity
        self._warn = warn
        self._moulds: dict[tuple[int, ...], Mould] = {}
        self._writes = self._reads = True
        self._proved = False
        self._looked = self._hits = 0

    def __call__(self, images: ImageList, pixels: Sequence[Tensor]) -> DenseOutputs:
        """The teacher's outputs for `images`, which its transform made of `pixels` (3, H, W) uint8 each."""
        self._looked += len(pixels)
        keys = self._keys(images, pixels)
        mould = self._moulds.get(tuple(images.tensors.shape))
        if mould is not None and (parts := self._read(keys, mould)) is not None:
            self._hits += len(pixels)
            return mould.fill(parts, images.tensors.device)
        outputs = self._teacher(images)
        if not self._proved:
            self._prove(images, outputs)
        self._moulds.setdefault(tuple(images.tensors.shape), mould_of(outputs))
        self._write(keys, outputs)
        return outputs

    def hit_share(self) -> float | None:
        """Part of the images since the last call that were read; None where there was none."""
        share = self._hits / self._looked if self._looked else None
        self._looked = self._hits = 0
        return share

    def delete(self, *, others_only: bool = False) -> None:
        """Everything, or what belongs to other identities (of a run that was killed and then changed)."""
        for entry in self._folder.iterdir() if self._folder.is_dir() else ():
            if not (others_only and entry.name == self._identity):
                shutil.rmtree(entry, ignore_errors=True)
        if not others_only:
            shutil.rmtree(self._folder, ignore_errors=True)

    def bytes_on_disk(self) -> int:
        return sum(path.stat().st_size for path in (self._folder / self._identity).rglob("*.safetensors"))

    def _keys(self, images: ImageList, pixels: Sequence[Tensor]) -> list[Path]:
        folder = self._folder / self._identity
        shape = tuple(images.tensors.shape)
        keys = []
        for image, size in zip(pixels, images.image_sizes, strict=True):
            digest = hashlib.sha256(repr((tuple(image.shape), tuple(size), shape)).encode())
            digest.update(_bytes(image))
            keys.append(digest.hexdigest())
        return [folder / key[:2] / f"{key}.safetensors" for key in keys]

    def _read(self, keys: Sequence[Path], mould: Mould) -> list[list[Tensor]] | None:
        """The tensors of all images, or None where one has to be computed."""
        if not self._reads or not all(key.exists() for key in keys):
            return None
        images = []
        for key in keys:
            parts = _load(key)
            if parts is None or not mould.fits(parts):
                key.unlink(missing_ok=True)
                return None
            images.append(parts)
        return images

    def _write(self, keys: Sequence[Path], outputs: DenseOutputs) -> None:
        missing = [n for n, key in enumerate(keys) if not key.exists()]
        if not self._writes or not missing:
            return
        images = take_apart(outputs)
        try:
            for n in missing:
                _save(keys[n], images[n])
        except OSError as error:
            self._writes = False
            told = f"the teacher's outputs could not be kept ({error.strerror})"
            self._warn("teacher_cache_full", f"{told}; those that are missing are computed in each epoch")

    def _prove(self, images: ImageList, outputs: DenseOutputs) -> None:
        """See that an image's outputs do not depend on its place and neighbours; on the CPU do without, if they do."""
        self._proved = True
        turned = ImageList(images.tensors.flip(0), images.image_sizes[::-1])
        pairs = zip(take_apart(outputs), reversed(take_apart(self._teacher(turned))), strict=True)
        if all(torch.equal(a, b) for one, other in pairs for a, b in zip(one, other, strict=True)):
            return
        told = "on this machine an image's outputs depend, by rounding, on the other images of its batch"
        if images.tensors.device.type == "cpu":
            self._reads = self._writes = False
            self._warn("teacher_cache_inexact", f"{told}; teacher.cache is not used, as the losses would differ")
        else:
            self._warn(
                "teacher_cache_inexact", f"{told}; the losses differ by as much from those without teacher.cache"
            )


def identity_of(teacher: Teacher, *, channels_last: bool) -> str:
    """A name for all that the outputs depend on beside the images: weights, classes, numbers, device, threads."""
    precision, detector = teacher.precision, teacher.detector
    settings = (
        detector.info.name,
        getattr(detector, "tap", None),
        teacher.index_K.tolist(),
        precision.name,
        precision.device_name,
        channels_last,
        torch.__version__,
        torch.get_num_threads() if precision.device.type == "cpu" else 0,
    )
    digest = hashlib.sha256(repr(settings).encode())
    for name, tensor in detector.model.state_dict().items():
        digest.update(repr((name, tensor.dtype, tuple(tensor.shape))).encode())
        digest.update(_bytes(tensor.cpu()))
    return digest.hexdigest()[:16]


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.contiguous().flatten().view(torch.uint8).numpy().data


def _checksum(parts: Sequence[Tensor]) -> str:
    """Against damage, not against an enemy: it is computed for every image of every step."""
    value = 0
    for part in parts:
        value = zlib.crc32(repr((part.dtype, tuple(part.shape))).encode(), value)
        value = zlib.crc32(_bytes(part), value)
    return f"{value:08x}"


def _save(path: Path, parts: Sequence[Tensor]) -> None:
    """Without waiting for the disk: what a power cut tears does not match its checksum."""
    content = save({str(n): part.contiguous() for n, part in enumerate(parts)}, {"crc32": _checksum(parts)})
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _load(path: Path) -> list[Tensor] | None:
    """None where the entry is gone or damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            parts = [file.get_tensor(str(n)) for n in range(len(file.keys()))]
            stated = (file.metadata() or {}).get("crc32")
    except (OSError, SafetensorError):
        return None
    return parts if stated == _checksum(parts) else None
