"""The torchmetrics classes and the functions under them, against numpy on float64 vectors."""

from __future__ import annotations

import doctest
import math
import pickle
import re
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from pytorch_lightning import LightningModule
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import Metric, MetricCollection

from lightning_sphere import functional, metrics
from lightning_sphere.metrics import AngularStep, EffectiveLearningRate, WeightNorm
from lit import quiet_trainer
from nets import digits

Vectors = list[npt.NDArray[np.float64]]
CUTS: dict[str, tuple[int | None, int | None]] = {
    "filters": (0, None),
    "blocks": (0, 3),
    "second": (1, None),
    "last": (-1, 2),
    "whole": (None, None),
}


def cut(tensor: Tensor, axis: int | None, blocks: int | None) -> Vectors:
    """The groups as plain vectors, one after another."""
    array = tensor.detach().to(torch.float64).numpy()
    if axis is None:
        return [array.ravel()]
    count = array.shape[axis]
    width = count // (blocks or count)
    return [
        np.concatenate([array.take(index, axis).ravel() for index in range(start, start + width)])
        for start in range(0, count, width)
    ]


def angles(before: Vectors, after: Vectors) -> npt.NDArray[np.float64]:
    """Kahan's formula, accurate for all angles."""
    u = [x / np.linalg.norm(x) for x in before]
    v = [x / np.linalg.norm(x) for x in after]
    return np.array([2 * math.atan2(np.linalg.norm(a - b), np.linalg.norm(a + b)) for a, b in zip(u, v, strict=True)])


def rates(before: Vectors, after: Vectors, lr: float, divisors: Vectors | None) -> npt.NDArray[np.float64]:
    """``eta/(r nu) (1 - eta <c,u>/(r nu))^-1`` with ``c = -(nu/eta) D``, as the paper has it."""
    result = []
    for index, (x, x_after) in enumerate(zip(before, after, strict=True)):
        r = np.linalg.norm(x)
        b = np.ones_like(x) if divisors is None else divisors[index]
        nu = r * np.linalg.norm(b) / math.sqrt(len(x))
        c = -(nu / lr) * (x_after - x)
        result.append(lr / (r * nu) / (1 - lr * float(c @ x) / r / (r * nu)))
    return np.array(result)


def steps(count: int = 4, dtype: torch.dtype = torch.float32, seed: int = 0) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Weights before and after, and divisors."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(count):
        weight, moved = torch.randn(2, 6, 4, 3, 2, generator=generator)
        divisor = torch.rand(6, 4, 3, 2, generator=generator) + 0.1
        found.append((weight.to(dtype), (weight + 0.05 * moved).to(dtype), divisor.to(dtype)))
    return found


def mean_of(values: npt.NDArray[np.float64], aggregate: str) -> float:
    if aggregate == "rms":
        return float(np.sqrt(np.mean(values**2)))
    return float(np.exp(np.mean(np.log(values))) if aggregate == "geometric" else np.mean(values))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", CUTS)
def test_functions_are_those_of_the_vectors(name: str, dtype: torch.dtype) -> None:
    axis, blocks = CUTS[name]
    ((before, after, divisor),) = steps(1, dtype)
    x, y, b = (cut(tensor, axis, blocks) for tensor in (before, after, divisor))
    close: dict[str, Any] = {"rtol": 1e-11}
    where: dict[str, Any] = {"axis": axis, "blocks": blocks}
    assert functional.norm(before, **where).dtype == torch.float64
    np.testing.assert_allclose(functional.norm(before, **where), [np.linalg.norm(v) for v in x], **close)
    np.testing.assert_allclose(functional.angular_step(before, after, **where), angles(x, y), **close)
    np.testing.assert_allclose(functional.effective_lr(before, after, 0.3, **where), rates(x, y, 0.3, None), **close)
    lr = torch.tensor([0.3], dtype=torch.float64)
    np.testing.assert_allclose(
        functional.effective_lr(before, after, lr, divisor, **where), rates(x, y, 0.3, b), **close
    )


def test_a_small_angle_in_float32_is_not_lost() -> None:
    before = torch.randn(8, 100, generator=torch.Generator().manual_seed(0))
    after = before * (1 + 1e-6 * torch.randn(8, 100, generator=torch.Generator().manual_seed(1)))
    expected = angles(cut(before, 0, None), cut(after, 0, None))
    assert expected.max() < 2e-6
    np.testing.assert_allclose(functional.angular_step(before, after), expected, rtol=1e-7)


