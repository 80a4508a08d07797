"""Dense outputs of a batch taken apart, image by image, and put together again to the same bits and strides.

N images of the batch.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tid_core.detectors.outputs import DenseOutputs

SHARED = ("anchors_L4",)
"""Tensors that all images of a batch have in common: a function of the padded size."""


class _Place(NamedTuple):
    """Where one of the distinct tensors stands."""

    number: int


class _Form(NamedTuple):
    dtype: torch.dtype
    shape: torch.Size
    stride: tuple[int, ...]


@dataclass(frozen=True)
class Mould:
    """What the outputs of batches of one number of images and one padded size have in common.

    A sum depends on the order in which its terms lie in memory, so strides belong to it; so does that two fields are
    one tensor.
    """

    hollow: Any
    forms: list[_Form]

    def fits(self, parts: Sequence[Tensor]) -> bool:
        """Whether these can be the tensors of one image."""
        forms = [(part.dtype, part.shape) for part in parts]
        return forms == [(form.dtype, form.shape[1:]) for form in self.forms]

    def fill(self, images: Sequence[Sequence[Tensor]], device: torch.device) -> DenseOutputs:
        """The outputs of a batch from those of its images, as `take_apart` gave them."""
        tensors = [_laid_out(list(parts), form, device) for *parts, form in zip(*images, self.forms, strict=True)]
        outputs: DenseOutputs = _mapped(self.hollow, lambda place: tensors[place.number])
        return outputs


def mould_of(outputs: DenseOutputs) -> Mould:
    numbers = {id(tensor): number for number, tensor in enumerate(_distinct(outputs))}
    forms = [_Form(tensor.dtype, tensor.shape, tensor.stride()) for tensor in _distinct(outputs)]
    return Mould(_mapped(outputs, lambda tensor: _Place(numbers[id(tensor)])), forms)


def take_apart(outputs: DenseOutputs) -> list[list[Tensor]]:
    """For each image its part of every distinct tensor, on the CPU, in the dtype that it has."""
    tensors = [tensor.cpu() for tensor in _distinct(outputs)]
    return [[tensor[n] for tensor in tensors] for n in range(len(outputs.logits_NLK))]


def _distinct(outputs: DenseOutputs) -> list[Tensor]:
    found: dict[int, Tensor] = {}
    _mapped(outputs, lambda tensor: found.setdefault(id(tensor), tensor))
    return list(found.values())


def _laid_out(parts: list[Any], form: _Form, device: torch.device) -> Tensor:
    stacked = torch.stack(parts).to(device)
    if stacked.stride() == form.stride or 0 in form.stride:
        return stacked
    return torch.empty_strided(form.shape, form.stride, dtype=form.dtype, device=device).copy_(stacked)


def _mapped(value: Any, change: Callable[[Any], Any]) -> Any:
    """The same structure with every tensor, or place of one, changed."""
    if isinstance(value, Tensor | _Place):
        return change(value)
    if isinstance(value, list):
        return [_mapped(each, change) for each in value]
    if isinstance(value, dict):
        return {key: _mapped(each, change) for key, each in value.items()}
    if is_dataclass(value) and not isinstance(value, type):
        names = [each.name for each in fields(value) if each.name not in SHARED]
        return replace(value, **{name: _mapped(getattr(value, name), change) for name in names})
    return value
