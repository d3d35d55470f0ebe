"""Training is bit for bit the same with and without the tool, and goes on when the tool fails."""

import copy
import random
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.loggers import TensorBoardLogger
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import SGD, AdamW, Optimizer
from torch.utils.data import DataLoader, TensorDataset

from lightning_sphere import SphereMonitor, SphereTracker
from lightning_sphere.guard import SphereWarning
from lightning_sphere.measurement import host_kernel
from lightning_sphere.measurement.sums import TorchSums
from nets import batches, conv_net, digits

FACTORIES: dict[str, Callable[..., Optimizer]] = {
    "sgd": lambda p: SGD(p, lr=0.05, momentum=0.9, weight_decay=1e-3),
    "adamw": lambda p: AdamW(p, lr=1e-2, weight_decay=0.1),
}


EVERYTHING: dict[str, Any] = {"per_layer_scalars": 2, "histograms": 3, "custom_scalars": True, "quantities": "full"}
"""All that can be asked for besides."""


class Net(LightningModule):
    """The small network with dropout, its losses and its last gradients kept."""

    def __init__(self, factory: Callable[..., Optimizer]) -> None:
        super().__init__()
        self.net = conv_net(dropout=0.3)
        self.factory = factory
        self.losses: list[Tensor] = []
        self.gradients: list[Tensor] = []

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        images, classes = batch
        if random.random() < 0.5:  # the user's own randomness, from all three generators
            images = images + 0.1 * float(np.random.rand()) * torch.rand_like(images)  # noqa: NPY002
        loss = cross_entropy(self.net(images), classes)
        self.losses.append(loss.detach().clone())
        return loss

    def on_before_zero_grad(self, _: Any) -> None:
        self.gradients = [p.grad.clone() for p in self.parameters() if p.grad is not None]

    def configure_optimizers(self) -> Optimizer:
        return self.factory(self.parameters())


def fit(factory: Callable[..., Optimizer], folder: Path, monitor: SphereMonitor | None, steps: int = 100) -> Any:
    """Train with the Trainer and return everything that must not depend on the monitor."""
    seed_all()
    module = Net(factory)
    loader = DataLoader(TensorDataset(*digits()), batch_size=64, shuffle=True)
    trainer = Trainer(
        max_steps=steps,
        accelerator="cpu",
        logger=TensorBoardLogger(folder),
        callbacks=[] if monitor is None else [monitor],
        gradient_clip_val=0.5,
        log_every_n_steps=20,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    trainer.fit(module, loader)
    assert trainer.global_step == steps
    return {
        "losses": module.losses,
        "gradients": module.gradients,
        "weights and buffers": module.state_dict(),
        "optimizer": trainer.optimizers[0].state_dict(),
        "random numbers": random_states(),
    }


def loop(factory: Callable[..., Optimizer], arguments: dict[str, Any] | None, steps: int = 100) -> Any:
    """The same in a plain loop; ``arguments`` of the tracker, None for no tracker."""
    seed_all()
    model = conv_net(dropout=0.3)
    optimizer = factory(model.parameters())
    tracker = None if arguments is None else SphereTracker(model, optimizer, **arguments)
    losses = []
    if tracker is not None:
        tracker.__enter__()
    for images, classes in batches(steps):
        optimizer.zero_grad()
        loss = cross_entropy(model(images), classes)
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    if tracker is not None:
        tracker.__exit__(None, None, None)
    return {
        "losses": losses,
        "gradients": [p.grad for p in model.parameters()],
        "weights and buffers": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "random numbers": random_states(),
    }


def seed_all() -> None:
    torch.manual_seed(7)
    np.random.seed(7)  # noqa: NPY002
    random.seed(7)


def random_states() -> tuple[Any, ...]:
    return torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002


def assert_same_bits(a: Any, b: Any, where: str = "") -> None:
    """Same structure and same bits, NaN included."""
    if isinstance(a, (Tensor, np.ndarray)):
        left, right = (np.ascontiguousarray(torch.as_tensor(x).detach().numpy()) for x in (a, b))
        assert left.dtype == right.dtype, where
        assert left.tobytes() == right.tobytes(), where
    elif isinstance(a, dict):
        assert list(a) == list(b), where
        for key in a:
            assert_same_bits(a[key], b[key], f"{where}[{key!r}]")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), where
        for index, (left, right) in enumerate(zip(a, b, strict=True)):
            assert_same_bits(left, right, f"{where}[{index}]")
    else:
        assert a == b, where


