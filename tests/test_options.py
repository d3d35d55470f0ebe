"""Wrong arguments raise where they are given, and say what is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.tensorboard import SummaryWriter

from lightning_sphere import SphereMonitor, SphereTracker
from lightning_sphere.options import Options
from lit import LitNet, loader, quiet_trainer
from nets import conv_net


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"every_n_steps": 0}, ValueError, "every_n_steps takes a positive integer, got 0"),
        ({"every_n_steps": 1.5}, TypeError, r"every_n_steps takes a positive integer, got 1\.5"),
        ({"every_n_steps": True}, TypeError, "every_n_steps takes a positive integer, got True"),
        ({"device_budget_mb": 0}, ValueError, "device_budget_mb takes a positive number of MiB, got 0"),
        ({"device_budget_mb": float("nan")}, ValueError, "device_budget_mb takes a positive number of MiB, got nan"),
        ({"device_budget_mb": "64"}, TypeError, "device_budget_mb takes a number of MiB, got '64'"),
        ({"per_layer_scalars": "yes"}, TypeError, "per_layer_scalars takes True, False or a positive integer, got 'ye"),
        ({"per_layer_scalars": 0}, ValueError, "per_layer_scalars takes True, False or a positive integer, got 0"),
        ({"histograms": 1.5}, TypeError, r"histograms takes True, False or a positive integer, got 1\.5"),
        ({"histograms": -1}, ValueError, "histograms takes True, False or a positive integer, got -1"),
        ({"histograms": None}, TypeError, "histograms takes True, False or a positive integer, got None"),
        ({"histograms": 10, "quantities": "drift"}, ValueError, "histograms is of no use here: quantities has none of"),
        ({"custom_scalars": 1}, TypeError, "custom_scalars takes True or False, got 1"),
        ({"strict": 1}, TypeError, "strict takes True or False, got 1"),
        ({"include": []}, ValueError, "include takes at least one name or pattern"),
        ({"include": 3}, TypeError, "include takes a name or a sequence of names or patterns, got 3"),
        ({"exclude": ["conv", 3]}, TypeError, "exclude takes a name or a sequence of names or patterns"),
    ],
)
def test_a_wrong_argument_is_named(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        SphereMonitor(**arguments)
    net = conv_net()
    with pytest.raises(error, match=message):
        SphereTracker(net, torch.optim.SGD(net.parameters(), 0.1), **arguments)


def test_true_stands_for_a_usual_stride() -> None:
    assert (Options(histograms=True).histograms_every, Options(per_layer_scalars=True).per_layer_every) == (100, 1)
    assert (Options(histograms=7).histograms_every, Options(per_layer_scalars=7).per_layer_every) == (7, 7)
    assert (Options().histograms_every, Options().per_layer_every) == (0, 0)


def test_print_summary_takes_a_flag() -> None:
    with pytest.raises(TypeError, match="print_summary takes True or False, got 'no'"):
        SphereMonitor(print_summary="no")  # type: ignore[arg-type]


def test_what_is_no_optimizer_is_named() -> None:
    net = conv_net()
    with pytest.raises(TypeError, match=r"optimizer takes a torch\.optim\.Optimizer or a sequence of them, got str"):
        SphereTracker(net, ["adam"])  # type: ignore[list-item]


def test_one_place_to_write(tmp_path: Path) -> None:
    net = conv_net()
    with SummaryWriter(str(tmp_path)) as writer, pytest.raises(ValueError, match="log_dir and writer"):
        SphereTracker(net, torch.optim.SGD(net.parameters(), 0.1), tmp_path, writer=writer)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"log_dir": 5}, "log_dir takes a path, got 5"),
        ({"sinks": 3}, "sinks takes a sequence of objects with write"),
        ({"sinks": [3]}, "sinks takes a sequence of objects with write"),
        ({"position": 3}, "position takes a function, got 3"),
    ],
)
def test_where_to_put_recordings(arguments: dict[str, Any], message: str) -> None:
    net = conv_net()
    with pytest.raises(TypeError, match=message):
        SphereTracker(net, torch.optim.SGD(net.parameters(), 0.1), **arguments)
    with pytest.raises(TypeError, match=r"model takes a torch\.nn\.Module, got 3"):
        SphereTracker(3, torch.optim.SGD(net.parameters(), 0.1))  # type: ignore[arg-type]


@pytest.mark.parametrize("argument", ["include", "exclude"])
def test_an_unknown_name_lists_close_ones(tmp_path: Path, argument: str) -> None:
    trainer = quiet_trainer(tmp_path, callbacks=[SphereMonitor(**{argument: ["net.03"]})])
    with pytest.raises(ValueError, match=rf"{argument} takes names .*'net\.03' matches none; did you mean .*'net\.0'"):
        trainer.fit(LitNet(), loader(count=32))


@pytest.mark.parametrize(
    ("arguments", "layers"),
    [
        ({"include": "net.0"}, ("net.0",)),
        ({"include": ["net.3.weight", "net.9"]}, ("net.3", "net.9")),
        ({"include": "net"}, ("net.0", "net.3", "net.9")),
        ({"include": "net.[03]*"}, ("net.0", "net.3")),
        ({"exclude": "*.9"}, ("net.0", "net.3")),
        ({"include": "net", "exclude": ("net.0", "net.3")}, ("net.9",)),
    ],
)
def test_names_and_patterns_select_layers(tmp_path: Path, arguments: dict[str, Any], layers: tuple[str, ...]) -> None:
    monitor = SphereMonitor(strict=True, **arguments)
    quiet_trainer(tmp_path, callbacks=[monitor]).fit(LitNet(), loader(count=32))
    assert monitor.tracker is not None
    assert tuple(row.layer for row in monitor.tracker.summary().layers) == layers
