"""Optimizers of every make: variants, closures, several at once, loss scaling, and ones that the package never saw."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import LBFGS, SGD, Adam, AdamW, Optimizer

from lightning_sphere import SphereTracker, read_run
from nets import FIRST, LAST, SECOND, batches, conv_net
from oracle import Watch, assert_recorded, layer_index

ALL = (FIRST, SECOND, LAST)


def run(folder: Path, model: nn.Module, *optimizers: Optimizer, steps: int = 6, **arguments: Any) -> tuple[Any, Watch]:
    """Train in a plain loop, all optimizers once per batch; return what was recorded and what the test saw."""
    watch = Watch(model, *optimizers)
    with SphereTracker(model, list(optimizers), log_dir=folder, strict=True, **arguments):
        for images, classes in batches(steps):
            model.zero_grad()
            cross_entropy(model(images), classes).backward()
            watch.before()
            for optimizer in optimizers:
                optimizer.step()
            watch.after()
    return read_run(folder), watch


class SignSGD(Optimizer):
    """An optimizer that the package cannot know: x <- x - lr sign(g)."""

    def __init__(self, params: Iterable[nn.Parameter], lr: float, **extra: Any) -> None:
        super().__init__(params, {"lr": lr, **extra})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.sub_(parameter.grad.sign(), alpha=float(group["lr"] or 0.01))
        return loss


ADAMS: dict[str, dict[str, Any]] = {
    "single tensor": {"foreach": False},
    "foreach": {"foreach": True},
    "fused": {"fused": True},
    "fused amsgrad": {"fused": True, "amsgrad": True},
    "tensor lr": {"lr": torch.tensor(1e-2), "foreach": False},
    "fused tensor lr": {"lr": torch.tensor(1e-2), "fused": True},
    "maximize": {"maximize": True},
}


@pytest.mark.parametrize("factory", [Adam, AdamW])
@pytest.mark.parametrize("variant", ADAMS)
def test_every_variant_of_adam_is_measured_right(factory: type[Adam], variant: str, tmp_path: Path) -> None:
    model = conv_net()
    optimizer = factory(model.parameters(), **{"lr": 1e-2, **ADAMS[variant]})
    record, watch = run(tmp_path, model, optimizer)
    assert_recorded(record, watch, ALL, adam=True)


def test_a_tensor_lr_changed_in_place_is_the_one_of_each_step(tmp_path: Path) -> None:
    model = conv_net()
    lr = torch.tensor(1e-1)
    optimizer = AdamW(model.parameters(), lr=lr, foreach=False)
    watch = Watch(model, optimizer)
    with SphereTracker(model, optimizer, log_dir=tmp_path, strict=True):
        for images, classes in batches(5):
            optimizer.zero_grad()
            cross_entropy(model(images), classes).backward()
            watch.before()
            optimizer.step()
            watch.after()
            lr.mul_(0.1)
    assert_recorded(read_run(tmp_path), watch, ALL, adam=True)


def test_an_unknown_optimizer_is_measured_with_divisor_one(tmp_path: Path) -> None:
    model = conv_net()
    record, watch = run(tmp_path, model, SignSGD(model.parameters(), lr=1e-2))
    assert_recorded(record, watch, ALL, adam=False)


EXTRAS: dict[str, dict[str, Any]] = {
    "eps of two numbers": {"eps": (None, 1e-3)},
    "no betas": {"betas": None},
    "one beta": {"betas": (0.9,)},
    "a word for eps": {"eps": "auto"},
}


@pytest.mark.parametrize("extra", EXTRAS)
def test_foreign_hyperparameters_do_not_matter_to_an_unknown_optimizer(extra: str, tmp_path: Path) -> None:
    """Other optimizers use the names eps and betas for other things (torch's Adafactor: a pair eps)."""
    model = conv_net()
    record, watch = run(tmp_path, model, SignSGD(model.parameters(), lr=1e-2, **EXTRAS[extra]))
    assert_recorded(record, watch, ALL, adam=False)


def test_an_optimizer_that_sets_its_own_lr_leaves_the_rate_unknown(tmp_path: Path) -> None:
    """lr=None is how relative-step optimizers say that there is none."""
    model = conv_net()
    optimizer = SignSGD(model.parameters(), lr=None)  # type: ignore[arg-type]
    with SphereTracker(model, optimizer, log_dir=tmp_path, strict=True):
        for images, classes in batches(3):
            optimizer.zero_grad()
            cross_entropy(model(images), classes).backward()
            optimizer.step()
    record = read_run(tmp_path)
    assert np.isnan(record["effective_lr"]).all()
    assert (record["angular_step"] > 0).all()


@pytest.mark.parametrize("keyword", [True, False], ids=["keyword", "positional"])
@pytest.mark.parametrize("factory", [SGD, AdamW, SignSGD])
def test_a_closure_is_measured_after_its_backward(
    factory: Callable[..., Optimizer], keyword: bool, tmp_path: Path
) -> None:
    model = conv_net()
    optimizer = factory(model.parameters(), lr=1e-2)
    watch = Watch(model, optimizer)
    with SphereTracker(model, optimizer, log_dir=tmp_path, strict=True):
        for images, classes in batches(6):

            def closure(images: Tensor = images, classes: Tensor = classes) -> Tensor:
                optimizer.zero_grad()
                loss = cross_entropy(model(images), classes)
                loss.backward()
                nn.utils.clip_grad_norm_(model.parameters(), 0.1)
                watch.before()
                return loss

            loss = optimizer.step(closure=closure) if keyword else optimizer.step(closure)
            assert isinstance(loss, Tensor)
            watch.after()
    assert_recorded(read_run(tmp_path), watch, ALL, adam=factory is AdamW)


def test_lbfgs_is_measured_from_its_first_gradient_to_its_last_weights(tmp_path: Path) -> None:
    model = conv_net(4)
    optimizer = LBFGS(model.parameters(), lr=0.1, max_iter=3, line_search_fn="strong_wolfe")
    watch = Watch(model, optimizer)
    with SphereTracker(model, optimizer, log_dir=tmp_path, strict=True):
        for images, classes in batches(3):
            first = True

            def closure(images: Tensor = images, classes: Tensor = classes) -> Tensor:
                nonlocal first
                optimizer.zero_grad()
                loss = cross_entropy(model(images), classes)
                loss.backward()
                if first:
                    watch.before()
                    first = False
                return loss

            optimizer.step(closure)
            watch.after()
    assert_recorded(read_run(tmp_path), watch, ALL, adam=False)


def test_several_optimizers_fill_one_table(tmp_path: Path) -> None:
    model = conv_net()
    record, watch = run(
        tmp_path,
        model,
        SGD(list(model[3].parameters()) + list(model[4].parameters()), lr=0.1),
        AdamW([p for i in (0, 1, 9) for p in model[i].parameters()], lr=1e-3),
        flush_every_n_steps=4,
    )
    assert [name.partition(".")[0] for name in record.layers] == ["0", "3", "9"]  # the model's order
    assert_recorded(record, watch, [SECOND], adam=False)
    assert_recorded(record, watch, [FIRST, LAST], adam=True)


@pytest.mark.parametrize("factory", [SGD, AdamW])
def test_an_optimizer_with_nothing_to_measure_disturbs_nothing(factory: type[Optimizer], tmp_path: Path) -> None:
    """Biases and norms in an optimizer of their own is a common split."""
    model = conv_net()
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() == 1]
    record, watch = run(tmp_path, model, SGD(matrices, lr=0.1), factory(vectors, lr=0.1))  # type: ignore[call-arg]
    assert_recorded(record, watch, ALL, adam=False)


