"""Steps that are compiled, fused, or captured into a graph: they are measured alike, and go on as they did."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import SGD, AdamW, Optimizer

from lightning_sphere import RunRecord, SphereTracker, read_run
from lightning_sphere.guard import SphereWarning
from lightning_sphere.measurement import tap
from nets import batches, conv_net

Step = Callable[[Optimizer], Callable[[], Any]]
FACTORIES: dict[str, Callable[[Any], Optimizer]] = {
    "SGD": lambda p: SGD(p, 0.1, momentum=0.9),
    "AdamW": lambda p: AdamW(p, 1e-2),
    "AdamW, fused": lambda p: AdamW(p, 1e-2, fused=True),
    "AdamW, foreach": lambda p: AdamW(p, 1e-2, foreach=True),
    "AdamW, tensor lr": lambda p: AdamW(p, torch.tensor(1e-2), foreach=False),
}
CANCELLING = {"radial_fraction": 1e-5, "invariance_residual": 1e-5, "radius_growth": 1e-7}
AS_IT_IS: Step = lambda optimizer: optimizer.step  # noqa: E731


def train(
    make: Callable[[Any], Optimizer], step: Step, folder: Path | None, steps: int = 24
) -> tuple[list[Tensor], RunRecord | None]:
    """The weights at the end, and what was recorded."""
    torch.manual_seed(0)
    model = conv_net()
    optimizer = make(model.parameters())

    def loop() -> None:
        run = step(optimizer)
        for images, classes in batches(steps):
            optimizer.zero_grad()
            cross_entropy(model(images), classes).backward()
            run()

    if folder is None:
        loop()
        return [p.detach() for p in model.parameters()], None
    with SphereTracker(model, optimizer, folder, flush_every_n_steps=8, strict=True):
        loop()
    return [p.detach() for p in model.parameters()], read_run(folder)


def assert_same(one: RunRecord | None, other: RunRecord | None) -> None:
    assert one is not None
    assert other is not None
    np.testing.assert_array_equal(one.steps, other.steps)
    for index, name in enumerate(one.quantities):  # compiled sums are rounded otherwise, and some nearly cancel
        found, expected = one.values[:, :, index], other.values[:, :, index]
        np.testing.assert_allclose(found, expected, rtol=2e-4, atol=CANCELLING.get(name, 1e-9), err_msg=name)


@pytest.fixture
def _no_recompilation() -> Iterator[None]:
    """Compiling anew at each step would be far slower than not compiling."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield
    assert torch._dynamo.utils.counters["recompiles"] == {}
    frames = torch._dynamo.utils.counters["frames"]["total"]
    torch._dynamo.reset()
    assert frames < 40, "compiled over and over"


@pytest.mark.usefixtures("_no_recompilation")
@pytest.mark.parametrize("name", ["SGD", "AdamW"])
def test_a_compiled_step_is_measured_and_not_compiled_over_and_over(name: str, tmp_path: Path) -> None:
    def compiled(optimizer: Optimizer) -> Callable[[], Any]:
        @torch.compile(backend="eager")
        def step() -> None:
            optimizer.step()

        return step

    bare, _ = train(FACTORIES[name], compiled, None)
    watched, record = train(FACTORIES[name], compiled, tmp_path / "compiled")
    assert all(map(torch.equal, bare, watched))
    assert record is not None
    assert record.steps.tolist() == list(range(24))
    _, record = train(FACTORIES[name], compiled, tmp_path / "few", steps=4)
    _, usual = train(FACTORIES[name], AS_IT_IS, tmp_path / "usual", steps=4)  # later the trainings part by rounding
    assert_same(record, usual)


@pytest.mark.parametrize("name", FACTORIES)
def test_every_kind_of_step_goes_on_as_it_did(name: str, tmp_path: Path) -> None:
    bare, _ = train(FACTORIES[name], AS_IT_IS, None)
    watched, record = train(FACTORIES[name], AS_IT_IS, tmp_path)
    assert all(map(torch.equal, bare, watched))
    assert record is not None
    assert record.steps.tolist() == list(range(24))


# ------------------------------------------------------- a graph of the whole


