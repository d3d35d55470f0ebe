"""What a Trainer's loggers receive, and at which place of the x axis."""

from __future__ import annotations

import csv
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from pytorch_lightning.loggers.logger import Logger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightning_sphere import SphereMonitor, read_run
from lightning_sphere.quantities import QUANTITIES
from lit import LitNet, loader, quiet_trainer

EPOCH = {"sphere_epoch/norm", "sphere_epoch/angular_step", "sphere_epoch/effective_lr"}


def scalars(folder: str | Path) -> EventAccumulator:
    return EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0}).Reload()


def steps_of(events: EventAccumulator, tag: str) -> list[int]:
    return [event.step for event in events.Scalars(tag)]


@pytest.mark.parametrize("accumulate", [1, 3])
def test_x_axis_is_that_of_metrics_logged_in_training_step(tmp_path: Path, accumulate: int) -> None:
    logger = TensorBoardLogger(tmp_path)
    trainer = quiet_trainer(
        tmp_path,
        logger=logger,
        callbacks=[SphereMonitor(strict=True)],
        log_every_n_steps=1,
        max_epochs=2,
        accumulate_grad_batches=accumulate,
    )
    trainer.fit(LitNet(), loader(count=16 * 8))
    events = scalars(logger.log_dir)
    assert steps_of(events, "sphere/effective_lr") == steps_of(events, "train_loss")
    assert read_run(logger.log_dir).steps.tolist() == steps_of(events, "train_loss")
    assert len(steps_of(events, "train_loss")) == {1: 16, 3: 6}[accumulate]


def test_every_step_is_written_although_the_logger_is_asked_every_tenth(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path)
    trainer = quiet_trainer(tmp_path, logger=logger, callbacks=[SphereMonitor(strict=True)], log_every_n_steps=10)
    trainer.fit(LitNet(), loader(count=16 * 13))
    events = scalars(logger.log_dir)
    assert steps_of(events, "train_loss") == [9]
    assert steps_of(events, "sphere/norm") == list(range(13))


def test_a_run_has_one_event_file_and_few_tags(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path)
    trainer = quiet_trainer(tmp_path, logger=logger, callbacks=[SphereMonitor(strict=True)], log_every_n_steps=1)
    trainer.fit(LitNet(), loader(count=64))
    assert len(list(Path(logger.log_dir).glob("*tfevents*"))) == 1
    ours = {tag for tag in scalars(logger.log_dir).Tags()["scalars"] if tag.startswith("sphere")}
    assert ours >= EPOCH
    record = read_run(logger.log_dir)
    drawn = [name for name in record.quantities if not QUANTITIES[name].context]
    known = [name for name in drawn if not np.isnan(record[name]).all()]
    assert {"norm", "angular_step", "effective_lr", "drift", "path_length"} < set(known)
    assert ours - EPOCH == {f"sphere/{name}" for name in known} | {
        f"sphere_bands/{name}/{edge}" for name in known for edge in ("p10", "p90")
    }


def test_each_step_is_one_event_of_the_loggers_own_file(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path)
    added: list[Any] = []
    original = logger.experiment.file_writer.add_event
    logger.experiment.file_writer.add_event = lambda event, step=None, walltime=None: (
        added.append((event.step, len(event.summary.value))),
        original(event, step, walltime),
    )
    quiet_trainer(tmp_path, logger=logger, callbacks=[SphereMonitor(strict=True)], log_every_n_steps=4).fit(
        LitNet(), loader(count=16 * 6)
    )
    table_events = [(step, values) for step, values in added if values > 1]
    assert [step for step, _ in table_events] == list(range(6))
    record = read_run(logger.log_dir)
    drawn = [index for index, name in enumerate(record.quantities) if not QUANTITIES[name].context]
    for (step, values), table in zip(table_events, record.values, strict=True):
        shown = table[np.array(record.invariant)][..., record.stats.index("median")][:, drawn]
        tables = int((~np.isnan(table)).any(axis=(0, 2)).sum())
        assert values == (step == 0) + tables + 3 * int((~np.isnan(shown)).any(axis=0).sum())