def test_a_divisor_expands_and_zero_weights_are_unknown() -> None:
    ((before, after, _),) = steps(1)
    before[2] = 0.0
    rate = functional.effective_lr(before, after, 0.1, torch.full((6, 1, 1, 1), 2.0))
    full = functional.effective_lr(before, after, 0.1, torch.full_like(before, 2.0))
    np.testing.assert_array_equal(rate, full)
    np.testing.assert_array_equal(rate.isnan(), [False, False, True, False, False, False])
    np.testing.assert_array_equal(functional.angular_step(before, after).isnan(), rate.isnan())
    assert functional.norm(before)[2] == 0


@pytest.mark.parametrize("aggregate", ["mean", "rms", "geometric"])
@pytest.mark.parametrize("name", CUTS)
def test_metrics_are_means_over_groups_and_steps(name: str, aggregate: Any) -> None:
    axis, blocks = CUTS[name]
    angle, rate, length = (
        kind(axis, blocks=blocks, aggregate=aggregate) for kind in (AngularStep, EffectiveLearningRate, WeightNorm)
    )
    expected: dict[str, list[npt.NDArray[np.float64]]] = {"angle": [], "rate": [], "length": []}
    for step, (before, after, divisor) in enumerate(steps()):
        x, y, b = (cut(tensor, axis, blocks) for tensor in (before, after, divisor))
        lr = 0.1 * (step + 1)
        angle.update(before, after)
        rate.update(before, after, lr, divisor)
        length.update(before)
        expected["angle"].append(angles(x, y))
        expected["rate"].append(rates(x, y, lr, b))
        expected["length"].append(np.array([np.linalg.norm(v) for v in x]))
    for metric, values in zip((angle, rate, length), expected.values(), strict=True):
        assert float(metric.compute()) == pytest.approx(mean_of(np.concatenate(values), aggregate), rel=1e-11)
        assert int(metric.count) == 4 * len(values[0])
        assert metric.compute().shape == ()


def test_defaults_are_the_documented_means() -> None:
    values = torch.tensor([1.0, 2.0, 6.0])
    for metric, expected in ((AngularStep(), math.sqrt(41 / 3)), (EffectiveLearningRate(), 3.0), (WeightNorm(), 3.0)):
        metric.update_values(values)
        assert float(metric.compute()) == pytest.approx(expected, rel=1e-12)
        assert (metric.axis, metric.blocks) == (0, None)


def test_given_values_count_like_measured_ones_and_nan_is_left_out() -> None:
    metric = WeightNorm()
    metric.update(torch.tensor([[3.0, 4.0]]))
    assert float(metric.compute()) == 5.0
    metric.update_values(torch.tensor([[torch.nan, 1.0], [torch.nan, 3.0]], dtype=torch.float16))
    assert float(metric.compute()) == pytest.approx(3.0)  # not the cached 5
    assert int(metric.count) == 3
    assert metric.update_count == 2
    metric.update_values(torch.full((2,), torch.nan))
    assert float(metric.compute()) == pytest.approx(3.0)
    with pytest.raises(TypeError, match=r"values takes a floating point tensor, got torch\.int64"):
        metric.update_values(torch.tensor([1]))


@pytest.mark.parametrize("kind", [AngularStep, EffectiveLearningRate, WeightNorm])
@pytest.mark.parametrize("aggregate", ["mean", "rms", "geometric"])
def test_the_mean_of_nothing_is_nan_without_a_warning(kind: Any, aggregate: Any) -> None:
    metric = kind(aggregate=aggregate)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert math.isnan(metric.compute())
        metric.update_values(torch.full((3,), torch.nan))
        assert math.isnan(metric.compute())
        assert math.isnan(pickle.loads(pickle.dumps(kind())).compute())


@pytest.mark.parametrize(("odd", "expected"), [(0.0, 0.0), (-1.0, math.nan)])
def test_a_geometric_mean_does_not_hide_odd_values(odd: float, expected: float) -> None:
    metric = EffectiveLearningRate(aggregate="geometric")
    metric.update_values(torch.tensor([1.0, odd, torch.nan]))
    assert float(metric.compute()) == pytest.approx(expected, nan_ok=True)


