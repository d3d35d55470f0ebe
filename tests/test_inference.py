"""Claims from gradients alone: made late, made right, or not made."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from lightning_sphere.inference import PATH, STEPS, Evidence, Inferred, Sums, divisors


def evidence(
    layer: nn.Linear,
    function: Callable[[Tensor], Tensor],
    steps: int,
    lr: float = 0.05,
    dtype: torch.dtype = torch.float32,
    bias_lr: float | None = None,
) -> Evidence:
    """Train for some steps and collect what a flush would."""
    torch.manual_seed(0)
    layer.to(dtype)
    groups = [
        {"params": [p], "lr": lr if p is layer.weight or bias_lr is None else bias_lr} for p in layer.parameters()
    ]
    optimizer = torch.optim.SGD(groups)
    target = torch.randn(16, layer.out_features)
    result = Evidence(layer.out_features, layer.weight.numel())
    for _ in range(steps):
        optimizer.zero_grad()
        loss = (function(layer(torch.randn(16, layer.in_features, dtype=dtype))) * target.to(dtype)).tanh().sum()
        loss.backward()

        def sums(parameter: nn.Parameter) -> Sums:
            x = parameter.detach().double().reshape(layer.out_features, -1)
            assert parameter.grad is not None
            g = parameter.grad.double().reshape(layer.out_features, -1)
            gx, gg, xx = (g * x).sum(1)[None], (g * g).sum(1)[None], (x * x).sum(1)[None]
            return gx, gg, xx, lr**2 * gg  # the displacement of SGD

        alone = sums(layer.weight)
        both = None
        if layer.bias is not None:
            gx, gg, xx, dd = (a + b for a, b in zip(alone, sums(layer.bias), strict=True))
            both = gx, gg, xx, dd
        result.add(alone, both)
        optimizer.step()
    return result


def batch_norm(x: Tensor) -> Tensor:
    return nn.functional.batch_norm(x, None, None, training=True)


def heads(x: Tensor) -> Tensor:
    return nn.functional.normalize(x.unflatten(-1, (4, 3)), dim=-1).flatten(1)


CASES: dict[str, tuple[Callable[[Tensor], Tensor], bool, tuple[int, bool] | None]] = {
    "batch norm": (batch_norm, False, (12, False)),
    "batch norm removes the bias": (batch_norm, True, (12, False)),
    "batch norm behind ReLU": (lambda x: batch_norm(x.relu()), True, (12, True)),
    "heads": (heads, False, (4, False)),
    "heads with bias": (heads, True, (4, True)),
    "layer norm": (lambda x: nn.functional.layer_norm(x, (12,)), True, (1, True)),
    "nothing": (lambda x: x, False, None),
    "GELU": (nn.functional.gelu, True, None),
    "a raw skip": (lambda x: batch_norm(x) + 0.1 * x, False, None),
    "a large eps": (lambda x: nn.functional.batch_norm(x, None, None, training=True, eps=0.01), False, None),
}


@pytest.mark.parametrize("name", CASES)
def test_what_gradients_say(name: str) -> None:
    function, bias, expected = CASES[name]
    torch.manual_seed(1)
    found = evidence(nn.Linear(9, 12, bias=bias), function, 20).inferred()
    assert (found and (found.blocks, found.with_bias)) == expected


def test_it_takes_several_steps() -> None:
    torch.manual_seed(1)
    assert evidence(nn.Linear(9, 12, bias=False), batch_norm, STEPS - 1).inferred() is None
    assert evidence(nn.Linear(9, 12, bias=False), batch_norm, STEPS).inferred() == Inferred(12, False, STEPS)


def test_a_zero_bias_hides_that_it_is_needed() -> None:
    layer = nn.Linear(9, 12)
    nn.init.zeros_(layer.bias)
    late = lambda x: batch_norm(x.relu())  # noqa: E731
    assert evidence(layer, late, 30, bias_lr=0.0).inferred() is None
    found = evidence(layer, late, 30).inferred()
    assert found is not None
    assert found.with_bias


def test_rounding_in_low_precision_claims_nothing_false() -> None:
    torch.manual_seed(1)
    assert evidence(nn.Linear(9, 12), lambda x: x, 20, dtype=torch.bfloat16).inferred() is None


def test_steps_without_gradient_say_nothing() -> None:
    found = Evidence(4, 8)
    zeros = torch.zeros(30, 4, dtype=torch.float64)
    found.add((zeros, zeros, zeros + 1, zeros + 1), None)
    found.add((zeros, zeros * torch.nan, zeros + 1, zeros + 1), None)
    found.add((zeros, zeros + 1, zeros, zeros), None)  # a weight of zero is orthogonal to everything
    assert found.steps == 0
    assert found.inferred() is None
    found.add((zeros, zeros + 1, torch.eye(4, dtype=torch.float64)[:1].expand(30, 4), zeros + 1), None)
    assert found.inferred() is None  # three rows of four are zero
    few = zeros.clone()
    few[:, 0] = 1.0  # one row of four has a gradient, orthogonal to it
    found.add((zeros, few, zeros + 1, zeros + 1), None)
    assert found.inferred() is None


def test_a_weight_that_hardly_moved_says_nothing() -> None:
    """Its gradient is orthogonal to it where it is all alike before a softmax, or another weight is still zero."""
    found = Evidence(4, 8)
    zeros = torch.zeros(30, 4, dtype=torch.float64)
    found.add((zeros, zeros + 1, zeros + 1, zeros + 0.8 * (PATH / 30) ** 2), None)
    assert found.inferred() is None
    found.add((zeros, zeros + 1, zeros + 1, zeros + 0.8 * (PATH / 30) ** 2), None)
    assert found.inferred() == Inferred(4, False, 60)


def test_divisors() -> None:
    assert divisors(12) == [12, 6, 4, 3, 2, 1]