@pytest.mark.parametrize("name", FACTORIES)
def test_a_hundred_trainer_steps_are_bitwise_the_same(name: str, tmp_path: Path) -> None:
    plain = copy.deepcopy(fit(FACTORIES[name], tmp_path / "plain", None))
    monitor = SphereMonitor(strict=True, print_summary=False, **EVERYTHING)
    monitored = fit(FACTORIES[name], tmp_path / "monitored", monitor)
    assert len(plain["losses"]) == 100
    assert_same_bits(plain, monitored)


@pytest.mark.parametrize("name", FACTORIES)
def test_a_hundred_steps_of_a_plain_loop_are_bitwise_the_same(name: str, tmp_path: Path) -> None:
    plain = loop(FACTORIES[name], None)
    tracked = loop(FACTORIES[name], {"log_dir": tmp_path, "strict": True, **EVERYTHING})
    assert_same_bits(plain, tracked)


def test_nothing_stays_attached_after_the_loop(tmp_path: Path) -> None:
    model = conv_net()
    optimizer = SGD(model.parameters(), lr=0.1)
    before = {name: list(vars(module)) for name, module in model.named_modules()}
    with SphereTracker(model, optimizer, log_dir=tmp_path):
        model(digits()[0][:4]).sum().backward()
        optimizer.step()
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks
    assert all(not module._forward_hooks for module in model.modules())
    assert {name: list(vars(module)) for name, module in model.named_modules()} == {
        n: list(v) for n, v in before.items()
    }


FAULTS = {
    "lightning_sphere.measurement.sums.TorchSums.before": "measuring",
    "lightning_sphere.measurement.sums.TorchSums.after": "measuring",
    "lightning_sphere.measurement.step.sums_of_plan": "measuring",
    "lightning_sphere.measurement.step.StepMeter.before": "measuring",
    "lightning_sphere.measurement.step.StepMeter.after": "measuring",
    "lightning_sphere.measurement.step.StepMeter.drain": "writing",
    "lightning_sphere.measurement.ring.Drained.result": "writing",
    "lightning_sphere.flushing.Background.start": "writing",
    "lightning_sphere.measurement.step.number": "measuring",
    "lightning_sphere.measurement.step.asked": "measuring",
    "lightning_sphere.evaluation.error": "writing",
    "lightning_sphere.measurement.reference.ReferenceWeights.prepare": "measuring",
    "lightning_sphere.measurement.reference.ReferenceWeights.write": "measuring",
    "lightning_sphere.evaluation.collect": "writing",
    "lightning_sphere.balance.settle": "writing",
    "lightning_sphere.layers.Plan": "measuring",
    "lightning_sphere.layers.discover": "graph",
    "lightning_sphere.evaluation.per_layer": "writing",
    "lightning_sphere.evaluation.evaluate": "writing",
    "lightning_sphere.evaluation.summary_scalars": "writing",
    "lightning_sphere.verification.judge": "writing",
    "lightning_sphere.tensorboard.writer.TensorBoardSink.write": "writing",
    "lightning_sphere.tensorboard.writer.TensorBoardSink.close": "closing",
    "lightning_sphere.sinks.History.write": "writing",
    "lightning_sphere.recording.Stride.take": "writing",
    "lightning_sphere.histograms.histograms": "writing",
    "lightning_sphere.tensorboard.writer.histogram_value": "writing",
    "lightning_sphere.tensorboard.layout.with_ours": "writing",
    "lightning_sphere.tensorboard.layout.layout_value": "writing",
    "lightning_sphere.about.facts_of": "opening",
    "lightning_sphere.about.about": "writing",
}


if host_kernel.load() is not None:
    FAULTS |= {
        "lightning_sphere.measurement.kernel_sums.KernelSums.before": "measuring",
        "lightning_sphere.measurement.kernel_sums.KernelSums.after": "measuring",
        "lightning_sphere.measurement.kernel_sums.KernelSums.at_once": "measuring",
        "lightning_sphere.measurement.host_kernel.HostKernel.launch": "measuring",
        "lightning_sphere.measurement.factors.Formulas.read": "measuring",
    }


STEPS = 60
"""Enough for the first flush to end beside the training: no copy is kept from then on."""


class FaultError(RuntimeError):
    """What a broken part of the tool raises here."""


def broken(*_: Any, **__: Any) -> Any:
    raise FaultError("the cause, for the tests")


