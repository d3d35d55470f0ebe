"""The table at the end: right numbers, readable at 80 columns."""

from __future__ import annotations

import io
import math
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch.nn.functional import cross_entropy

from lightning_sphere import SphereTracker, read_run
from lightning_sphere.summary import LayerSummary, RunSummary, tensorboard_command
from nets import batches, conv_net


def rendered(summary: RunSummary, width: int, log_dir: str | None = None) -> list[str]:
    stream = io.StringIO()
    summary.print(log_dir=log_dir, console=Console(file=stream, width=width))
    return stream.getvalue().splitlines()


def test_the_numbers_are_medians_of_the_last_steps(tmp_path: Path) -> None:
    net = conv_net()
    optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
    with SphereTracker(net, optimizer, tmp_path, strict=True, flush_every_n_steps=5) as tracker:
        for images, classes in batches(12):
            optimizer.zero_grad()
            cross_entropy(net(images), classes).backward()
            optimizer.step()
    summary, record = tracker.summary(), read_run(tmp_path)
    assert (summary.steps, summary.window) == (12, 5)
    for number, row in enumerate(summary.layers):
        assert row.layer == record.layers[number]
        for name, value in (
            ("norm", row.norm),
            ("angular_step", row.angular_step),
            ("effective_lr", row.effective_lr),
            ("invariance_residual", row.residual),
        ):
            assert value == pytest.approx(sorted(record[name][-5:, number])[2], rel=1e-6)
        change = sorted(record["norm"][-5:, number])[2] / record["norm"][0, number] - 1
        assert row.norm_change == pytest.approx(change, rel=1e-4, abs=1e-6)
    assert [row.kind for row in summary.layers] == ["row", "row", "none"]
    assert [row.shape for row in summary.layers] == [(8, 1, 3, 3), (11, 8, 3, 3), (10, 11)]


WIDE = RunSummary(
    (
        LayerSummary("stem", (64, 3, 7, 7), "row", 1.234567, 1e-3, 2e-2, 0.1, 3e-8),
        LayerSummary(
            "bert.encoder.layer.11.attention.output.dense", (1024, 1024, 3, 3), "whole", 123456.0, 1e-7, 2e4, 20.0, 0.2
        ),
        LayerSummary("head", (10, 64), "none", math.nan, math.nan, math.nan, math.nan, math.nan),
    ),
    steps=1000,
    window=50,
)


@pytest.mark.parametrize("width", [80, 100, 140])
def test_no_line_is_cut_or_wrapped(width: int) -> None:
    lines = rendered(WIDE, width)
    assert max(map(len, lines)) <= width
    table = [line for line in lines if line.startswith(("stem", "…", "bert", "head"))]
    assert len(table) == 3
    assert all("…" not in line for line in table if not line.startswith("…"))
    assert "attention.output.dense" in table[1] or width == 80
    assert "output.dense" in table[1]
    assert "1024x1024x3x3" in table[1]


def test_unknown_is_shown_as_unknown() -> None:
    last = next(line for line in rendered(WIDE, 80) if line.startswith("head"))
    assert last.split() == ["head", "10x64", "none", "-", "-", "-", "-", "-"]


def test_angles_are_in_degrees() -> None:
    first = next(line for line in rendered(WIDE, 80) if line.startswith("stem"))
    assert first.split() == ["stem", "64x3x7x7", "row", "1.23", "+10.0%", "0.0573", "0.02", "3e-08"]


def test_where_nothing_is_invariant_it_says_why() -> None:
    rows = (LayerSummary("head", (10, 64), "none", 1.0, 1.0, 1.0, 1.0, 1.0, "not invariant: nothing follows"),)
    text = " ".join(" ".join(rendered(RunSummary(rows, 1, 1), 80)).split())
    assert "0 of 1 weights are scale-invariant; 1 step recorded" in text
    assert "For example, head: not invariant: nothing follows." in text


def test_a_run_without_steps_says_so() -> None:
    assert rendered(RunSummary((), 0, 0), 80) == [
        "lightning_sphere measured nothing: no optimizer step, or no selected weight."
    ]


def test_the_command_that_opens_tensorboard_is_complete_and_in_one_piece(tmp_path: Path) -> None:
    folder = str(tmp_path / ("long" * 30))
    assert any(tensorboard_command(folder) in line for line in rendered(WIDE, 80, log_dir=folder))
    assert tensorboard_command("my runs/1").endswith("--logdir 'my runs/1'")
