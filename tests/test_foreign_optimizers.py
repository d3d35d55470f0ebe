"""Optimizers that torch does not have, and steps that are not what they seem to be."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn, optim
from torch.optim import Optimizer

from lightning_sphere import read_run
from lightning_sphere.directions import Direction, Scalars, asked_displacement, register
from optimizer_oracle import ORACLES, Moment, Update
from optimizer_watch import BALANCE, assert_all_recorded
from optimizer_zoo import ALL, FORMULA, FROM_STATE, net, train


def test_weights_that_something_else_moves_within_the_step_are_told_of_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Numbers that rest on the formula would be wrong, and nobody would know. Here, the user projects the weights."""
    model = net()
    optimizer = optim.AdamW(model.parameters(), lr=1e-2)

    @torch.no_grad()
    def project(*_: Any) -> None:
        model[7].weight.mul_(0.8)

    optimizer.register_step_post_hook(project)
    watch = train(model, [optimizer], 52, log_dir=tmp_path)  # it is looked at twice
    assert sum("AdamW" in message for message in caplog.messages) == 1
    record = read_run(tmp_path)  # what is measured is right: the weights' displacement is all of it
    assert_all_recorded(record, watch, ALL, loose=FROM_STATE)


def test_an_optimizer_that_calls_the_step_of_its_base_class_takes_one_step(tmp_path: Path) -> None:
    """torch runs the hooks of both, as soon as there has been an optimizer of the base class."""

    class Half(optim.AdamW):
        @torch.no_grad()
        def step(self, closure: None = None) -> None:  # type: ignore[override]
            before = [p.clone() for p in self.param_groups[0]["params"]]
            super().step()
            for p, x in zip(self.param_groups[0]["params"], before, strict=True):
                p.copy_(x + 0.5 * (p - x))

    model = net()
    optim.AdamW(model.parameters())
    watch = train(model, [Half(model.parameters(), lr=1e-2)], 6, log_dir=tmp_path, quantities=("norm", "angular_step"))
    assert_all_recorded(read_run(tmp_path), watch, ALL)


class Scaled(Optimizer):
    """x <- x - lr g / (sqrt(v) + eps) - lr weight_decay x, v <- v/2 + g^2/2: known to nobody but its user."""

    def __init__(self, params: Iterable[nn.Parameter], lr: float, eps: float = 1e-3, weight_decay: float = 0.1) -> None:
        super().__init__(params, {"lr": lr, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                v = self.state[p].setdefault("v", torch.zeros_like(p)).lerp_(p.grad.square(), 0.5)
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.addcdiv_(p.grad, v.sqrt() + group["eps"], value=-group["lr"])


def scaled(moments: Sequence[Moment]) -> Iterator[Update]:
    v = np.zeros(1)
    for moment in moments:
        h, g = moment.h, moment.g
        v = (v + g**2) / 2
        yield Update(g, np.sqrt(v) + h["eps"], h["lr"], h["lr"] * h["weight_decay"])


def test_an_optimizer_that_its_user_registers_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In ten lines, after which all its numbers are right."""
    register(
        Scaled,
        Direction(
            hyperparameters=lambda group: {name: group[name] for name in ("lr", "eps", "weight_decay")},
            scalars=lambda n: Scalars(rate=n["lr"], shrink=n["lr"] * n["weight_decay"], offset=n["eps"]),
            numerator=lambda at: at.gradient,
            second_moment=lambda at: at.state["v"],
            reads_gradient=("numerator",),
        ),
    )
    monkeypatch.setitem(ORACLES, "Scaled", scaled)
    model = net()
    groups = [{"params": model[:4].parameters(), "lr": 1e-2}, {"params": model[4:].parameters(), "lr": 1e-3}]
    watch = train(model, [Scaled(groups, lr=7.0)], log_dir=tmp_path, quantities="full")
    assert_all_recorded(read_run(tmp_path), watch, ALL, loose=FROM_STATE | FORMULA, without=BALANCE)


class Wanderer(Optimizer):
    """Of a name that nobody knows: x <- x - lr sign(g) - lr weight_decay x."""

    def __init__(self, params: Iterable[nn.Parameter], lr: float, weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                p.sub_(p.grad.sign() + group["weight_decay"] * p, alpha=group["lr"])


def test_an_unknown_optimizer_has_no_formula_and_is_named_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = net()
    half = list(model.parameters())
    optimizers = [Wanderer(half[:4], lr=1e-3), Wanderer(half[4:], lr=1e-2, weight_decay=0.1)]
    watch = train(model, optimizers, log_dir=tmp_path, quantities="full")
    assert sum("Wanderer" in message for message in caplog.messages) == 1
    record = read_run(tmp_path)
    assert_all_recorded(record, watch, ALL, without=[*BALANCE, "deformation_angle", "momentum_radial_fraction"])
    for name in {*record.quantities} & {"adam_equivalence", *BALANCE, "lost_update"}:
        assert np.isnan(record[name]).all(), name
    p = half[0]
    assert asked_displacement(optimizers[0], p, p.detach(), torch.zeros_like(p)) is None
