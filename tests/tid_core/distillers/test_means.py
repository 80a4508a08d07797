"""Means by weight, and what the levels have in them."""

import pytest
import torch

from tid_core.distillers.means import level_result, weighted_means


def test_by_hand() -> None:
    """Weights 1 and 3 on values 2 and 4: 14 / 4; a half on 8: 8; none at all: 0. Together: 14 + 4 = 18 over 4.5."""
    values = [torch.tensor([[[2.0, 4.0]]]), torch.tensor([[[8.0]]]), torch.tensor([[[5.0]]])]
    weights = [torch.tensor([[[1.0, 3.0]]]), torch.tensor([[[0.5]]]), torch.tensor([[[0.0]]])]
    assert weighted_means(values, weights).tolist() == [3.5, 8.0, 0.0]
    assert weighted_means(values, weights, together=True).tolist() == pytest.approx([14 / 4.5, 4 / 4.5, 0])


def test_masks_are_weights() -> None:
    values = [torch.tensor([[[2.0, 4.0, 9.0]]])]
    assert weighted_means(values, [torch.tensor([[[True, True, False]]])]).tolist() == [3.0]


def test_weights_are_no_way_for_gradients() -> None:
    """Into the sum of the weights none flows."""
    value, weight = torch.tensor([[[2.0, 4.0]]], requires_grad=True), torch.tensor([[[1.0, 3.0]]])
    weighted_means([value], [weight]).sum().backward()
    assert value.grad is not None
    assert value.grad.flatten().tolist() == [0.25, 0.75]


def test_names_of_levels() -> None:
    result = level_result({"near": torch.tensor([1.0, 2.0]), "far": torch.tensor([3.0, 0.5])}, [8, 16])
    assert {name: float(term) for name, term in result.terms.items()} == {"distill/near": 3.0, "distill/far": 3.5}
    assert {name: float(metric) for name, metric in result.metrics.items()} == {
        "distill/near/p3": 1.0,
        "distill/near/p4": 2.0,
        "distill/far/p3": 3.0,
        "distill/far/p4": 0.5,
    }
