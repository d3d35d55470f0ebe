"""Curves of layers, histograms, layout and text, as they come out of a training."""

from __future__ import annotations

import errno
import io
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pytorch_lightning import Callback
from pytorch_lightning.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.compat.proto.summary_pb2 import DATA_CLASS_TENSOR
from tensorboard.util.tensor_util import make_ndarray
from torch.nn.functional import cross_entropy
from torch.optim import SGD, AdamW
from torch.utils.tensorboard import SummaryWriter

from lightning_sphere import SphereMonitor, SphereTracker, read_run
from lightning_sphere.guard import SphereWarning
from lightning_sphere.histograms import SHOWN
from lightning_sphere.quantities import QUANTITIES
from lightning_sphere.tensorboard.layout import LayoutScan
from lit import LitNet, loader, quiet_trainer
from nets import FIRST, SECOND, batches, conv_net

USERS = {"Mine": {"losses": ["Multiline", ["loss"]]}}
LAYERS = {"0": FIRST, "3": SECOND}


def read(folder: str | Path) -> Any:
    """Everything, by TensorBoard's own reader."""
    return EventAccumulator(str(folder), size_guidance={"tensors": 0, "scalars": 0}).Reload()  # type: ignore[no-untyped-call]


def tensors(events: Any, tag: str) -> dict[int, Any]:
    return {event.step: make_ndarray(event.tensor_proto) for event in events.Tensors(tag)}


def texts(folder: str | Path) -> list[tuple[int, str]]:
    events = read(folder)
    assert events.SummaryMetadata("sphere/about").plugin_data.plugin_name == "text"
    return [(event.step, event.tensor_proto.string_val[0].decode()) for event in events.Tensors("sphere/about")]


def layout(folder: str | Path) -> dict[str, list[str]]:
    found = LayoutScan(str(folder)).last()
    return {category.title: [chart.title for chart in category.chart] for category in found.category}


def train(model: torch.nn.Module, optimizers: list[torch.optim.Optimizer], steps: int, each: Any = None) -> None:
    for number, (images, classes) in enumerate(batches(steps)):
        for optimizer in optimizers:
            optimizer.zero_grad()
        cross_entropy(model(images), classes).backward()
        for optimizer in optimizers:
            optimizer.step()
        if each is not None:
            each(number)


# ------------------------------------------------------------------------------------------------ curves of layers


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize(("every", "steps"), [(True, range(20)), (7, [0, 7, 14])])
def test_curves_of_layers_at_each_nth_step(tmp_path: Path, every: Any, steps: Any) -> None:
    net = conv_net()
    optimizer = AdamW(net.parameters(), 1e-2)
    with SphereTracker(
        net, optimizer, tmp_path, per_layer_scalars=every, flush_every_n_steps=4, quantities="full", strict=True
    ):
        train(net, [optimizer], 20)
    events, record = read(tmp_path), read_run(tmp_path)
    tags = {tag for tag in events.Tags()["scalars"] if tag.rpartition("/")[2] in record.layers}
    drawn = [name for name in record.quantities if not np.isnan(record[name]).all() and not QUANTITIES[name].context]
    assert {tag.partition("/")[0] for tag in tags} == {f"sphere_{name}" for name in drawn}
    for tag in tags:
        quantity, layer = tag.removeprefix("sphere_").split("/")
        values = record[quantity][:, record.layers.index(layer)]
        points = {event.step: event.value for event in events.Scalars(tag)}
        assert set(points) <= set(np.flatnonzero(~np.isnan(values)).tolist())
        if not QUANTITIES[quantity].rare:
            assert set(points) | set(np.flatnonzero(np.isnan(values))) >= set(steps)
            assert len(points) <= len(list(steps)) + 1  # the first is unknown for what follows from two steps
        for step, value in points.items():
            assert value == values[step]


# ------------------------------------------------------------------------------------------------------ histograms