# ---------------------------------------------------------------- torchmetrics


def filled(**arguments: Any) -> tuple[AngularStep, float]:
    metric = AngularStep(**arguments)
    for before, after, _ in steps():
        metric.update(before, after)
    return metric, float(metric.compute())


def test_reset_clone_and_pickle() -> None:
    metric, value = filled()
    clone, copy = metric.clone(), pickle.loads(pickle.dumps(metric))
    metric.reset()
    assert math.isnan(metric.compute())
    assert float(clone.compute()) == float(copy.compute()) == value
    for before, after, _ in steps():
        metric.update(before, after)
        copy.update(before, after)
    assert float(metric.compute()) == value
    assert float(copy.compute()) == pytest.approx(value)
    assert int(copy.count) == 48


def test_states_are_saved_if_persistent() -> None:
    metric, value = filled()
    assert not metric.state_dict()
    metric.persistent(True)
    state = metric.state_dict()
    assert {tensor.dtype for tensor in state.values()} == {torch.float64, torch.int64}
    other = AngularStep()
    other.persistent(True)
    other.load_state_dict(state)
    assert float(other.compute()) == value
    different = AngularStep(aggregate="mean")
    different.persistent(True)
    with pytest.raises(RuntimeError, match="AngularStep_rms"):
        different.load_state_dict(state)  # a sum of squares is no sum


def test_forward_returns_the_value_of_its_step_and_keeps_no_graph() -> None:
    metric, (first, second) = AngularStep(), steps(2)
    weight = nn.Parameter(first[1])
    value = metric(first[0], weight)
    assert not value.requires_grad
    assert float(value) == pytest.approx(mean_of(angles(cut(first[0], 0, None), cut(first[1], 0, None)), "rms"))
    metric(second[0], second[1])
    both = np.concatenate([angles(cut(x, 0, None), cut(y, 0, None)) for x, y, _ in (first, second)])
    assert float(metric.compute()) == pytest.approx(mean_of(both, "rms"))


@pytest.mark.parametrize(
    "move",
    [
        lambda m: m.half(),
        lambda m: m.float(),
        lambda m: m.bfloat16(),
        lambda m: m.to(torch.bfloat16),
        lambda m: m.set_dtype(torch.float16),
        lambda m: nn.ModuleList([m]).to(torch.bfloat16)[0],
        lambda m: nn.ModuleList([m]).half()[0],
        lambda m: m.to("cpu", torch.float16),
    ],
)
def test_sums_stay_exact_in_modules_of_low_precision(move: Any) -> None:
    metric, _ = filled()
    metric = move(metric)
    for before, after, _ in steps(seed=1):
        metric.update(before, after)
    pairs = [*steps(), *steps(seed=1)]
    expected = mean_of(np.concatenate([angles(cut(x, 0, None), cut(y, 0, None)) for x, y, _ in pairs]), "rms")
    assert float(metric.compute()) == pytest.approx(expected, rel=1e-11)
    metric.reset()
    metric.update(*steps(1)[0][:2])
    assert metric.compute().dtype == torch.float64


def test_a_device_without_float64_gets_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "accumulation_dtype", lambda d: torch.float32 if d.type == "meta" else torch.float64)
    metric, _ = filled()
    metric.persistent(True)
    there = metric.to("meta")
    assert {state.dtype for state in there.state_dict().values()} == {torch.float32, torch.int64}
    assert {state.device.type for state in there.state_dict().values()} == {"meta"}
    there.reset()
    assert there.device.type == "meta"
    back = there.to_empty(device="cpu")
    assert {state.dtype for state in back.state_dict().values()} == {torch.float64, torch.int64}
    assert math.isnan(back.compute())
    back.update(*steps(1)[0][:2])
    assert float(back.compute()) > 0


def test_a_metric_made_on_the_meta_device_comes_alive_empty() -> None:
    with torch.device("meta"):
        metric = WeightNorm()
    metric = metric.to_empty(device="cpu")
    metric.update(torch.tensor([[3.0, 4.0]]))
    assert float(metric.compute()) == 5.0
    metric.reset()
    assert math.isnan(metric.compute())


