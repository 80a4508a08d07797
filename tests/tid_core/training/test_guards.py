"""What stops a run early, and how it is told."""

import errno
import math

import pytest
import torch
from torch import Tensor, nn

from tid_core.events import TrainingFailure
from tid_core.spec import JobSpec
from tid_core.training.gradients import gradient_norm_of, probe_parameters
from tid_core.training.guards import DistillationGuard, as_failure
from tid_core.training.window import Window

SPEC = JobSpec.model_validate({"student": {"detector": "fcos_conv5_tiny"}, "dataset": "d"})


def scalars(**values: float) -> dict[str, Tensor]:
    return {name: torch.tensor(value) for name, value in values.items()}


def test_the_window_gives_means_once():
    window = Window()
    window.append(1, scalars(a=1.0, b=4.0), scalars(share=math.nan))
    window.append(2, scalars(a=3.0, b=8.0), scalars(share=0.5))
    window.check()
    window.append(3, scalars(a=5.0), {})
    assert window.drain() == {"a": 3.0, "b": 6.0, "share": 0.5}
    assert window.drain() == {}


def test_the_window_goes_on_from_its_state():
    window, continued = Window(), Window()
    window.append(1, scalars(a=1.0), {})
    continued.load_state_dict(window.state_dict())
    for each in (window, continued):
        each.append(2, scalars(a=2.0), {})
    assert window.drain() == continued.drain() == {"a": 1.5}


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_is_named_with_its_step_even_when_read_late(bad):
    window = Window()
    window.append(7, scalars(cls=1.0, box=2.0), scalars(share=math.nan))
    window.append(8, scalars(cls=1.0, box=bad), {})
    window.append(9, scalars(cls=math.nan, box=math.nan), {})
    with pytest.raises(TrainingFailure, match=r"box is .* at step 8;") as caught:
        window.check()
    assert caught.value.reason == "non_finite_loss"


def student() -> nn.Module:
    return nn.Linear(3, 3)


def test_gradients_are_measured_without_touching_the_backward_pass():
    net, x = student(), torch.ones(1, 3)
    loss = (net(x) * 2).sum()
    assert gradient_norm_of(loss, [net.weight]).item() == pytest.approx(6.0)  # nine entries of 2
    assert net.weight.grad is None
    loss.backward()
    assert net.weight.grad.norm().item() == pytest.approx(6.0)
    other = student()(x).sum()
    assert gradient_norm_of(other, [net.weight]).item() == 0.0
    assert gradient_norm_of(torch.tensor(3.0), [net.weight]).item() == 0.0


def test_an_active_term_ends_the_watch_at_once_and_empty_batches_are_forgiven():
    net = student()
    guard = DistillationGuard([net.weight], steps=3)
    empty = net(torch.zeros(1, 3)).sum() * 0.0
    for _ in range(2):
        guard.observe({"high": empty}, empty, last=False)
    active = net(torch.ones(1, 3)).sum()
    guard.observe({"high": active}, active, last=False)
    for _ in range(5):
        guard.observe({"high": empty}, empty, last=True)


def test_a_term_that_is_always_zero_is_named():
    net = student()
    guard = DistillationGuard([net.weight], steps=3)
    zero = net(torch.ones(1, 3)).sum() * 0.0
    for _ in range(2):
        guard.observe({"high": zero, "low": zero}, zero, last=False)
    with pytest.raises(TrainingFailure, match=r"every distillation term \(high, low\) was zero") as caught:
        guard.observe({"high": zero, "low": zero}, zero, last=False)
    assert caught.value.reason == "distillation_inactive"


def test_a_term_cut_off_from_the_student_is_named_even_in_a_shorter_run():
    net = student()
    guard = DistillationGuard([net.weight])
    detached = net(torch.ones(1, 3)).square().sum().detach() + 1
    with pytest.raises(TrainingFailure, match=r"feature \(up to .*\) gave the student no gradient"):
        guard.observe({"feature": detached}, detached, last=True)


def test_probes_are_the_outputs_of_the_pyramid_where_there_is_one():
    from tid_core.detectors.build import build_detector

    detector = build_detector("fcos_conv5_tiny", num_classes=2)
    names = {id(p): name for name, p in detector.named_parameters()}
    probes = [names[id(p)] for p in probe_parameters(detector)]
    assert probes == [f"model.backbone.fpn.layer_blocks.{i}.0.weight" for i in range(3)]
    assert len(probe_parameters(student())) == 1


def test_running_out_of_memory_says_what_to_lower():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**50)
    failure = as_failure(caught.value, SPEC)
    assert failure.reason == "out_of_memory"
    for field in ("training.accumulate (now 1, 16 images at a time)", "data.min_size (now 800)", "training.batch_size"):
        assert field in failure.detail
    on_gpu = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
    assert as_failure(on_gpu, SPEC).reason == "out_of_memory"


@pytest.fixture
def one_megabyte_limit():
    """The kernel stops every file at 1 MB, which a writer sees like a full disk."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_told_apart_from_other_errors(tmp_path, one_megabyte_limit):
    from safetensors.torch import save_file

    big = {"a": torch.zeros(1_000_000)}
    writers = [
        lambda: save_file(big, tmp_path / "a.safetensors"),
        lambda: torch.save(big, tmp_path / "a.pt"),
        lambda: (tmp_path / "a").write_bytes(b"x" * 2_000_000),
    ]
    for write in writers:
        with pytest.raises(Exception) as caught:  # noqa: PT011 - each library has its own
            write()
        assert as_failure(caught.value, SPEC).reason == "disk_full", caught.value
    full = as_failure(OSError(errno.ENOSPC, "No space left on device"), SPEC)
    assert full.reason == "disk_full"
    assert as_failure(OSError(errno.EACCES, "Permission denied"), SPEC).reason == "internal_error"


def test_what_nobody_foresaw_keeps_its_kind_and_first_line():
    failure = as_failure(ZeroDivisionError("division by zero\nand more"), SPEC)
    assert (failure.reason, failure.detail) == ("internal_error", "ZeroDivisionError: division by zero")
    known = TrainingFailure("classes_missing", "no output for cat")
    assert as_failure(known, SPEC) is known