@pytest.mark.parametrize("flush_every", [3, 4, 50])
def test_optimizers_of_different_rhythm_keep_their_numbers_and_the_axis_its_order(
    flush_every: int, tmp_path: Path
) -> None:
    """As a GAN's: one steps at every batch, the other at every third. Positions never repeat or go back."""
    model = conv_net()
    often, seldom = SGD(model[3].parameters(), lr=0.1), SGD(model[9].parameters(), lr=0.1)
    watches = {SECOND: Watch(model, often), LAST: Watch(model, seldom)}
    with SphereTracker(model, [often, seldom], log_dir=tmp_path, strict=True, flush_every_n_steps=flush_every):
        for batch, (images, classes) in enumerate(batches(12)):
            model.zero_grad()
            cross_entropy(model(images), classes).backward()
            for optimizer, watch in ((often, watches[SECOND]), (seldom, watches[LAST])):
                if optimizer is often or batch % 3 == 0:
                    watch.before()
                    optimizer.step()
                    watch.after()
    record = read_run(tmp_path)
    norm = record["norm"]
    for parameter, watch in watches.items():
        known = ~np.isnan(norm[:, layer_index(record, parameter)])
        assert known.sum() == len(watch.steps)
        rows = [seen[parameter].before.double().flatten(1).norm(dim=1).median() for seen in watch.steps]
        if parameter == LAST:  # an even number of rows: the median is between two
            rows = [seen[LAST].before.double().norm(dim=1).quantile(0.5) for seen in watch.steps]
        np.testing.assert_allclose(norm[known, layer_index(record, parameter)], torch.stack(rows).numpy(), rtol=1e-6)
    np.testing.assert_array_equal(record.steps, np.arange(12))


@pytest.mark.parametrize("fused", [False, True])
def test_gradients_are_measured_unscaled_under_a_loss_scaler(fused: bool, tmp_path: Path) -> None:
    """A fused optimizer unscales inside its own arithmetic: p.grad is still scaled when the step begins."""
    model, twin = conv_net(), conv_net()
    folders = [tmp_path / "scaled", tmp_path / "plain"]
    for net, folder, scale in zip((model, twin), folders, (1024.0, 1.0), strict=True):
        optimizer = AdamW(net.parameters(), lr=1e-2, fused=fused)
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        with SphereTracker(net, optimizer, log_dir=folder, strict=True):
            for images, classes in batches(4):
                optimizer.zero_grad()
                scaler.scale(cross_entropy(net(images), classes)).backward()
                if not fused:
                    scaler.unscale_(optimizer)
                scaler.step(optimizer)
                scaler.update()
    scaled, plain = map(read_run, folders)
    np.testing.assert_allclose(scaled["gradient_norm"], plain["gradient_norm"], rtol=1e-3)
    np.testing.assert_allclose(scaled["spherical_lr"], plain["spherical_lr"], rtol=1e-3)


@pytest.mark.parametrize("fused", [False, True])
def test_a_step_that_the_loss_scaler_skips_is_never_a_zero(fused: bool, tmp_path: Path) -> None:
    model = conv_net()
    optimizer = AdamW(model.parameters(), lr=1e-2, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=1.0)
    with SphereTracker(model, optimizer, log_dir=tmp_path, strict=True):
        for step, (images, classes) in enumerate(batches(4)):
            optimizer.zero_grad()
            scaler.scale(cross_entropy(model(images), classes)).backward()
            if step == 2:
                model[0].weight.grad.fill_(torch.inf)
            scaler.step(optimizer)
            scaler.update()
    angles = read_run(tmp_path)["angular_step"]
    assert not (angles == 0).any()
    assert (angles > 0).all(axis=1).sum() == 3