def test_a_collection_keeps_metrics_apart_although_nothing_moved_at_first() -> None:
    """A warm-up starts at rate 0: all angles of the first step are 0, whatever their kind."""

    def make() -> dict[str, Metric]:
        return {
            "rows": AngularStep(0),
            "columns": AngularStep(1),
            "blocks": AngularStep(0, blocks=2),
            "mean": AngularStep(aggregate="mean"),
            "rate": EffectiveLearningRate(),
            "norm": WeightNorm(),
        }

    collection, alone = MetricCollection(make()), make()  # type: ignore[arg-type]
    weight = torch.randn(4, 4, generator=torch.Generator().manual_seed(0))
    for step in range(3):
        after = weight + 0.1 * step * torch.randn(4, 4, generator=torch.Generator().manual_seed(step))
        given = {"before": weight, "after": after, "lr": 0.1 * step, "weight": weight}
        collection.update(**given)
        for metric in alone.values():
            metric.update(**metric._filter_kwargs(**given))
        weight = after
    assert {name: float(value) for name, value in collection.compute().items()} == {
        name: float(metric.compute()) for name, metric in alone.items()
    }
    assert len({float(value) for value in collection.compute().values()}) == 6
    collection.reset()
    assert all(math.isnan(value) for value in collection.compute().values())


PROCESSES = """
import sys
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from lightning_sphere.metrics import AngularStep, WeightNorm

def work(rank, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    angle, length, nothing = AngularStep(), WeightNorm(), WeightNorm()
    if rank == 0:
        angle.update_values(torch.tensor([3.0, torch.nan, 4.0]))
    length.update_values(torch.arange(1.0, 4.0) + 10 * rank)
    means = [float(metric.compute()) for metric in (angle, length, nothing)]
    sys.stdout.write(f"{means} {int(length.count)}\\n")
    dist.destroy_process_group()

if __name__ == "__main__":
    mp.spawn(work, (sys.argv[1],), nprocs=2)
"""


def test_two_processes_compute_the_same_from_all_values(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROCESSES)
    command = [sys.executable, "-W", "error::UserWarning:torchmetrics", str(tmp_path / "program.py"), str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split("\n")[:2] == [f"[{math.sqrt(12.5)}, 7.0, nan] 3"] * 2


# ------------------------------------------------------------------- Lightning


def test_the_example_of_the_module_runs_and_logs_what_the_steps_did(tmp_path: Path) -> None:
    assert metrics.__doc__ is not None
    source = re.search(r"::\n\n((?:    .*\n|\n)+)", metrics.__doc__)
    assert source is not None
    names: dict[str, Any] = {}
    exec("\n".join(line[4:] for line in source[1].split("\n")), names)
    seen: list[tuple[Tensor, Tensor]] = []

    class Watched(names["Net"]):  # type: ignore[misc, name-defined]
        def on_before_optimizer_step(self, _: Any) -> None:
            self.kept = self.conv.weight.detach().clone()

        def on_train_batch_end(self, *_: Any) -> None:
            seen.append((self.kept, self.conv.weight.detach().clone()))

    torch.manual_seed(0)
    images, classes = digits()
    data = DataLoader(TensorDataset(images[:160], classes[:160]), batch_size=16)
    trainer = quiet_trainer(tmp_path, max_epochs=2)
    trainer.fit(Watched(), data)
    assert len(seen) == 20
    x, y = ([vector for step in seen[10:] for vector in cut(step[side], 0, None)] for side in (0, 1))
    logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
    assert logged["conv/angular_step"] == pytest.approx(mean_of(angles(x, y), "rms"), rel=1e-6)
    assert logged["conv/effective_lr"] == pytest.approx(rates(x, y, 0.05, None).mean(), rel=1e-6)
    assert logged["conv/norm"] == pytest.approx(np.mean([np.linalg.norm(v) for v in x]), rel=1e-6)


def test_a_module_in_true_bfloat16_logs_honest_numbers(tmp_path: Path) -> None:
    class Net(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(64, 10, bias=False)
            self.length = WeightNorm(axis=None)
            self.expected: list[float] = []

        def training_step(self, batch: list[Tensor], _: int) -> Tensor:
            self.length.update(self.layer.weight)
            self.expected.append(float(self.layer.weight.detach().double().norm()))
            self.log("norm", self.length, on_step=False, on_epoch=True)
            return nn.functional.cross_entropy(self.layer(batch[0].flatten(1)), batch[1])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), 1.0)

    images, classes = digits()
    net, trainer = Net(), quiet_trainer(tmp_path, precision="bf16-true")
    trainer.fit(net, DataLoader(TensorDataset(images[:320], classes[:320]), batch_size=16))
    assert net.layer.weight.dtype == torch.bfloat16
    assert float(trainer.callback_metrics["norm"]) == pytest.approx(np.mean(net.expected), rel=1e-7)


