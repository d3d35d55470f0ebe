"""The benchmarks' arithmetic and counting, and that what they train is what they say; their figures are not tested."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.cases import CASES
from benchmarks.counts import counting
from benchmarks.figures import figures, measurement_error
from benchmarks.interleave import take_turns
from benchmarks.render import markdown
from benchmarks.variants import AGAIN, BARE, CORE, GRAD_NORM
from benchmarks.worker import Job

EXAMPLE = Path(__file__).parents[1] / "examples" / "01_digits_resnet.py"


def result(ms: list[float], **more: Any) -> dict[str, Any]:
    counted = {"operations": 100.0, "synchronizations": 1.0, "bytes": 10.0, "peak_memory": 5e6}
    return {"ms": ms, "flush_ms": [0.0] * len(ms), "parameters": 1000, "tensors": 2, **counted, **more}


RESULTS = {
    BARE: result([10.0, 20.0, 10.0]),
    AGAIN: result([12.0, 20.0, 10.0]),
    GRAD_NORM: result([22.0, 30.0, 20.0], synchronizations=21.0),
    CORE: result([12.0, 22.0, 12.0], flush_ms=[0.5, 0.25, 0.5], bytes=1010.0, peak_memory=8e6),
}


def test_figures_are_medians_of_rounds() -> None:
    bare, grad_norm, core = figures(RESULTS)
    assert (bare.ms, bare.ratio, bare.added_ms) == (11.0, 1.0, 0.0)  # rounds: 11, 20, 10
    assert core.ratio == pytest.approx(1.1)  # 12/11, 22/20, 12/10
    assert core.added_ms == 2.0  # 1, 2, 2
    assert grad_norm.added_ms == 10.0
    assert core.less_than_grad_norm == 5.0
    assert (core.flush_ms, core.operations, core.bytes, core.memory) == (0.5, 0.0, 1000.0, 3e6)
    assert grad_norm.synchronizations == 20.0
    assert measurement_error(RESULTS) == 0.0


def test_markdown_has_a_row_per_variant() -> None:
    machine = {"cpu": "c", "cores": 2, "threads": 2, "torch": "t", "lightning": "l", "python": "p"}
    model = {"title": "net", "optimizer": "sgd", "rounds": 3, "turn": 5, "variants": RESULTS}
    text = markdown({"machine": machine, "models": {"net": model}})
    assert "5.0x as much" in text
    assert sum(line.startswith("| ") for line in text.splitlines()) == 5  # with the heading and the border


READS = {
    "nothing": (lambda x: x.sum() + 1, 0),
    "item": (lambda x: x.sum().item(), 1),
    "float": (lambda x: float(x.sum()), 1),
    "nonzero": (lambda x: x.nonzero(), 1),
    "list": (lambda x: torch.tensor([x[0], x[1]]), 2),
    "cpu once": (lambda x: x.cpu().mul(2).sum().item(), 1),
    "to once": (lambda x: x.to("cpu", torch.float64).numpy(), 1),
    "cpu, then the model's again": (lambda x: (x.cpu(), x.sum().item()), 2),
    "made on the host": (lambda x: torch.tensor([1.0, 2.0]).sum().item(), 0),
    "where it is": (lambda x: x.to(x.device), 0),
}


@pytest.mark.parametrize("name", READS)
def test_reads_are_counted(name: str) -> None:
    function, expected = READS[name]
    x = torch.randn(4)
    with counting([]) as counter:
        function(x)
    assert counter.reads == expected
    assert not hasattr(torch.Tensor.cpu, "__wrapped__"), "the patches must be gone"


def test_digits_net_is_that_of_the_example() -> None:
    spec = importlib.util.spec_from_file_location("example", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    shapes = [tuple(p.shape) for p in example.DigitsResNet().parameters()]
    assert [tuple(p.shape) for p in CASES["digits"].seeded_network().parameters()] == shapes


@pytest.mark.parametrize(("case", "low", "high"), [("resnet18", 11.1e6, 11.4e6), ("encoder", 19e6, 21e6)])
def test_sizes(case: str, low: float, high: float) -> None:
    with torch.device("meta"):
        count = sum(p.numel() for p in CASES[case].network().parameters())
    assert low < count < high


def test_variants_take_turns_and_all_steps_are_recorded() -> None:
    jobs = [Job("digits", variant, "adamw", "cpu", turn=3, early_turns=1) for variant in (BARE, CORE)]
    results = take_turns(jobs, 2, lambda _: None)
    assert [len(results[name]["ms"]) for name in (BARE, CORE)] == [2, 2]
    assert all(value > 0 for name in (BARE, CORE) for value in results[name]["ms"])
    assert results[CORE]["measured_steps"] == 3 * 5  # early, full, two rounds, counted
    assert results[CORE]["groups"] > 300
    assert results[CORE]["operations"] > results[BARE]["operations"] > 0
    assert results[CORE]["bytes"] > results[BARE]["bytes"]
