"""What holds for every method alike, on the outputs of a real pair. A new entry of BUILDERS is checked by itself.

Where a method is different by its nature, the tables below say so and why.
"""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.tid_core.distillers.real_batch import (
    Batch,
    build_batch,
    build_method,
    build_pair,
    fill_padding,
    gradient_in_padding,
    inside_head,
    leaves,
    part,
    some_targets,
)
from tid_core.distillers import BUILDERS, Distiller
from tid_core.distillers.base import DistillResult

METHODS = sorted(BUILDERS)
# Settings under which a statement holds that does not hold by default, by method and test.
NOT_RANDOM: dict[str, dict[str, Any]] = {
    "mgd": {"hidden": 0.0},  # each image has a mask of its own
}
AT_ITS_GOAL: dict[str, dict[str, Any]] = {}
# Why a statement does not hold for a method at all.
HAS_NO_GOAL: dict[str, str] = {
    "crosskd": "the batch has noise on the answers of the teacher, which its head does not give; see test_crosskd",
    "mgd": "a fresh generator makes something else even of the teacher's own features",
}
PADDING_COUNTS: dict[str, str] = {}
# Endings of the names of parameters that change nothing, by method.
IDLE: dict[str, tuple[str, ...]] = {
    # A channel's offset is taken off, or changes no distribution.
    "cwd": ("adapters.0.bias", "adapters.1.bias", "adapters.2.bias"),
    "pkd": ("adapters.0.bias", "adapters.1.bias", "adapters.2.bias"),
    # The objects are small: no anchor of the coarser levels is near one.
    "fgfi": ("adapters.1.weight", "adapters.1.bias", "adapters.2.weight", "adapters.2.bias"),
}


@pytest.fixture(scope="module")
def pair() -> Any:
    return build_pair()


@pytest.fixture(scope="module")
def batch(pair: Any) -> Batch:
    return build_batch(pair)


@pytest.fixture
def method(request: pytest.FixtureRequest, pair: Any) -> Distiller:
    return build_method(pair, request.param)


def run(distiller: Distiller, batch: Batch, seed: int = 3) -> DistillResult:
    """Methods that draw at random do so from torch's generator, which the training seeds at each step."""
    torch.manual_seed(seed)
    result: DistillResult = distiller(batch.student, batch.teacher, batch.targets)
    return result


def assert_same(found: DistillResult, expected: DistillResult, **tolerance: float) -> None:
    torch.testing.assert_close(found.terms, expected.terms, **({"rtol": 1e-4, "atol": 1e-6} | tolerance))
    torch.testing.assert_close(found.metrics, expected.metrics, **({"rtol": 1e-4, "atol": 1e-6} | tolerance))


@pytest.mark.parametrize("method", METHODS, indirect=True)
def test_teaches_a_real_student(pair: Any, method: Distiller) -> None:
    """One training step's worth: finite terms in fp32, and gradient in the student's first layer, in bf16 too."""
    student, teacher = pair
    images, targets = student.transform([torch.rand(3, 64, 64), torch.rand(3, 64, 80)], some_targets()[:2])
    for enabled in (False, True):
        student.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            with torch.no_grad():
                taught = teacher.dense_forward(images)
            result = method(student.dense_forward(images, targets), taught, targets)
        result.total.backward()
        assert result.total.isfinite()
        assert result.total > 0
        assert all(term.dtype == torch.float32 and term.shape == () for term in result.terms.values())
        first = next(p for p in student.model.backbone.parameters() if p.requires_grad)
        assert first.grad is not None
        assert first.grad.abs().sum() > 0
        assert not any(metric.requires_grad for metric in result.metrics.values())
    assert all(p.grad is None for p in teacher.parameters())


@pytest.mark.parametrize("method", METHODS, indirect=True)
def test_names(batch: Batch, method: Distiller) -> None:
    """Terms and metrics are told apart, and those of methods that are added get their method's name in between."""
    result = run(method, batch)
    assert result.terms
    assert all(name.startswith("distill/") for name in result.terms)
    assert not set(result.terms) & set(result.metrics)
    assert all(metric.shape == () and metric.isfinite() for metric in result.metrics.values())


