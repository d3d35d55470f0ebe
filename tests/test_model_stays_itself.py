"""A model under a tracker can be compiled, copied, averaged and saved as if there were none."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.optim.swa_utils import AveragedModel

from lightning_sphere import SphereMonitor, SphereTracker, read_run
from lightning_sphere.guard import SphereWarning
from lit import LitNet, loader, quiet_trainer
from nets import batches, conv_net


def step(network: Any, optimizer: torch.optim.Optimizer, seed: int = 0) -> None:
    ((images, classes),) = batches(1, seed=seed)
    optimizer.zero_grad()
    cross_entropy(network(images), classes).backward()
    optimizer.step()


@pytest.mark.parametrize("early", [True, False], ids=["before the first step", "after it"])
def test_copies_average_and_checkpoints_of_the_model(tmp_path: Path, early: bool) -> None:
    net = conv_net()
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    with SphereTracker(net, optimizer, tmp_path / "run", strict=True):
        if not early:
            step(net, optimizer)
        copied, average = copy.deepcopy(net), AveragedModel(net)
        torch.save(net, tmp_path / "model.pt")
        loaded = torch.load(tmp_path / "model.pt", weights_only=False)
        for other in (copied, average, loaded):
            other.train()
            other(next(batches(1))[0])  # runs, and does not reach our tracker
        for _ in range(3):
            step(net, optimizer)
            average.update_parameters(net)
    assert len(read_run(tmp_path / "run").steps) == (3 if early else 4)
    assert all(type(hook).__name__ == "function" for hook in copied._forward_hooks.values())
    assert not net._forward_hooks


@pytest.mark.parametrize("fullgraph", [True, False])
def test_a_compiled_model_compiles_as_without_the_tracker(tmp_path: Path, fullgraph: bool) -> None:
    net = conv_net()
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled = torch.compile(net, backend="eager", fullgraph=fullgraph)
    with (
        pytest.warns(SphereWarning, match="call discover"),
        SphereTracker(net, optimizer, tmp_path, strict=True),
    ):
        for seed in range(3):
            step(compiled, optimizer, seed)
    assert torch._dynamo.utils.counters["graph_break"] == {}
    assert read_run(tmp_path).steps.tolist() == [0, 1, 2]


def test_a_loss_read_by_hand_tells_what_a_compiled_model_hides(tmp_path: Path) -> None:
    net = conv_net()
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    compiled = torch.compile(net, backend="eager", fullgraph=True)
    images, classes = next(batches(1))
    with SphereTracker(net, optimizer, tmp_path, strict=True) as tracker:
        tracker.discover(cross_entropy(net(images), classes))
        step(compiled, optimizer)
    assert read_run(tmp_path).invariant == (True, True, False)


def test_an_unused_lazy_layer_does_not_matter(tmp_path: Path) -> None:
    net = conv_net()
    net.register_module("lazy", nn.LazyLinear(3))
    net.forward = lambda x: nn.Sequential(*list(net.children())[:-1])(x)  # type: ignore[method-assign]
    optimizer = torch.optim.SGD([p for n, p in net.named_parameters() if "lazy" not in n], 0.1)
    with SphereTracker(net, optimizer, tmp_path, strict=True):
        step(net, optimizer)
    assert read_run(tmp_path).invariant == (True, True, False)


def test_a_layer_replaced_by_one_of_another_shape_is_measured_from_then_on(tmp_path: Path) -> None:
    net = conv_net()
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    with SphereTracker(net, optimizer, tmp_path, strict=True):
        step(net, optimizer)
        net[9] = nn.Linear(11, 12)
        optimizer.param_groups[0]["params"] = list(net.parameters())
        step(net, optimizer)
        step(net, optimizer)
    record = read_run(tmp_path)
    assert np.isfinite(record["norm"]).all()
    assert record.cuts[2] == (0, 12)


def test_a_weight_unfrozen_in_place_joins(tmp_path: Path) -> None:
    net = conv_net()
    net[0].weight.requires_grad_(False)
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    with SphereTracker(net, optimizer, tmp_path, strict=True):
        step(net, optimizer)
        net[0].weight.requires_grad_(True)
        step(net, optimizer)
    record = read_run(tmp_path)
    assert record.layers == ("0", "3", "9")
    assert np.isnan(record["norm"][0, 0])
    assert record.invariant == (True, True, False)


def test_a_network_that_joins_late_is_discovered(tmp_path: Path) -> None:
    nets = nn.ModuleList([conv_net(), conv_net(seed=1)])
    first, second = (torch.optim.SGD(net.parameters(), 0.1) for net in nets)
    with SphereTracker(nets, [first, second], tmp_path, strict=True) as tracker:
        for number in range(40):
            for net, optimizer in zip(nets, (first, second), strict=True):
                if net is nets[1] and number < 30:
                    continue
                images, classes = next(batches(1, seed=number))
                optimizer.zero_grad()
                loss = cross_entropy(net(images), classes)
                if tracker.wants_loss:
                    tracker.discover(loss)
                loss.backward()
                optimizer.step()
    assert read_run(tmp_path).invariant == (True, True, False) * 2


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_steps_at_one_position_share_a_row_whatever_their_order(tmp_path: Path, order: tuple[int, int]) -> None:
    nets = [conv_net(), conv_net(seed=1)]
    optimizers = [torch.optim.SGD(net.parameters(), 0.1) for net in nets]
    model = nn.ModuleList(nets)
    with SphereTracker(model, optimizers, tmp_path, strict=True, flush_every_n_steps=3) as tracker:
        images, classes = next(batches(1))
        tracker.discover(sum(cross_entropy(net(images), classes) for net in nets))  # type: ignore[arg-type]
        for number in range(10):
            for index in order:
                step(nets[index], optimizers[index], seed=number)
    record = read_run(tmp_path)
    assert record.steps.tolist() == list(range(10))
    assert np.isfinite(record["norm"]).all()


def test_the_callback_can_be_pickled_and_copied_after_a_fit(tmp_path: Path) -> None:
    monitor = SphereMonitor(strict=True, every_n_steps=2)
    quiet_trainer(tmp_path, callbacks=[monitor]).fit(LitNet(), loader(count=64))
    assert monitor.tracker is not None
    for other in (pickle.loads(pickle.dumps(monitor)), copy.deepcopy(monitor)):
        assert other.tracker is None
        quiet_trainer(tmp_path, callbacks=[other]).fit(LitNet(), loader(count=64))
        assert other.tracker.summary().steps == 2


def test_two_monitors_in_one_trainer_are_refused(tmp_path: Path) -> None:
    """They would write the same curves. Lightning itself sees to it, for both have a state in checkpoints."""
    with pytest.raises(RuntimeError, match="more than one stateful callback of type `SphereMonitor`"):
        quiet_trainer(tmp_path, callbacks=[SphereMonitor(), SphereMonitor()])