def test_per_layer_scalars_are_opt_in(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path)
    monitor = SphereMonitor(strict=True, per_layer_scalars=True)
    quiet_trainer(tmp_path, logger=logger, callbacks=[monitor]).fit(LitNet(), loader(count=64))
    events = scalars(logger.log_dir)
    record = read_run(logger.log_dir)
    for number, layer in enumerate(record.layers):
        written = [event.value for event in events.Scalars(f"sphere_effective_lr/{layer}")]
        np.testing.assert_array_equal(np.float32(written), record["effective_lr"][:, number])


def test_summary_scalars_leave_out_what_no_normalization_follows(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path)
    quiet_trainer(tmp_path, logger=logger, callbacks=[SphereMonitor(strict=True)]).fit(LitNet(), loader(count=64))
    record = read_run(logger.log_dir)
    assert record.invariant == (True, True, False)
    curve = np.float32([event.value for event in scalars(logger.log_dir).Scalars("sphere/norm")])
    np.testing.assert_allclose(curve, np.median(record["norm"][:, :2], axis=1), rtol=1e-6)


def test_several_loggers_each_get_what_they_can_hold(tmp_path: Path) -> None:
    tensorboard, csv_logger = TensorBoardLogger(tmp_path / "tb"), CSVLogger(tmp_path / "csv")
    quiet_trainer(
        tmp_path, logger=[csv_logger, tensorboard], callbacks=[SphereMonitor(strict=True)], log_every_n_steps=2
    ).fit(LitNet(), loader(count=64))
    csv_logger.save()
    with (Path(csv_logger.log_dir) / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["sphere/norm"]]
    assert [int(row["step"]) for row in rows] == list(range(4))
    curve = [event.value for event in scalars(tensorboard.log_dir).Scalars("sphere/norm")]
    np.testing.assert_allclose([float(row["sphere/norm"]) for row in rows], curve, rtol=1e-6)


class Collector(Logger):
    """The smallest logger that Lightning accepts."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[int | None, dict[str, float]]] = []

    @property
    def name(self) -> str:
        return "collector"

    @property
    def version(self) -> int:
        return 0

    def log_hyperparams(self, *_: Any, **__: Any) -> None: ...

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.seen.append((step, dict(metrics)))


def test_a_logger_of_any_kind_gets_the_curves_and_one_message(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    logger = Collector()
    with caplog.at_level(logging.INFO, "lightning_sphere"):
        quiet_trainer(tmp_path, logger=logger, callbacks=[SphereMonitor(strict=True)]).fit(LitNet(), loader(count=64))
    ours = [(step, metrics) for step, metrics in logger.seen if "sphere/norm" in metrics]
    assert [step for step, _ in ours] == list(range(4))
    assert set(ours[0][1]) >= {"sphere/effective_lr", "sphere_bands/norm/p10"}
    assert sum("Collector gets the summary curves" in message for message in caplog.messages) == 1


def test_without_a_logger_the_summary_still_comes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    with caplog.at_level(logging.INFO, "lightning_sphere"):
        quiet_trainer(tmp_path, callbacks=[SphereMonitor(strict=True)]).fit(LitNet(), loader(count=64))
    assert sum("no logger" in message for message in caplog.messages) == 1
    printed = capsys.readouterr().out
    assert "2 of 3 weights are scale-invariant; 4 steps recorded" in printed
    assert "tensorboard --logdir" not in printed


def test_the_progress_bar_stays_the_users_and_callback_metrics_get_the_epochs_means(tmp_path: Path) -> None:
    trainer = quiet_trainer(tmp_path, callbacks=[SphereMonitor(strict=True)])
    trainer.fit(LitNet(), loader(count=64))
    assert set(trainer.callback_metrics) == {"train_loss"} | EPOCH
    assert not any("sphere" in name for name in trainer.progress_bar_metrics)
