"""The ways to make the sums of a step agree: PyTorch operations, a kernel over a kept copy, a kernel without a copy."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, nn, optim
from torch.optim import Optimizer

from lightning_sphere.directions import direction_of
from lightning_sphere.measurement import host_kernel, paths, step
from lightning_sphere.measurement.asked import error
from lightning_sphere.measurement.kernel_sums import KernelSums, MovedError
from lightning_sphere.measurement.plan import Plan
from lightning_sphere.measurement.reference import ReferenceWeights
from lightning_sphere.measurement.ring import HostRow
from lightning_sphere.measurement.step import StepMeter
from lightning_sphere.measurement.sums import TorchSums
from lightning_sphere.measurement.trust import FAITHFUL
from lightning_sphere.quantities import QUANTITIES, sums_of
from test_reference import GROUPS, weights

pytestmark = pytest.mark.skipif(host_kernel.load() is None, reason=f"no kernel: {host_kernel.reason()}")

Make = Callable[[Iterable[dict[str, Any]]], Optimizer]

FORMULAS: dict[str, Make] = {
    "SGD": lambda p: optim.SGD(p, 0.1),
    "SGD, decay": lambda p: optim.SGD(p, 0.1, weight_decay=0.1),
    "SGD, momentum": lambda p: optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.1),
    "SGD, dampened": lambda p: optim.SGD(p, 0.1, momentum=0.9, dampening=0.5),
    "SGD, Nesterov": lambda p: optim.SGD(p, 0.1, momentum=0.9, nesterov=True, weight_decay=0.1),
    "SGD, maximize": lambda p: optim.SGD(p, 0.1, weight_decay=0.1, maximize=True),
    "SGD, Nesterov, maximize": lambda p: optim.SGD(p, 0.1, momentum=0.9, nesterov=True, maximize=True),
    "Adam": lambda p: optim.Adam(p, 0.01),
    "Adam, L2": lambda p: optim.Adam(p, 0.01, weight_decay=0.1),
    "AdamW": lambda p: optim.AdamW(p, 0.01, weight_decay=0.1),
    "AdamW, amsgrad": lambda p: optim.AdamW(p, 0.01, amsgrad=True),
    "AdamW, maximize": lambda p: optim.AdamW(p, 0.01, maximize=True),
    "AdamW, fused": lambda p: optim.AdamW(p, 0.01, fused=True),
    "AdamW, foreach": lambda p: optim.AdamW(p, 0.01, foreach=True),
    "AdamW, tensor lr": lambda p: optim.AdamW(p, torch.tensor(0.01, dtype=torch.float64), foreach=False),
    "RAdam": lambda p: optim.RAdam(p, 0.01, weight_decay=0.1),
    "RAdam, decoupled": lambda p: optim.RAdam(p, 0.01, weight_decay=0.1, decoupled_weight_decay=True),
    "Adagrad": lambda p: optim.Adagrad(p, 0.1, weight_decay=0.1, lr_decay=0.1),
    "RMSprop": lambda p: optim.RMSprop(p, 0.01, weight_decay=0.1),
}
"""Optimizers whose step needs no copy."""

COPIED: dict[str, Make] = {
    "SGD, Nesterov in place": lambda p: optim.SGD(p, 0.1, momentum=0.9, nesterov=True, foreach=True),
    "RMSprop, centered": lambda p: optim.RMSprop(p, 0.01, centered=True),
    "RMSprop, momentum": lambda p: optim.RMSprop(p, 0.01, momentum=0.9),
    "NAdam": lambda p: optim.NAdam(p, 0.01, weight_decay=0.1),
    "Adamax": lambda p: optim.Adamax(p, 0.01),
    "Adafactor": lambda p: optim.Adafactor(p, 0.01),
}
"""Those that need one: their direction is not linear in the state, or they write into the gradients."""


ONE, SEVERAL = False, True
SLOT_WITHOUT_GRADIENT, STEP_WITHOUT_GRADIENT = 1, 3


class Run:
    """Some steps of an optimizer with given gradients, as a meter sees them."""

    def __init__(self, make: Make, several: bool, dtype: torch.dtype = torch.float64) -> None:
        self.parameters = weights(dtype)
        self._generator = torch.Generator().manual_seed(1)
        named = list(self.parameters.items())
        groups = [[p] for _, p in named] if several else [[p for _, p in named]]
        self.optimizer = make([{"params": group} for group in groups])
        for index, group in enumerate(self.optimizer.param_groups if several else []):
            group["lr"] = group["lr"] * (1.0 + index)
        self.plan = Plan(GROUPS, self.parameters, {n: i if several else 0 for i, (n, _) in enumerate(named)})
        self.meter = StepMeter(
            self.plan,
            self.optimizer,
            direction_of(self.optimizer),  # type: ignore[arg-type]
            wanted=sums_of(QUANTITIES),
            reference=ReferenceWeights(),
            rows=50,
            budget_mb=64.0,
        )

    def gradients(self, number: int) -> None:
        for index, p in enumerate(self.parameters.values()):
            gradient = torch.randn(p.shape, generator=self._generator, dtype=torch.float64).to(p.dtype)
            without = number == STEP_WITHOUT_GRADIENT and index == SLOT_WITHOUT_GRADIENT
            p.grad = None if without else gradient

    def steps(self, count: int, *, trust: bool = False, late: bool = False, start: int = 0) -> None:
        for number in range(start, start + count):
            if late:
                for p in self.parameters.values():
                    p.grad = torch.full_like(p, 55.0)
                self.meter.before(number, 1, late=True)
                self.gradients(number)
            else:
                self.gradients(number)
                self.meter.before(number, 1)
            self.optimizer.step()
            self.meter.after()
            if trust:
                self.meter.trust(0.0)

    def drained(self) -> tuple[dict[str, Tensor], list[HostRow]]:
        """Columns by name ``[steps, segments]``; those of ``a`` only where there was a gradient, as for the user."""
        drained = self.meter.drain()
        assert drained is not None
        data, host = drained.result()
        columns = {name: data[:, index].clone() for index, name in enumerate(self.meter.ring.columns)}
        drained.release()
        for name in {"aa", "ax", "ad"} & set(columns):
            columns[name] = torch.where(columns["gg"].isnan(), torch.nan, columns[name])
        return columns, host


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    """Relative to the largest value of a column in each segment: some sums nearly cancel."""
    assert found.keys() == expected.keys()
    scale = {name: values.abs().nan_to_num().amax(0) for name, values in expected.items()}
    scale["xd"] = (scale["xx"] * scale["dd"]).sqrt()
    scale["gx"] = (scale["xx"] * scale["gg"]).sqrt()
    if "aa" in scale:
        scale["ax"], scale["ad"] = ((scale["aa"] * scale[other]).sqrt() for other in ("xx", "dd"))
    for name, values in expected.items():
        known = ~values.isnan()
        assert torch.equal(known, ~found[name].isnan()), name
        roots = 1e-7 if name in ("v", "sqrt_v") else tolerance  # the reference rounds roots to float32
        off = ((found[name] - values).abs() / scale[name].clamp_min(1e-300))[known]
        assert float(off.max()) <= max(roots, tolerance), (name, float(off.max()))


def by_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step, "sums_of_plan", TorchSums)


@pytest.mark.parametrize("several", [ONE, SEVERAL], ids=["one group", "several groups"])
@pytest.mark.parametrize("name", [*FORMULAS, *COPIED])
def test_kernel_agrees_with_operations(name: str, several: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    make = {**FORMULAS, **COPIED}[name]
    by_kernel = Run(make, several)
    assert isinstance(by_kernel.meter.sums, KernelSums)
    by_kernel.steps(8)
    by_torch(monkeypatch)
    by_operations = Run(make, several)
    assert isinstance(by_operations.meter.sums, TorchSums)
    by_operations.steps(8)
    found, notes = by_kernel.drained()
    expected, notes_expected = by_operations.drained()
    assert_close(found, expected, 1e-13)
    for note, other in zip(notes, notes_expected, strict=True):
        assert note.reference is not None
        assert other.reference is not None
        torch.testing.assert_close(note.reference, other.reference, rtol=1e-12, atol=1e-14, equal_nan=True)
    here, there = notes[0].asked, notes_expected[0].asked
    assert here is not None
    assert there is not None
    # The last sum, of (D - P)^2, is rounding alone.
    torch.testing.assert_close(here[:3], there[:3], rtol=1e-6, atol=0.0, equal_nan=True)


@pytest.mark.parametrize("several", [ONE, SEVERAL], ids=["one group", "several groups"])
@pytest.mark.parametrize("name", FORMULAS)
def test_no_copy_gives_the_same(name: str, several: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    copied, free = Run(FORMULAS[name], several), Run(FORMULAS[name], several)
    copied.steps(8)
    free.steps(1, trust=True)

    def no_copy(*_: Any) -> None:
        raise AssertionError("weights were copied")

    monkeypatch.setattr(free.meter.sums, "before", no_copy)
    free.steps(7, trust=True, start=1)
    assert_close(free.drained()[0], copied.drained()[0], 1e-12)


@pytest.mark.parametrize("name", COPIED)
def test_a_copy_is_kept_where_it_is_needed(name: str) -> None:
    run, always = Run(COPIED[name], ONE), Run(COPIED[name], ONE)
    run.steps(8, trust=True)
    always.steps(8)
    found, expected = run.drained()[0], always.drained()[0]
    assert all(torch.equal(found[name].nan_to_num(), expected[name].nan_to_num()) for name in expected)


@pytest.mark.parametrize("trust", [False, True], ids=["copy", "no copy"])
@pytest.mark.parametrize("name", ["SGD", "AdamW", "SGD, Nesterov"])
def test_gradients_that_come_late(name: str, trust: bool) -> None:
    run, usual = Run(FORMULAS[name], ONE), Run(FORMULAS[name], ONE)
    run.steps(6, trust=trust, late=True)
    usual.steps(6)
    assert_close(run.drained()[0], usual.drained()[0], 1e-12)


def test_gradients_that_come_late_by_operations(monkeypatch: pytest.MonkeyPatch) -> None:
    by_torch(monkeypatch)
    run, usual = Run(FORMULAS["AdamW"], ONE), Run(FORMULAS["AdamW"], ONE)
    run.steps(6, late=True)
    usual.steps(6)
    assert_close(run.drained()[0], usual.drained()[0], 1e-15)


@pytest.mark.parametrize(
    ("dtype", "rate", "trusted"),
    [
        (torch.float64, 1e-8, True),
        (torch.float32, 1e-2, True),
        (torch.float32, 1e-6, False),
        (torch.bfloat16, 1e-2, False),
    ],
    ids=str,
)
def test_the_formula_is_trusted_only_where_it_holds(dtype: torch.dtype, rate: float, trusted: bool) -> None:
    run = Run(lambda p: optim.AdamW(p, rate), ONE, dtype)
    run.steps(2)
    _, notes = run.drained()
    found = error([row.asked for row in notes], run.plan)
    assert found is not None
    assert (found <= FAITHFUL) is trusted


def test_error_is_the_largest_of_all_tensors() -> None:
    run = Run(FORMULAS["SGD"], ONE)
    run.steps(1)
    _, notes = run.drained()
    asked = notes[0].asked
    assert asked is not None
    sums = torch.zeros_like(asked)
    slots = run.plan.slots
    longest, shortest = (pick(range(len(slots)), key=lambda i: slots[i].length) for pick in (max, min))
    assert (slots[longest].length, slots[shortest].length) == (36, 4)
    of = run.plan.slot_of_segment
    sums[2], sums[3] = 1.0, 1e-8
    sums[3, of == longest], sums[3, of == shortest] = 36e-6, 0.0
    another = next(index for index in range(len(slots)) if index not in (longest, shortest))
    sums[3, of == another] = torch.nan  # not updated
    assert error([None, sums], run.plan) == pytest.approx(1e-3)
    sums[3, of == shortest] = 16e-6
    assert error([None, sums], run.plan) == pytest.approx(2e-3)
    sums[2, of == longest] = 0.0  # nothing was asked for, and it moved
    assert error([sums], run.plan) == float("inf")
    assert error([None, None], run.plan) is None


def test_a_subclass_that_does_more_is_not_trusted() -> None:
    class Shifted(optim.AdamW):
        def step(self, closure: Any = None) -> Any:
            result = super().step(closure)
            with torch.no_grad():
                for group in self.param_groups:
                    for p in group["params"]:
                        p.mul_(0.999)
            return result

    run = Run(lambda p: Shifted(p, 0.01), ONE)
    run.steps(1)
    found = error([row.asked for row in run.drained()[1]], run.plan)
    assert found is not None
    assert found > FAITHFUL


def test_gradients_written_to_within_an_uncopied_step_are_unknown() -> None:
    run = Run(FORMULAS["SGD"], ONE)
    run.steps(2, trust=True)
    run.gradients(2)
    run.meter.before(2, 1)
    run.optimizer.step()
    for p in run.parameters.values():
        assert p.grad is not None
        p.grad.mul_(2.0)
    run.meter.after()
    run.steps(1, trust=True, start=4)
    columns, _ = run.drained()
    assert columns["gg"].isnan().tolist()[2] == [True] * run.plan.segments
    assert columns["xx"][2].isnan().all()
    assert not columns["gg"][3].isnan().any(), "measured by a copy again"


@pytest.mark.parametrize("layout", ["dtype", "strides"])
def test_weights_that_are_not_what_they_were(layout: str) -> None:
    run = Run(FORMULAS["AdamW"], ONE)
    run.steps(1)
    p = run.parameters["rows"]
    p.data = p.data.float() if layout == "dtype" else p.data.contiguous(memory_format=torch.channels_last)
    run.gradients(1)
    with pytest.raises(MovedError):
        run.meter.before(1, 1)


def test_gradients_and_states_of_other_layouts_are_converted() -> None:
    usual, odd = Run(FORMULAS["AdamW"], ONE), Run(FORMULAS["AdamW"], ONE)
    usual.steps(3)
    for number in range(3):
        odd.gradients(number)
        for p in odd.parameters.values():
            assert p.grad is not None
            p.grad = p.grad.mT.contiguous().mT if p.dim() > 1 else p.grad
        odd.meter.before(number, 1)
        odd.optimizer.step()
        odd.meter.after()
    assert_close(odd.drained()[0], usual.drained()[0], 1e-12)


def test_sparse_gradients() -> None:
    dense, sparse = (Run(lambda p: optim.SGD(p, 0.1), ONE, torch.float32) for _ in range(2))
    for run in (dense, sparse):
        run.gradients(0)
        for p in run.parameters.values():
            assert p.grad is not None
            p.grad = p.grad.to_sparse() if run is sparse else p.grad
        run.meter.before(0, 1)
        run.optimizer.step()
        run.meter.after()
    assert_close(sparse.drained()[0], dense.drained()[0], 1e-6)  # sparse additions are rounded otherwise


def test_why_there_is_no_kernel_is_told_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(host_kernel, "reason", lambda: "it was not built")
    monkeypatch.setattr(paths, "_told", set())
    with caplog.at_level("INFO", logger="lightning_sphere"):
        sums = [Run(FORMULAS["SGD"], ONE).meter.sums for _ in range(2)]
    assert all(isinstance(some, TorchSums) for some in sums)
    assert [record.message.endswith("it was not built") for record in caplog.records] == [True]


def test_weights_with_gaps_are_measured_by_operations() -> None:
    storage = torch.randn(6, 5)
    parameters = {"w": nn.Parameter(storage[:, :3])}
    from lightning_sphere.groups import GroupPart, ScaleGroup

    plan = Plan([ScaleGroup("w", (GroupPart("w"),), 6, "row")], parameters, {"w": 0})
    assert isinstance(paths.sums_of_plan(plan, ("xx", "gx", "gg", "xd", "dd")), TorchSums)