@pytest.mark.usefixtures("at_once", "copies")
@pytest.mark.parametrize("block", [1, 1 << 20])
def test_histograms_are_those_of_the_true_values(tmp_path: Path, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightning_sphere.evaluation.BLOCK", block)  # numbers at a time
    net = conv_net(width=24)
    optimizer = SGD(net.parameters(), 0.05)
    weights = dict(net.named_parameters())
    before: dict[str, Any] = {}
    truth: dict[tuple[str, str, int], Any] = {}

    def rows(name: str) -> Any:
        return weights[name].detach().numpy().astype(np.float64).reshape(len(weights[name]), -1)

    def compare(step: int) -> None:
        for layer, name in LAYERS.items():
            x, after = before[layer], rows(name)
            norm = np.linalg.norm(x, axis=1)
            cosine = (x * after).sum(1) / norm / np.linalg.norm(after, axis=1)
            truth["norm", layer, step] = norm
            truth["angular_step", layer, step] = np.arccos(np.clip(cosine, -1, 1))
            truth["effective_lr", layer, step] = 0.05 / norm**2 / (1 + (x * (after - x)).sum(1) / norm**2)
            before[layer] = after

    before |= {layer: rows(name) for layer, name in LAYERS.items()}
    with SphereTracker(net, optimizer, tmp_path, histograms=3, flush_every_n_steps=5, strict=True):
        train(net, [optimizer], 11, compare)
    events = read(tmp_path)
    tags = [tag for tag in events.Tags()["tensors"] if tag.startswith("sphere_histograms")]
    assert sorted(tags) == sorted(f"sphere_histograms_{name}/{layer}" for name in SHOWN for layer in LAYERS)
    for tag in tags:
        metadata = events.SummaryMetadata(tag)
        assert metadata.plugin_data.plugin_name == "histograms"
        assert metadata.data_class == DATA_CLASS_TENSOR
        quantity, layer = tag.removeprefix("sphere_histograms_").split("/")
        assert QUANTITIES[quantity].title in metadata.summary_description
        found = tensors(events, tag)
        assert list(found) == [0, 3, 6, 9]
        for step, buckets in found.items():
            values = truth[quantity, layer, step]
            edges = np.linspace(values.min(), values.max(), 31)
            np.testing.assert_allclose(buckets[:, 0], edges[:-1], rtol=2e-5)
            np.testing.assert_allclose(buckets[:, 1], edges[1:], rtol=2e-5)
            np.testing.assert_array_equal(buckets[:, 2], np.histogram(values, 30)[0])


@pytest.mark.usefixtures("at_once")
def test_histograms_of_several_optimizers_stand_in_one_event(tmp_path: Path) -> None:
    net = conv_net()
    optimizers: list[torch.optim.Optimizer] = [
        SGD(net[0].parameters(), 0.05),
        AdamW([p for name, p in net.named_parameters() if not name.startswith("0.")], 1e-2),
    ]
    with SphereTracker(net, optimizers, tmp_path, histograms=4, flush_every_n_steps=3, strict=True):
        train(net, optimizers, 9)
    events = read(tmp_path)
    for layer, groups in (("0", 8), ("3", 11)):
        found = tensors(events, f"sphere_histograms_norm/{layer}")
        assert list(found) == [0, 4, 8]
        assert all(buckets[:, 2].sum() == groups for buckets in found.values())


@pytest.mark.usefixtures("at_once")
def test_fewer_steps_in_the_file_keep_the_histograms(tmp_path: Path) -> None:
    net = conv_net()
    optimizer = SGD(net.parameters(), 0.05)
    with SphereTracker(net, optimizer, tmp_path, histograms=25, file_budget_mb=1e-3, strict=True):
        train(net, [optimizer], 330)
    steps = read_run(tmp_path).steps.tolist()
    assert len(steps) < 260
    assert list(tensors(read(tmp_path), "sphere_histograms_norm/0")) == list(range(0, 330, 25))


def test_nothing_of_it_is_written_unless_asked_for(tmp_path: Path) -> None:
    net = conv_net()
    optimizer = SGD(net.parameters(), 0.05)
    with SphereTracker(net, optimizer, tmp_path, strict=True):
        train(net, [optimizer], 5)
    events = read(tmp_path)
    groups: dict[str, int] = defaultdict(int)
    for tag in [*events.Tags()["scalars"], *events.Tags()["tensors"]]:
        groups[tag.partition("/")[0]] += 1
    assert set(groups) == {"sphere", "sphere_bands", "sphere_table", "sphere_schema"}
    assert layout(tmp_path) == {}


# ---------------------------------------------------------------------------------------------------------- layout


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("at", [None, "before", 7, 11])
def test_our_charts_join_the_users_whenever_these_come(tmp_path: Path, at: Any) -> None:
    net = conv_net()
    optimizer = SGD(net.parameters(), 0.05)
    writer = SummaryWriter(str(tmp_path))

    def each(step: int) -> None:
        if step == at:
            writer.add_custom_scalars(USERS)  # type: ignore[no-untyped-call]

    if at == "before":
        each(at)
    with SphereTracker(
        net, optimizer, writer=writer, custom_scalars=True, histograms=True, flush_every_n_steps=3, strict=True
    ):
        train(net, [optimizer], 12, each)
    expected = {} if at is None else {"Mine": ["losses"]}
    assert layout(tmp_path) == {**expected, "Sphere": layout(tmp_path)["Sphere"]}
    assert len(layout(tmp_path)["Sphere"]) == 3
    written = len(read(tmp_path).Tensors("custom_scalars__config__"))
    assert written == {None: 1, "before": 2}.get(at, 3)

    with SphereTracker(net, optimizer, writer=writer, custom_scalars=True, strict=True):
        train(net, [optimizer], 5)
    writer.close()
    assert len(read(tmp_path).Tensors("custom_scalars__config__")) == written  # nothing to add


def test_the_layout_of_a_resumed_trainer(tmp_path: Path) -> None:
    class Layout(Callback):
        def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
            trainer.logger.experiment.add_custom_scalars(USERS)

    def fit(*callbacks: Callback) -> None:
        logger = TensorBoardLogger(tmp_path, name="", version="")
        monitor = SphereMonitor(strict=True, custom_scalars=True)
        trainer = quiet_trainer(tmp_path, logger=logger, callbacks=[*callbacks, monitor], log_every_n_steps=2)
        trainer.fit(LitNet(), loader(count=16 * 6))

    fit(Layout())
    assert list(layout(tmp_path)) == ["Mine", "Sphere"]
    for file in tmp_path.glob("*tfevents*"):  # a resumed run has a file of its own, of a later second
        file.rename(file.with_name("events.out.tfevents.1.first"))
    fit()
    assert list(layout(tmp_path)) == ["Mine", "Sphere"]
    assert len(list(tmp_path.glob("*tfevents*"))) == 2
    assert len(read(tmp_path).Tensors("custom_scalars__config__")) == 2


def test_a_run_whose_folder_cannot_be_read_goes_on_without_our_charts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(*_: Any) -> Any:
        raise PermissionError("not allowed, for the tests")

    monkeypatch.setattr("lightning_sphere.tensorboard.layout.Path.iterdir", denied)
    net = conv_net()
    optimizer = SGD(net.parameters(), 0.05)
    tracker = SphereTracker(net, optimizer, tmp_path, custom_scalars=True, flush_every_n_steps=2)
    with pytest.warns(SphereWarning, match="custom_scalars is left out.*not allowed") as caught, tracker:
        train(net, [optimizer], 9)
    assert len(caught) == 1
    assert tracker.guard.failure is None
    assert len(read_run(tmp_path).steps) == 9


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_full_disk_is_told_once(tmp_path: Path) -> None:
    class Full(io.BytesIO):
        def write(self, data: Any) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    net = conv_net()
    optimizer = SGD(net.parameters(), 0.05)
    writer = SummaryWriter(str(tmp_path))
    tracker = SphereTracker(
        net, optimizer, writer=writer, custom_scalars=True, histograms=1, per_layer_scalars=1, flush_every_n_steps=2
    )

    def each(step: int) -> None:
        if step == 4:
            records = writer.file_writer.event_writer._async_writer._worker._record_writer
            records._original._writer = records._file = Full()

    with pytest.warns(SphereWarning, match="No space left") as caught, tracker:
        train(net, [optimizer], 30, each)
    assert len(caught) == 1
    assert tracker.guard.failure is not None


# ------------------------------------------------------------------------------------------------------------ text


@pytest.mark.usefixtures("at_once")
def test_the_text_comes_once_per_fit(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path, name="", version="")
    monitor = SphereMonitor(strict=True, exclude="net.9", histograms=30)
    trainer = quiet_trainer(tmp_path, logger=logger, callbacks=[monitor], log_every_n_steps=3)
    trainer.fit(LitNet("adamw"), loader(count=16 * 10))
    ((step, text),) = texts(logger.log_dir)
    assert step == 0
    assert text.startswith("**2 of 3 weights are scale-invariant**")
    assert "`AdamW`: `lr` 0.05, `weight_decay` 0.01, `betas` (0.9, 0.999), `eps` 1e-08" in text
    assert "`exclude` net.9" in text
    assert "`quantities` core" in text
    assert "`histograms` 30" in text
    assert "| `net.0` | row&nbsp;x&nbsp;8 | invariant per filter: BatchNorm `net.1` follows |" in text
    assert "| `net.9` | none |" in text
    assert len(text) < 2500
    trainer.fit_loop.max_epochs = 2
    trainer.fit(LitNet("adamw"), loader(count=16 * 10))
    assert len(texts(logger.log_dir)) == 2


@pytest.mark.parametrize("name", ["a|b", "<img src=x onerror=alert(1)>", "`x`", "*bold*"])
def test_layers_with_odd_names(tmp_path: Path, name: str) -> None:
    net = conv_net()
    model = torch.nn.Sequential()
    model.add_module(name, net)
    optimizer = SGD(model.parameters(), 0.05)
    with SphereTracker(model, optimizer, tmp_path, histograms=1, per_layer_scalars=1, custom_scalars=True, strict=True):
        train(model, [optimizer], 2)
    events = read(tmp_path)
    assert f"sphere_histograms_norm/{name}.0" in events.Tags()["tensors"]
    assert f"sphere_norm/{name}.0" in events.Tags()["scalars"]
    ((_, text),) = texts(tmp_path)
    assert name not in text