@pytest.mark.parametrize("method", METHODS, indirect=True)
def test_gradient_reaches_the_student_alone(batch: Batch, method: Distiller) -> None:
    student, teacher = leaves(batch.student), leaves(batch.teacher)
    student.boxes_NL4.requires_grad_()
    teacher.boxes_NL4.requires_grad_()
    run(method, Batch(student, teacher, batch.targets)).total.backward()
    reached = [*student.features, *student.head_outputs.values(), *inside_head(student)]
    assert any(tensor.grad is not None and tensor.grad.abs().sum() > 0 for tensor in reached)
    assert all(tensor.grad is None or bool(tensor.grad.isfinite().all()) for tensor in reached)
    spared = [*teacher.features, *teacher.head_outputs.values(), teacher.boxes_NL4, student.boxes_NL4]
    spared += inside_head(teacher)
    spared = [tensor.grad for tensor in spared]
    student.boxes_NL4.requires_grad_(False)
    teacher.boxes_NL4.requires_grad_(False)
    assert spared == [None] * len(spared)


@pytest.mark.parametrize("method", METHODS)
def test_padding_does_not_count(pair: Any, batch: Batch, method: str) -> None:
    """Whatever stands there, and no gradient arrives there."""
    if method in PADDING_COUNTS:
        pytest.skip(PADDING_COUNTS[method])
    distiller = build_method(pair, method)
    generator = torch.Generator().manual_seed(4)
    filled = Batch(
        leaves(fill_padding(batch.student, generator)), fill_padding(batch.teacher, generator), batch.targets
    )
    result = run(distiller, filled)
    assert_same(result, run(distiller, batch))
    result.total.backward()
    assert gradient_in_padding(filled.student) == 0


@pytest.mark.parametrize("method", METHODS)
def test_a_batch_twice_as_large_teaches_as_much(pair: Any, batch: Batch, method: str) -> None:
    distiller = build_method(pair, method, **NOT_RANDOM.get(method, {}))
    twice = part(batch, [0, 1, 2, 3, 0, 1, 2, 3])
    assert_same(run(distiller, twice), run(distiller, batch))


@pytest.mark.parametrize("method", METHODS)
def test_the_weight_is_a_factor(pair: Any, batch: Batch, method: str) -> None:
    once, thrice = (run(build_method(pair, method, weight=weight), batch) for weight in (0.5, 1.5))
    torch.testing.assert_close(thrice.total, 3 * once.total)


@pytest.mark.parametrize("method", METHODS)
def test_a_student_like_its_teacher_has_nothing_to_learn(pair: Any, batch: Batch, method: str) -> None:
    if method in HAS_NO_GOAL:
        pytest.skip(HAS_NO_GOAL[method])
    distiller = build_method(pair, method, **AT_ITS_GOAL.get(method, {}))
    assert run(distiller, batch).total > 1e-3
    assert run(distiller, replace(batch, student=batch.teacher)).total.abs() < 1e-5


@pytest.mark.parametrize("method", METHODS, indirect=True)
def test_crowds_count_for_nothing(batch: Batch, method: Distiller) -> None:
    crowd = torch.tensor([[10.0, 0.0, 64.0, 60.0]])
    targets: list[dict[str, Tensor]] = []
    for target in batch.targets:
        iscrowd = target.get("iscrowd", torch.zeros(len(target["labels"]), dtype=torch.bool))
        targets.append(
            {
                "boxes": torch.cat([target["boxes"], crowd]),
                "labels": torch.cat([target["labels"], torch.tensor([2])]),
                "iscrowd": torch.cat([iscrowd, torch.tensor([True])]),
            }
        )
    assert_same(run(method, replace(batch, targets=targets)), run(method, batch))