def test_the_examples_of_the_classes_hold() -> None:
    result = doctest.testmod(metrics)
    assert result.attempted >= 15
    assert result.failed == 0


# --------------------------------------------------------------------- errors

ONE = torch.ones(4, 6)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: AngularStep(axis="0"), TypeError, "axis takes a dimension or None.*got '0'"),  # type: ignore[arg-type]
        (lambda: WeightNorm(axis=True), TypeError, "axis takes a dimension or None.*got True"),
        (lambda: WeightNorm(blocks=2.0), TypeError, "blocks takes a positive integer.*got 2.0"),  # type: ignore[arg-type]
        (lambda: WeightNorm(blocks=0), ValueError, "blocks takes a positive integer.*got 0"),
        (lambda: WeightNorm(axis=None, blocks=2), ValueError, "blocks takes None where axis is None.*got 2"),
        (lambda: WeightNorm(aggregate="max"), ValueError, "takes one of 'mean', 'rms', 'geometric', got 'max'"),  # type: ignore[arg-type]
        (lambda: WeightNorm(aggregate=[]), ValueError, r"aggregate takes one of .*, got \[\]"),  # type: ignore[arg-type]
        (lambda: WeightNorm(color=1), ValueError, "color"),
        (lambda: AngularStep().update(ONE, torch.ones(6, 4)), ValueError, r"after takes .*\(4, 6\), got \(6, 4\)"),
        (lambda: AngularStep(axis=2).update(ONE, ONE + 1), ValueError, r"axis takes .* before, got 2 .*\(4, 6\)"),
        (lambda: WeightNorm(axis=-3).update(ONE), ValueError, "axis takes a dimension of weight, got -3"),
        (lambda: WeightNorm().update(torch.tensor(1.0)), ValueError, r"axis takes a dimension of weight, got 0 .*\(\)"),
        (lambda: WeightNorm(blocks=3).update(ONE), ValueError, "blocks takes .* 4 indices of weight's axis 0, got 3"),
        (lambda: WeightNorm().update([1.0]), TypeError, "weight takes a floating point tensor, got list"),  # type: ignore[arg-type]
        (lambda: WeightNorm().update(ONE.long()), TypeError, "weight takes a floating point tensor, got torch.int64"),
        (lambda: AngularStep().update(ONE, ONE.long()), TypeError, "after takes a floating point tensor"),
        (lambda: AngularStep().update(ONE, ONE.detach()), ValueError, "before takes a copy of the weights"),
        (lambda: EffectiveLearningRate().update(ONE, ONE + 1, "0.1"), TypeError, "lr takes a number.*got '0.1'"),  # type: ignore[arg-type]
        (lambda: EffectiveLearningRate().update(ONE, ONE + 1, -0.1), ValueError, "lr takes a number .*got -0.1"),
        (lambda: EffectiveLearningRate().update(ONE, ONE + 1, math.nan), ValueError, "lr takes a number .*got nan"),
        (lambda: EffectiveLearningRate().update(ONE, ONE + 1, ONE), TypeError, r"lr takes .* tensor of shape \(4, 6\)"),
        (lambda: EffectiveLearningRate().update(ONE, ONE + 1, 0.1, 2.0), TypeError, "divisor takes None .*got 2.0"),  # type: ignore[arg-type]
        (lambda: EffectiveLearningRate().update(ONE, ONE + 1, 0.1, ONE[0, :4]), ValueError, r"divisor .*got .* \(4,\)"),
    ],
)  # fmt: skip
def test_a_wrong_argument_is_named(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_a_refused_update_leaves_the_metric_as_it_was() -> None:
    metric, value = filled()
    with pytest.raises(ValueError, match="axis"):
        metric.update(torch.tensor(1.0), torch.tensor(2.0))
    assert float(metric.compute()) == value