class Graph:
    """Forward, backward and the optimizer's arithmetic in one, without hooks, on gradients that stay where they are."""

    def __init__(self, model: nn.Module, optimizer: Optimizer) -> None:
        self.model, self.optimizer = model, optimizer
        self.arithmetic = type(optimizer).step.__wrapped__  # type: ignore[attr-defined]
        for p in model.parameters():
            p.grad = torch.zeros_like(p)

    def replay(self, images: Tensor, classes: Tensor) -> None:
        self.optimizer.zero_grad(set_to_none=False)
        cross_entropy(self.model(images), classes).backward()
        self.arithmetic(self.optimizer)


def by_graph(name: str, folder: Path, flush_every_n_steps: int = 8) -> tuple[RunRecord, SphereTracker]:
    torch.manual_seed(0)
    model = conv_net()
    optimizer = FACTORIES[name](model.parameters())
    with SphereTracker(model, optimizer, folder, strict=True, flush_every_n_steps=flush_every_n_steps) as tracker:
        (images, classes), *_ = batches(1)
        tracker.discover(cross_entropy(model(images), classes))
        torch.manual_seed(0)
        model.load_state_dict(conv_net().state_dict())  # that call has changed BatchNorm's statistics
        graph = Graph(model, optimizer)
        for images, classes in batches(24):
            with tracker.measuring(optimizer):
                graph.replay(images, classes)
            tracker.flush()
    return read_run(folder), tracker


@pytest.mark.parametrize("name", ["SGD", "AdamW"])
def test_a_graphs_steps_are_measured_where_they_are_wrapped(name: str, tmp_path: Path) -> None:
    record, tracker = by_graph(name, tmp_path / "graph")
    _, usual = train(FACTORIES[name], AS_IT_IS, tmp_path / "usual")
    assert_same(record, usual)
    assert tracker._taps[0].steps_seen == 24


def test_only_the_trackers_optimizers_can_be_measured(tmp_path: Path) -> None:
    model = conv_net()
    optimizer, other = SGD(model.parameters(), 0.1), SGD(model.parameters(), 0.1)
    with (
        SphereTracker(model, optimizer, tmp_path) as tracker,
        pytest.raises(ValueError, match="optimizer takes one of the tracker's optimizers, got SGD"),
        tracker.measuring(other),
    ):
        pass


def test_a_block_that_raises_is_no_step(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = conv_net()
    optimizer = SGD(model.parameters(), 0.1)
    with SphereTracker(model, optimizer, tmp_path, strict=True) as tracker:
        graph = Graph(model, optimizer)
        (images, classes), *_ = batches(1)
        with pytest.raises(ZeroDivisionError), tracker.measuring(optimizer):
            raise ZeroDivisionError
        with tracker.measuring(optimizer):
            graph.replay(images, classes)
    assert read_run(tmp_path).steps.tolist() == [0]


def test_a_step_under_capture_is_left_alone_and_told_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tap, "capturing", lambda: True)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        train(FACTORIES["SGD"], AS_IT_IS, None)
        torch.manual_seed(0)
        model = conv_net()
        optimizer = FACTORIES["SGD"](model.parameters())
        with SphereTracker(model, optimizer, tmp_path, strict=True) as tracker:
            for images, classes in batches(3):
                cross_entropy(model(images), classes).backward()
                optimizer.step()
    (message,) = [str(each.message) for each in caught if issubclass(each.category, SphereWarning)]
    assert "captured into a CUDA graph" in message
    assert "with tracker.measuring(optimizer)" in message
    assert tracker.history.steps == 0
    assert tracker._taps[0].plan is None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_cuda_graph_of_the_whole_step(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32, bias=False), nn.LayerNorm(32), nn.ReLU(), nn.Linear(32, 4)).cuda()
    optimizer = AdamW(model.parameters(), 1e-2, capturable=True)
    inputs, targets = torch.randn(64, 16, device="cuda"), torch.randint(4, (64,), device="cuda")

    def step() -> None:
        optimizer.zero_grad(set_to_none=False)
        cross_entropy(model(inputs), targets).backward()
        optimizer.step()

    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    with SphereTracker(model, optimizer, tmp_path, strict=True) as tracker:
        tracker.discover(cross_entropy(model(inputs), targets))
        for _ in range(20):
            with tracker.measuring(optimizer):
                graph.replay()
    record = read_run(tmp_path)
    assert len(record.steps) == 20
    assert (record["angular_step"] > 0).all()
