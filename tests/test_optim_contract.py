"""What torch and its users expect of an optimizer, of the reference optimizers."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer
from torch.optim.lr_scheduler import LambdaLR, OneCycleLR

from lightning_sphere.optim import AdamGStar, AdamS, AdamSRT
from nets import FIRST, LAST, SECOND
from optim_cases import (
    EVERYTHING,
    LAYOUTS,
    SHAPES,
    Layer,
    bits,
    both_ways,
    every_kind,
    invariant_net,
    put_gradients,
    same,
    scale_groups,
    stepped,
    tensors,
)


@both_ways
@every_kind
def test_gradients_are_not_written_to(kind: Any, foreach: bool) -> None:
    for maximize in (False, True):
        parameters = tensors()
        optimizer = kind(
            parameters.items(), groups=scale_groups(EVERYTHING), foreach=foreach, weight_decay=0.1, maximize=maximize
        )
        put_gradients(parameters, 0)
        grads = [parameter.grad for parameter in parameters.values()]
        before = bits(grads)
        versions = [grad._version for grad in grads if grad is not None]
        optimizer.step()
        assert same(bits(parameter.grad for parameter in parameters.values()), before)
        assert [grad._version for grad in grads if grad is not None] == versions
        assert all(parameter.grad is grad for parameter, grad in zip(parameters.values(), grads, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@both_ways
@every_kind
def test_training_resumes_bit_by_bit(kind: Any, foreach: bool, dtype: torch.dtype) -> None:
    def made(parameters: dict[str, nn.Parameter]) -> Any:
        return kind(parameters.items(), lr=0.05, weight_decay=0.1, groups=scale_groups(EVERYTHING), foreach=foreach)

    def run(parameters: dict[str, nn.Parameter], optimizer: Optimizer, first: int, last: int) -> None:
        for step in range(first, last):
            put_gradients(parameters, step)
            optimizer.step()

    parameters = tensors(dtype)
    optimizer = made(parameters)
    run(parameters, optimizer, 0, 3)
    file = io.BytesIO()
    torch.save({"weights": dict(parameters), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    run(parameters, optimizer, 3, 6)

    saved = torch.load(file, weights_only=True)
    resumed = {name: nn.Parameter(value) for name, value in saved["weights"].items()}
    other = made(resumed)
    other.load_state_dict(saved["optimizer"])
    run(resumed, other, 3, 6)
    assert same(bits(parameters.values()), bits(resumed.values()))
    for name, parameter in parameters.items():
        for key, value in optimizer.state[parameter].items():
            assert torch.equal(value, other.state[resumed[name]][key]), (name, key)
            assert value.dtype == other.state[resumed[name]][key].dtype, (name, key)


@every_kind
def test_state_of_other_groups_is_refused(kind: Any) -> None:
    parameters = tensors()
    optimizer = kind(parameters.items(), groups=scale_groups(LAYOUTS["rows"]))
    put_gradients(parameters, 0)
    optimizer.step()
    saved = optimizer.state_dict()
    whole = kind(parameters.items(), groups=scale_groups(LAYOUTS["whole"]))
    with pytest.raises(ValueError, match=r"state_dict takes the state of a .* with the same groups"):
        whole.load_state_dict(saved)
    assert not whole.state
    whole.load_state_dict(kind(parameters.items()).state_dict())  # nothing stepped yet: nothing to refuse


@pytest.mark.parametrize(("kind", "plain"), [(AdamS, Adam), (AdamSRT, Adam), (AdamGStar, SGD)])
def test_what_torch_saved_goes_on_where_there_are_no_groups(kind: Any, plain: type[Optimizer]) -> None:
    one, other = tensors(), tensors()
    first, second = plain(one.values(), lr=0.1), kind(other.values(), lr=0.1)  # type: ignore[call-arg]
    put_gradients(one, 0)
    first.step()
    for name, value in one.items():
        other[name].data.copy_(value.data)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    put_gradients(one, 1)
    put_gradients(other, 1)
    first.step()
    second.step()
    assert same(bits(one.values()), bits(other.values()))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
@every_kind
def test_copies_go_on_alike(kind: Any, copied: Callable[[Any], Any]) -> None:
    parameters = tensors()
    optimizer = kind(parameters.items(), groups=scale_groups(EVERYTHING))
    put_gradients(parameters, 0)
    optimizer.step()
    others, twin = copied((parameters, optimizer))
    for chosen, chosen_optimizer in ((parameters, optimizer), (others, twin)):
        put_gradients(chosen, 1)
        chosen_optimizer.step()
    assert same(bits(parameters.values()), bits(others.values()))


@both_ways
@every_kind
def test_a_closure_is_called_once_with_gradients(kind: Any, foreach: bool) -> None:
    weight = nn.Parameter(torch.tensor([[3.0, 4.0]]))
    optimizer = kind([{"params": [weight], "invariant": "row"}], lr=0.1, foreach=foreach)
    calls = []

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = weight[0, 0] / weight.norm()
        loss.backward()
        calls.append(loss)
        return loss

    assert optimizer.step(closure) is calls[0]
    assert len(calls) == 1
    assert weight[0, 0].item() < 3.0
    assert optimizer.step() is None


@every_kind
def test_hooks_of_torch_work(kind: Any) -> None:
    parameters = tensors()
    optimizer = kind(parameters.items())
    seen: list[str] = []
    optimizer.register_step_pre_hook(lambda *_: seen.append("before"))
    optimizer.register_step_post_hook(lambda *_: seen.append("after"))
    put_gradients(parameters, 0)
    optimizer.step()
    assert seen == ["before", "after"]


@every_kind
def test_sparse_gradients_are_refused_before_anything_changes(kind: Any) -> None:
    model = nn.Sequential(nn.Embedding(5, 3, sparse=True), nn.Linear(3, 2))
    optimizer = kind(reversed(list(model.named_parameters())), lr=0.1)
    model(torch.tensor([1, 2])).sum().backward()
    before = bits(model.parameters())
    with pytest.raises(RuntimeError, match=r"takes dense gradients, got a sparse one for parameter 0.weight of shape"):
        optimizer.step()
    assert same(bits(model.parameters()), before)
    assert not optimizer.state


@both_ways
@every_kind
def test_tensors_without_gradient_are_skipped(kind: Any, foreach: bool) -> None:
    parameters = tensors()
    optimizer = kind(parameters.items(), lr=0.1, groups=scale_groups(LAYOUTS["rows with bias"]), foreach=foreach)
    put_gradients(parameters, 0)
    for name in ("conv", "bias", "free"):
        parameters[name].grad = None
    optimizer.step()
    changed = {name for name, start in tensors().items() if not torch.equal(start, parameters[name])}
    assert changed == {"turned", "scale"}
    assert set(optimizer.state) == {parameters["turned"], parameters["scale"]}


@both_ways
@every_kind
def test_a_group_with_some_gradients_is_stepped_as_if_the_others_were_zero(kind: Any, foreach: bool) -> None:
    found = []
    for missing in (None, "zeros"):
        parameters = tensors()
        optimizer = kind(parameters.items(), lr=0.1, groups=scale_groups(LAYOUTS["joint set"]), foreach=foreach)
        for step in range(3):
            put_gradients(parameters, step)
            parameters["turned"].grad = None if missing is None else torch.zeros_like(parameters["turned"])
            optimizer.step()
        found.append(bits(parameters.values()))
    assert same(*found)
    parameters["turned"].grad = None
    parameters["turned"].requires_grad_(False)
    with pytest.raises(RuntimeError, match=r"as a whole, but a tensor of shape \(3, 4\) is frozen while others of"):
        optimizer.step()


@every_kind
def test_param_groups_added_later_are_grouped(kind: Any) -> None:
    model, discovery = invariant_net()
    named = dict(model.named_parameters())
    optimizer = kind([(FIRST, named[FIRST])], lr=0.01, groups=discovery)
    late = [(name, value) for name, value in named.items() if name != FIRST]
    optimizer.add_param_group({"params": late, "lr": 0.001})
    for _ in stepped(model, optimizer, 2):
        pass
    key = "growth" if kind is AdamGStar else "exp_avg_sq"
    assert optimizer.state[named[SECOND]][key].shape == (11, 1, 1, 1)
    assert "divisor" not in optimizer.state[named[LAST]]
    with pytest.raises(ValueError, match="lr takes a number from 0 on"):
        optimizer.add_param_group({"params": [("new", nn.Parameter(torch.zeros(2)))], "lr": -1.0})
    assert len(optimizer.param_groups) == 2


class Found:
    """What counts of a Discovery."""

    groups = tuple(scale_groups([([("free", 0)], 2, None), ([("conv", 0), ("bias", 0)], 6, None)]))


@every_kind
def test_a_group_may_arrive_tensor_by_tensor_until_the_next_step(kind: Any) -> None:
    parameters = tensors()
    optimizer = kind([("free", parameters["free"])], groups=Found())
    put_gradients(parameters, 0)
    optimizer.step()
    optimizer.add_param_group({"params": [("conv", parameters["conv"])]})
    with pytest.raises(ValueError, match=r"'layer 1' is invariant only together with 'bias'; params takes all"):
        optimizer.step()
    optimizer.add_param_group({"params": [("bias", parameters["bias"])], "weight_decay": 0.0})
    optimizer.step()
    assert optimizer.state[parameters["bias"]]["divisor"].shape == (6,)
    assert optimizer.state[parameters["free"]]["step"].item() == 2


@both_ways
@every_kind
def test_maximize_climbs_where_the_gradient_points(kind: Any, foreach: bool) -> None:
    found = []
    for sign in (1.0, -1.0):
        parameters = tensors()
        optimizer = kind(
            parameters.items(), lr=0.1, groups=scale_groups(EVERYTHING), foreach=foreach, maximize=sign < 0
        )
        for step in range(2):
            put_gradients(parameters, step)
            for parameter in parameters.values():
                assert parameter.grad is not None
                parameter.grad *= sign
            optimizer.step()
        assert {state["step"].item() for state in optimizer.state.values()} == {2.0}
        found.append(bits(parameters.values()))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-13, atol=1e-15)


@both_ways
@every_kind
def test_lr_may_be_a_tensor(kind: Any, foreach: bool) -> None:
    one, other = tensors(), tensors()
    rate = torch.tensor(0.05, dtype=torch.float64)
    with_number = kind(one.items(), lr=0.05, groups=scale_groups(EVERYTHING), foreach=foreach)
    with_tensor = kind(other.items(), lr=rate, groups=scale_groups(EVERYTHING), foreach=foreach)
    for step in range(3):
        put_gradients(one, step)
        put_gradients(other, step)
        with_number.param_groups[0]["lr"] = 0.05 / (step + 1)
        rate.fill_(0.05 / (step + 1))
        with_number.step()
        with_tensor.step()
    for a, b in zip(one.values(), other.values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


@every_kind
def test_schedulers_work(kind: Any) -> None:
    parameters = tensors()
    optimizer = kind(parameters.items(), lr=0.1, groups=scale_groups(EVERYTHING))
    scheduler = LambdaLR(optimizer, lambda step: float(step == 1))
    moved = []
    for step in range(3):
        before = bits(parameters.values())
        put_gradients(parameters, step)
        optimizer.step()
        moved.append(max((a - b).abs().max().item() for a, b in zip(before, parameters.values(), strict=True)))
        scheduler.step()
    assert moved[0] < 1e-15 > moved[2]
    assert moved[1] > 0.01


def test_one_cycle_changes_betas() -> None:
    parameters = tensors()
    optimizer = AdamSRT(parameters.items(), groups=scale_groups(EVERYTHING))
    scheduler = OneCycleLR(optimizer, 0.1, total_steps=5)
    for step in range(4):
        put_gradients(parameters, step)
        optimizer.step()
        scheduler.step()
    assert all(bool(value.isfinite().all()) for value in parameters.values())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@both_ways
@every_kind
def test_half_precision_follows_double(kind: Any, foreach: bool, dtype: torch.dtype) -> None:
    low = tensors(dtype)
    high = {name: nn.Parameter(value.detach().double()) for name, value in low.items()}
    optimizers = [kind(p.items(), lr=0.05, groups=scale_groups(EVERYTHING), foreach=foreach) for p in (low, high)]
    for step in range(5):
        put_gradients(low, step)
        for name, value in high.items():
            value.grad = low[name].grad.double()  # type: ignore[union-attr]
        for optimizer in optimizers:
            optimizer.step()
    for name, value in low.items():
        assert value.dtype == dtype
        torch.testing.assert_close(value.double(), high[name], rtol=0.03, atol=0.03)
    state = optimizers[0].state[low["free"]]
    assert {key: entry.dtype for key, entry in state.items() if key != "exp_avg"} == dict.fromkeys(
        set(state) - {"exp_avg"}, torch.float32
    )


@both_ways
@pytest.mark.parametrize("kind", [AdamS, AdamSRT])
def test_second_moments_of_low_precision_are_summed_in_single_precision(kind: Any, foreach: bool) -> None:
    weight = nn.Parameter(torch.ones(3, 1000, dtype=torch.bfloat16))
    optimizer = kind([{"params": [weight], "invariant": "row"}], lr=0.0, foreach=foreach)
    weight.grad = torch.randn(3, 1000, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    optimizer.step()
    expected = 1e-3 * weight.grad.double().square().mean(1, keepdim=True)
    torch.testing.assert_close(optimizer.state[weight]["exp_avg_sq"].double(), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("kind", [AdamS, AdamSRT])
def test_second_moments_decay_in_low_precision(kind: Any) -> None:
    weight = nn.Parameter(torch.ones(2, 3, dtype=torch.bfloat16))
    optimizer = kind([{"params": [weight], "invariant": "row"}], lr=0.0)
    weight.grad = torch.ones_like(weight)
    optimizer.step()
    weight.grad = torch.zeros_like(weight)
    for _ in range(100):
        optimizer.step()
    torch.testing.assert_close(
        optimizer.state[weight]["exp_avg_sq"], torch.full((2, 1), 1e-3 * 0.999**100), rtol=1e-4, atol=0
    )


@both_ways
@every_kind
def test_complex_tensors_are_stepped_as_pairs_of_real_ones(kind: Any, foreach: bool) -> None:
    layers: list[Layer] = [([("a", 0)], 4, None), ([("b", 1), ("c", 0)], 3, (0, 2))]
    real = tensors(shapes={"a": (4, 3, 2), "b": (2, 3, 2), "c": (3, 2), "d": (2, 2)})
    pairs = {name: nn.Parameter(torch.view_as_complex(value.detach().clone())) for name, value in real.items()}
    optimizers = [kind(p.items(), lr=0.05, groups=scale_groups(layers), foreach=foreach) for p in (real, pairs)]
    for step in range(3):
        put_gradients(real, step)
        for name, value in real.items():
            assert value.grad is not None
            pairs[name].grad = torch.view_as_complex(value.grad.clone())
        for optimizer in optimizers:
            optimizer.step()
    for name, value in real.items():
        torch.testing.assert_close(torch.view_as_real(pairs[name].detach()), value.detach(), rtol=1e-13, atol=1e-14)
    assert optimizers[1].state[pairs["a"]]["divisor"].shape == (4, 1)


@both_ways
@every_kind
def test_a_step_reads_nothing_back(kind: Any, foreach: bool) -> None:
    """Tensors without data have none to read: only counts of steps, on the CPU, may be."""
    parameters = {name: nn.Parameter(torch.empty(shape, device="meta")) for name, shape in SHAPES.items()}
    optimizer = kind(parameters.items(), groups=scale_groups(EVERYTHING), foreach=foreach, weight_decay=0.1)
    for _ in range(2):
        for parameter in parameters.values():
            parameter.grad = torch.empty_like(parameter)
        optimizer.step()
    for parameter in parameters.values():
        state = optimizer.state[parameter]
        assert state.pop("step").device.type == "cpu"
        assert all(value.device.type == "meta" for value in state.values())


@both_ways
@every_kind
def test_groups_of_zeros_stay_finite(kind: Any, foreach: bool) -> None:
    weight = nn.Parameter(torch.zeros(2, 3))
    optimizer = kind([{"params": [weight], "invariant": "row"}], lr=0.1, foreach=foreach)
    for _ in range(3):
        weight.grad = torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, 0.0]])
        optimizer.step()
    assert bool(weight.isfinite().all())
    assert bool((weight[0] < 0).all()) or kind is AdamGStar
    assert not weight[1].any()
