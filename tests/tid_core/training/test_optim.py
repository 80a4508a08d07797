"""Optimiser, learning rate, moving average, seeds."""

import random

import numpy as np
import pytest
import torch
from torch import nn

from tid_core.spec import TrainingSpec
from tid_core.training.ema import Ema
from tid_core.training.optim import build_optimizer, gradient_norm, learning_rate
from tid_core.training.randomness import derive_seed, seed_all


def network() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1))


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_only_matrices_are_decayed_and_frozen_parameters_are_left_out(name):
    net = network()
    net[2].requires_grad_(False)
    optimizer = build_optimizer(net, TrainingSpec(optimizer=name, weight_decay=0.3))
    decayed, plain = optimizer.param_groups
    assert [p.shape for p in decayed["params"]] == [net[0].weight.shape]
    assert decayed["weight_decay"] == 0.3
    assert {id(p) for p in plain["params"]} == {id(net[0].bias), id(net[1].weight), id(net[1].bias)}
    assert plain["weight_decay"] == 0.0


def test_learning_rate_warms_up_and_drops_at_the_milestones():
    spec = TrainingSpec(lr=1.0, warmup_steps=10, warmup_factor=0.1, milestones=[0.5, 0.75], gamma=0.1)
    rates = [learning_rate(spec, step=step, total_steps=100) for step in (0, 5, 10, 49, 50, 74, 75, 99)]
    assert rates == pytest.approx([0.1, 0.55, 1.0, 1.0, 0.1, 0.1, 0.01, 0.01])


def test_learning_rate_cosine_falls_to_zero_and_constant_stays():
    cosine = TrainingSpec(lr=2.0, warmup_steps=0, schedule="cosine")
    rates = [learning_rate(cosine, step=step, total_steps=100) for step in range(100)]
    assert rates == sorted(rates, reverse=True)
    assert rates[0] == 2.0
    assert rates[50] == pytest.approx(1.0)
    assert rates[99] < 0.001
    constant = TrainingSpec(lr=2.0, warmup_steps=0, schedule="constant")
    assert {learning_rate(constant, step=step, total_steps=9) for step in range(9)} == {2.0}


def test_gradient_norm_is_the_one_before_clipping():
    parameter = nn.Parameter(torch.zeros(2))
    parameter.grad = torch.tensor([3.0, 4.0])
    assert gradient_norm([parameter], max_norm=None).item() == 5.0
    assert parameter.grad.tolist() == [3.0, 4.0]
    assert gradient_norm([parameter], max_norm=1.0).item() == 5.0
    assert parameter.grad.norm().item() == pytest.approx(1.0, rel=1e-4)


def test_ema_follows_by_hand_and_continues_from_its_state():
    net = network()
    ema = Ema(net, decay=0.9)
    start = net[0].weight.detach().clone()
    with torch.no_grad():
        net[0].weight += 1.0
    net.train()(torch.randn(2, 3, 8, 8))  # moves BatchNorm's statistics and its counter
    ema.update(net)
    # The first decay is (1 + 0) / (10 + 0).
    torch.testing.assert_close(ema.average[0].weight, 0.1 * start + 0.9 * net[0].weight)
    assert ema.average[1].num_batches_tracked.item() == 1
    assert not any(p.requires_grad for p in ema.average.parameters())

    twin = Ema(network(), decay=0.9)
    twin.load_state_dict(ema.state_dict())
    with torch.no_grad():
        net[0].weight += 1.0
    for follower in (ema, twin):
        follower.update(net)
    assert torch.equal(ema.average[0].weight, twin.average[0].weight)


def test_seeds_cover_every_generator_and_differ_by_place():
    def draws(*parts: int) -> tuple[float, float, float]:
        seed_all(*parts)
        return torch.rand(()).item(), float(np.random.rand()), random.random()

    assert draws(1, 2) == draws(1, 2)
    assert not set(draws(1, 2)) & set(draws(1, 3))
    assert derive_seed(1, 23) != derive_seed(12, 3)
