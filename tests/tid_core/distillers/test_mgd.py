"""MGD: the teacher's features out of a part of the student's."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tid_core.catalogue import DETECTORS
from tid_core.detectors.outputs import DenseOutputs
from tid_core.distillers.mgd import MgdDistiller
from tid_core.methods import MgdSpec

NARROW = replace(DETECTORS["fcos_conv5_tiny"], channels=4)
GRID = ((6, 5), (3, 3), (2, 2))


def distiller(**settings: Any) -> MgdDistiller:
    torch.manual_seed(0)
    return MgdDistiller(MgdSpec(**settings), student=NARROW, teacher=NARROW)


def test_by_hand(make_outputs: Callable[..., Any]) -> None:
    """Two valid points with 1 and 2, the third is padding; nothing is hidden.

    The first convolution adds to each point its right neighbour and -2.5: 1 + 2 - 2.5 = 0.5, and 2 + 0 - 2.5 = -0.5,
    where the 0 stands for the padding, whatever is in it. ReLU: 0.5, 0. The second doubles and adds its right
    neighbour, which is nothing beside the last point, and 1: 2, 1. The teacher has 3 and 7, variance 4: the mean of 1
    and 36 is 18.5, with weight 10 185, and normalised a fourth of it.
    """
    one = replace(NARROW, strides=(8,), channels=1)
    valid = torch.tensor([[[True, True, False]]])
    rest = {"grid": [(1, 3)], "strides": [8], "logits_NLK": torch.zeros(1, 3, 2), "boxes_NL4": torch.zeros(1, 3, 4)}
    teacher = make_outputs(**rest, features=[torch.tensor([[[[3.0, 7.0, -50.0]]]])], valid=[valid])
    student = make_outputs(**rest, features=[torch.tensor([[[[1.0, 2.0, 100.0]]]])], valid=[valid])
    for distance, expected in (("mse", 185.0), ("normalised_mse", 46.25)):
        method = MgdDistiller(MgdSpec(hidden=0.0, distance=distance), student=one, teacher=one)
        generator: Any = method.generators[0]
        with torch.no_grad():
            generator.enter.weight.copy_(torch.tensor([[[[0.0, 0, 0], [0, 1, 1], [0, 0, 0]]]]))
            generator.enter.bias.fill_(-2.5)
            generator.leave.weight.copy_(torch.tensor([[[[0.0, 0, 0], [0, 2, 1], [0, 0, 0]]]]))
            generator.leave.bias.fill_(1.0)
        result = method(student, teacher, [])
        assert result.terms["distill/features"].item() == pytest.approx(expected)
        assert result.metrics["distill/features/p3"].item() == pytest.approx(expected)


def _masks(method: MgdDistiller, scene: Any) -> list[Tensor]:
    """Which locations the generators are shown in one forward, (N, H, W) per level; the scene must have no zeros."""
    seen: list[Tensor] = []
    hooks = [
        generator.enter.register_forward_hook(lambda _module, inputs, _output: seen.append(inputs[0] != 0))
        for generator in method.generators
    ]
    method(scene.student, scene.teacher, scene.targets)
    for hook in hooks:
        hook.remove()
    assert all(shown.all(dim=1).equal(shown.any(dim=1)) for shown in seen), "all channels of a location or none"
    return [shown[:, 0] for shown in seen]


def test_what_is_hidden(make_scene: Callable[..., Any]) -> None:
    """The share that was asked for, padding besides, another mask for each image, level and step."""
    scene = make_scene(grid=((40, 40), (20, 20), (10, 10)))
    method = distiller(hidden=0.7)
    torch.manual_seed(1)
    first, second = _masks(method, scene), _masks(method, scene)
    torch.manual_seed(1)
    assert all(a.equal(b) for a, b in zip(_masks(method, scene), first, strict=True))
    for masks in (first, second):
        shares = [m[v].float().mean().item() for m, v in zip(masks, scene.student.valid, strict=True)]
        assert shares == pytest.approx([0.3, 0.3, 0.3], abs=0.1)
        assert not any(bool((m & ~v).any()) for m, v in zip(masks, scene.student.valid, strict=True))
    assert not first[0].equal(second[0])
    assert not first[0][0].equal(first[0][1])


def _enlarge(outputs: DenseOutputs, generator: torch.Generator) -> DenseOutputs:
    """The same batch on a larger canvas: three more columns and two more rows per level, of other things."""
    features, valid = [], []
    for feature, inside in zip(outputs.features, outputs.valid, strict=True):
        images, channels, height, width = feature.shape
        larger = 9 * torch.randn(images, channels, height + 2, width + 3, generator=generator)
        larger[:, :, :height, :width] = feature
        features.append(larger)
        valid.append(torch.nn.functional.pad(inside, (0, 3, 0, 2)))
    return replace(outputs, features=features, valid=valid)


def test_the_canvas_does_not_count(make_scene: Callable[..., Any]) -> None:
    """Nor by way of the 3x3 convolutions, which see two points beyond the edge of an image."""
    scene, generator = make_scene(grid=GRID), torch.Generator().manual_seed(0)
    method = distiller(hidden=0.0)
    larger = [_enlarge(side, generator) for side in (scene.student, scene.teacher)]
    found, expected = (method(*sides, scene.targets) for sides in (larger, (scene.student, scene.teacher)))
    torch.testing.assert_close(found.metrics, expected.metrics)


def test_the_generator_learns_what_can_be_told(make_scene: Callable[..., Any]) -> None:
    """A teacher that is the student's features doubled: within 150 steps most of the difference is gone."""
    scene = make_scene(grid=GRID)
    taught = replace(scene.teacher, features=[2 * f for f in scene.student.features])
    method = distiller(hidden=0.0, weight=1.0)
    optimizer = torch.optim.Adam(method.parameters(), lr=0.03)
    losses = []
    for _ in range(150):
        optimizer.zero_grad()
        total = method(scene.student, taught, scene.targets).total
        total.backward()
        optimizer.step()
        losses.append(total.item())
    assert losses[-1] < losses[0] / 4
