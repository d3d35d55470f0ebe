"""What an optimizer's formula asks for, looked at piece by piece, and what users are told who ask for odd things."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn, optim
from torch.nn.functional import cross_entropy

from lightning_sphere import GroupPart, RunRecord, ScaleGroup, SphereTracker, read_run
from lightning_sphere.directions import direction_of
from lightning_sphere.measurement import plan, step
from lightning_sphere.measurement.asked import asked
from lightning_sphere.measurement.sums import TorchSums
from nets import LAST, batches, conv_net
from optimizer_zoo import KNOWN

ELEMENTWISE = [name for name in KNOWN if "adafactor" not in name and "muon" not in name]


def trained(model: nn.Module, optimizer: optim.Optimizer, steps: int = 3, **options: Any) -> SphereTracker:
    with SphereTracker(model, optimizer, **{"strict": True, **options}) as tracker:
        for images, classes in batches(steps):
            optimizer.zero_grad()
            cross_entropy(model(images), classes).backward()
            optimizer.step()
    return tracker


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_pieces_say_what_the_whole_tensor_says(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of tensors cut into many pieces, along their second dimension too."""
    monkeypatch.setitem(plan.CHUNK_ELEMENTS, "cpu", 20)
    monkeypatch.setattr(step, "ASKED_EVERY", 1)
    sums: list[tuple[Tensor, Tensor]] = []

    def both(around: Any, optimizer: Any, direction: Any, xx: Tensor) -> Tensor:
        assert direction.elementwise
        pieces = asked(around, optimizer, direction, xx)
        sums.append((pieces, asked(around, optimizer, replace(direction, elementwise=False), xx)))
        return pieces

    monkeypatch.setattr(step, "asked", both)
    monkeypatch.setattr(step, "sums_of_plan", TorchSums)
    model = conv_net()
    columns = ScaleGroup("columns", (GroupPart(LAST, axis=1),), blocks=11, kind="row")
    trained(model, KNOWN[name](model.parameters()), groups=[columns])
    assert len(sums) == 3
    for pieces, whole in sums:
        assert not pieces.isnan().any()
        torch.testing.assert_close(pieces, whole, rtol=1e-12, atol=1e-30)


def test_momentum_needs_no_copy_of_gradients() -> None:
    for settings, needed in (
        ({"momentum": 0.9}, False),
        ({"momentum": 0.9, "nesterov": True}, True),
        ({}, True),
    ):
        optimizer = optim.SGD(conv_net().parameters(), lr=0.1, **settings)  # type: ignore[arg-type]
        direction = direction_of(optimizer)
        assert direction is not None
        assert direction.reads("numerator", optimizer.param_groups[0]) is needed


# --------------------------------------------------------------- what users are told


def test_one_quantity_may_be_named_alone(tmp_path: Path) -> None:
    model = conv_net()
    trained(model, optim.SGD(model.parameters(), 0.1), quantities="norm", log_dir=tmp_path)
    record: RunRecord = read_run(tmp_path)
    assert repr(record) == "<RunRecord: 3 steps of 3 layers (2 invariant); norm>"


def test_a_reference_that_is_never_read_is_refused() -> None:
    model = conv_net()
    with pytest.raises(ValueError, match="drift_from is of no use here"):
        SphereTracker(model, optim.SGD(model.parameters(), 0.1), quantities="norm", drift_from=model)


def test_a_reference_of_another_model_is_refused_though_a_bias_fits() -> None:
    model, other = nn.Sequential(nn.Linear(3, 4)), nn.Sequential(nn.Linear(5, 4))
    with pytest.raises(ValueError, match="none of the name and shape of a parameter"):
        SphereTracker(model, optim.SGD(model.parameters(), 0.1), drift_from=other)


def test_layers_without_reference_are_told_once(caplog: pytest.LogCaptureFixture) -> None:
    model = conv_net()
    some = {name: tensor for name, tensor in model.state_dict().items() if name != LAST}
    with caplog.at_level(logging.WARNING, "lightning_sphere"):
        trained(model, optim.SGD(model.parameters(), 0.1), drift_from=some)
    (message,) = caplog.messages
    assert message.startswith("drift_from has no weights for 1 of the model's tensors, whose drift stays unknown: ")
    assert f"{LAST} (not in the checkpoint)" in message


def test_what_the_gradients_contradict_has_no_equilibrium() -> None:
    model = conv_net()
    claim = ScaleGroup("wrong", (GroupPart(LAST),), blocks=10, kind="row")
    right = ScaleGroup("right", (GroupPart("0.weight"),), blocks=8, kind="row")
    tracker = trained(model, optim.AdamW(model.parameters(), 1e-3), 30, groups=[claim, right])
    assert tracker.verdicts["wrong"].outcome == "contradicted"
    assert set(tracker.equilibrium) == {"right"}


def test_the_summary_of_a_tracker_that_failed_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("the cause")

    monkeypatch.setattr("lightning_sphere.measurement.step.StepMeter.before", broken)
    model = conv_net()
    with pytest.warns(UserWarning, match="the cause"):
        tracker = trained(model, optim.SGD(model.parameters(), 0.1), strict=False)
    assert str(tracker.summary().render(80)) == (
        "lightning_sphere measured nothing: it switched itself off, see the warning above."
    )