def _nothing(images: int) -> list[dict[str, Tensor]]:
    return [{"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.long)} for _ in range(images)]


def _only_crowds(images: int) -> list[dict[str, Tensor]]:
    boxes = torch.tensor([[0.0, 0.0, 96.0, 96.0], [8.0, 8.0, 40.0, 40.0]])
    return [
        {"boxes": boxes, "labels": torch.tensor([0, 1]), "iscrowd": torch.tensor([True, True])} for _ in range(images)
    ]


@pytest.mark.parametrize("method", METHODS, indirect=True)
@pytest.mark.parametrize("targets", [_nothing, _only_crowds])
def test_images_without_objects(batch: Batch, method: Distiller, targets: Any) -> None:
    """Finite, and every layer still gets its gradient, as training on several GPUs demands."""
    student = leaves(batch.student)
    result = run(method, Batch(student, batch.teacher, targets(4)))
    assert all(term.isfinite() for term in result.terms.values())
    if result.total.requires_grad:
        result.total.backward()
    assert all(f.grad is None or bool(f.grad.isfinite().all()) for f in student.features)
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in method.parameters())


def _narrow(pair: Any, batch: Batch, method: str) -> tuple[Distiller, Batch]:
    """The method for a student of a third of the channels, which needs adapters, and a batch of such a student."""
    if not list(build_method(pair, method).adapters):
        pytest.skip("imitates no features")
    student, teacher = pair
    original = student.info
    student.info = replace(original, channels=32)
    try:
        distiller = build_method((student, teacher), method)
    finally:
        student.info = original
    features = [feature[:, :32] for feature in batch.student.features]
    return distiller, replace(batch, student=replace(batch.student, features=features))


@pytest.mark.parametrize("method", METHODS)
def test_adapters_always_take_part(pair: Any, batch: Batch, method: str) -> None:
    """Even where there is no object to imitate: on several GPUs a layer without gradient ends the training."""
    distiller, narrowed = _narrow(pair, batch, method)
    total = run(distiller, replace(narrowed, targets=_nothing(4))).total
    total.backward()
    assert [name for name, p in distiller.named_parameters() if p.grad is None] == []
    assert all(bool(p.grad.isfinite().all()) for p in distiller.parameters() if p.grad is not None)


@pytest.mark.parametrize("method", METHODS, indirect=True)
@pytest.mark.parametrize("scale", [0.0, 1e-4, 1e4])
def test_extreme_outputs_stay_finite(batch: Batch, method: Distiller, scale: float) -> None:
    """Features that are constant, tiny or huge; logits that are sure beyond fp32's sigmoid."""

    def extreme(side: Any) -> Any:
        features = [scale * feature for feature in side.features]
        heads = {name: min(scale, 40.0) * head for name, head in side.head_outputs.items()}
        return replace(side, features=features, head_outputs=heads, logits_NLK=heads["cls_logits"])

    for sides in ((extreme(batch.student), batch.teacher), (batch.student, extreme(batch.teacher))):
        student = leaves(sides[0])
        result = run(method, Batch(student, sides[1], batch.targets))
        assert all(term.isfinite() for term in result.terms.values())
        if result.total.requires_grad:
            result.total.backward()
        assert all(f.grad is None or bool(f.grad.isfinite().all()) for f in student.features)


@pytest.mark.parametrize("method", METHODS)
def test_layers_learn(pair: Any, batch: Batch, method: str) -> None:
    """With a student of other channels there are adapters at least; steps down their gradient make the loss smaller."""
    distiller, narrowed = _narrow(pair, batch, method)
    optimizer = torch.optim.Adam(distiller.parameters(), lr=1e-3)
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        total = run(distiller, narrowed).total
        total.backward()
        losses.append(float(total.detach()))
        missing = [name for name, p in distiller.named_parameters() if p.grad is None]
        assert not missing
        optimizer.step()
    moved = [(name, p) for name, p in distiller.named_parameters() if not name.endswith(IDLE.get(method, ()))]
    assert [name for name, p in moved if p.grad is None or not p.grad.any()] == []
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("method", METHODS, indirect=True)
def test_the_same_seed_gives_the_same_loss(batch: Batch, method: Distiller) -> None:
    first, again = run(method, batch), run(method, batch)
    assert all(term.equal(again.terms[name]) for name, term in first.terms.items())