def break_down(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace a part by one that raises, and take the way to measure that uses it."""
    if "TorchSums" in target or target.endswith("step.asked"):
        monkeypatch.setattr("lightning_sphere.measurement.step.sums_of_plan", TorchSums)
    monkeypatch.setattr(target, broken)


def sphere_warnings(caught: list[warnings.WarningMessage]) -> list[str]:
    return [str(each.message) for each in caught if issubclass(each.category, SphereWarning)]


@pytest.mark.parametrize("target", FAULTS)
def test_a_failing_part_warns_once_and_the_loop_is_not_changed(
    target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = loop(FACTORIES["adamw"], None, steps=STEPS)
    break_down(target, monkeypatch)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        tracked = loop(FACTORIES["adamw"], {"log_dir": tmp_path, "flush_every_n_steps": 5, **EVERYTHING}, steps=STEPS)
    assert_same_bits(plain, tracked)
    (message,) = sphere_warnings(caught)
    assert "FaultError" in message
    assert "the cause, for the tests" in message
    assert FAULTS[target] in message


def test_a_failing_part_does_not_raise_where_warnings_are_errors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lightning_sphere.measurement.step.StepMeter.after", broken)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loop(FACTORIES["sgd"], {"log_dir": tmp_path}, steps=3)


@pytest.mark.parametrize("target", FAULTS)
def test_a_failing_part_raises_where_strict(target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    break_down(target, monkeypatch)
    arguments = {"log_dir": tmp_path, "flush_every_n_steps": 5, "strict": True, **EVERYTHING}
    with pytest.raises(FaultError):
        loop(FACTORIES["adamw"], arguments, steps=STEPS)


@pytest.mark.parametrize(
    "target",
    [
        "lightning_sphere.measurement.step.StepMeter.before",
        "lightning_sphere.measurement.step.StepMeter.after",
        "lightning_sphere.layers.discover",
        "lightning_sphere.evaluation.per_layer",
        "lightning_sphere.tensorboard.writer.TensorBoardSink.write",
        "lightning_sphere.callback.logging_step",
        "lightning_sphere.callback.TensorBoardSink",
        "lightning_sphere.callback.teller",
        "lightning_sphere.epoch.EpochMetrics.write",
        "lightning_sphere.epoch.EpochMetrics.results",
        "lightning_sphere.tracker.summarize",
    ],
)
def test_a_failing_part_does_not_change_the_trainers_run(
    target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = copy.deepcopy(fit(FACTORIES["sgd"], tmp_path / "plain", None, steps=12))
    break_down(target, monkeypatch)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        monitored = fit(FACTORIES["sgd"], tmp_path / "monitored", SphereMonitor(), steps=12)
    assert_same_bits(plain, monitored)
    (message,) = sphere_warnings(caught)
    assert "FaultError" in message
    assert "the cause, for the tests" in message


def test_the_trainer_raises_where_strict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightning_sphere.measurement.step.StepMeter.after", broken)
    with pytest.raises(FaultError):
        fit(FACTORIES["sgd"], tmp_path, SphereMonitor(strict=True), steps=3)


@pytest.mark.parametrize("poison", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("what", ["gradient", "weight"])
@pytest.mark.parametrize("name", FACTORIES)
def test_numbers_that_are_not_finite_do_not_raise(name: str, what: str, poison: float, tmp_path: Path) -> None:
    model = conv_net()
    optimizer = FACTORIES[name](model.parameters())
    with warnings.catch_warnings(), SphereTracker(model, optimizer, log_dir=tmp_path, strict=True) as tracker:
        warnings.simplefilter("error")
        for step, (images, classes) in enumerate(batches(4)):
            optimizer.zero_grad()
            cross_entropy(model(images), classes).backward()
            if step == 2:
                weight: nn.Parameter = model[3].weight
                (weight.data if what == "weight" else weight.grad)[0, 0, 0, 0] = poison  # type: ignore[index]
            optimizer.step()
    tracker.print_summary()


def test_weights_and_gradients_of_zero_do_not_raise(tmp_path: Path) -> None:
    model = conv_net()
    nn.init.zeros_(model[9].weight)
    nn.init.zeros_(model[4].weight)  # a zero gamma: nothing before it gets a gradient
    optimizer = AdamW(model.parameters(), lr=1e-2)
    with SphereTracker(model, optimizer, log_dir=tmp_path, strict=True) as tracker:
        for images, classes in batches(3):
            optimizer.zero_grad()
            cross_entropy(model(images), classes).backward()
            optimizer.step()
    tracker.print_summary()
