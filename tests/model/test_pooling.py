import pytest
import torch
from torch import Tensor

from bilstm_cls.model.pooling import is_token, maximum, mean, reduce_mean


def reference(outputs: Tensor, lengths: Tensor) -> Tensor:
    tokens = is_token(lengths, outputs.shape[0], outputs.device)
    return outputs.masked_fill(~tokens.unsqueeze(2), -torch.inf).amax(0)


@pytest.mark.parametrize("lengths", [[5, 5, 5], [5, 3, 1], [1, 1, 1], [4, 5, 4]])
@pytest.mark.parametrize("step", [torch.inf, 0.5], ids=["distinct", "many equal"])
def test_the_largest_value_and_its_gradient_are_those_of_a_masked_maximum(lengths: list[int], step: float) -> None:
    torch.manual_seed(0)
    outputs = torch.randn(5, 3, 4, dtype=torch.float64)
    if step < torch.inf:
        outputs = (outputs / step).round() * step
    gradient = torch.randn(3, 4, dtype=torch.float64)
    results = []
    for pool in (lambda x, n: maximum(x, n, 9), reference):
        leaf = outputs.clone().requires_grad_()
        largest = pool(leaf, torch.tensor(lengths))
        largest.backward(gradient)
        results.append((largest.detach(), leaf.grad))
    for ours, expected in zip(*results, strict=True):
        assert torch.equal(ours, expected)


def test_padding_that_equals_the_largest_value_gets_no_gradient() -> None:
    outputs = torch.ones(3, 2, 1, requires_grad=True)
    maximum(outputs, torch.tensor([3, 1]), 3).sum().backward()
    assert outputs.grad is not None
    assert outputs.grad[:, 1, 0].tolist() == [1, 0, 0]
    assert outputs.grad[:, 0, 0].sum() == pytest.approx(1)


def test_means_divide_by_the_own_or_by_the_fixed_length() -> None:
    outputs = torch.arange(12.0).view(3, 2, 2)
    lengths = torch.tensor([3, 2])
    sums = torch.stack([outputs[:3, 0].sum(0), outputs[:2, 1].sum(0)])
    assert torch.allclose(mean(outputs, lengths, 6), sums / torch.tensor([[3.0], [2.0]]))
    assert torch.allclose(reduce_mean(outputs, lengths, 6), sums / 6)
