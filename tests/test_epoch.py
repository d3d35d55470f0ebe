"""The epoch's means in a Trainer's callback metrics, against the run's own table, for one process and for two."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from pytorch_lightning import Callback, LightningModule
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint
from pytorch_lightning.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_sphere import SphereMonitor, read_run
from lightning_sphere.epoch import EpochMetrics
from lightning_sphere.guard import SphereWarning
from lightning_sphere.quantities import STATS
from lightning_sphere.recording import Recording
from lightning_sphere.tensorboard.reader import RunRecord
from lightning_sphere.tensorboard.schema import TableSchema
from lit import LitNet, loader, quiet_trainer

TAGS = {"sphere_epoch/norm", "sphere_epoch/angular_step", "sphere_epoch/effective_lr"}
EIGHT = 16 * 8
"""Images of eight batches."""


class Epochs(Callback):
    """Keeps what is logged of each epoch."""

    def __init__(self) -> None:
        self.seen: list[dict[str, float]] = []

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        metrics = trainer.callback_metrics
        self.seen.append({name: float(value) for name, value in metrics.items() if name.startswith("sphere")})


def expected(parts: list[tuple[RunRecord, slice]]) -> dict[str, float]:
    """From the definition: over invariant layers and these steps, NaN left out."""

    def values(quantity: str, stat: str) -> npt.NDArray[np.float64]:
        found = []
        for record, steps in parts:
            layers = np.array(record.invariant) if any(record.invariant) else np.ones(len(record.layers), bool)
            found.append(record.stat(quantity, stat)[steps][:, layers].astype(np.float64).ravel())
        return np.concatenate(found)

    return {
        "sphere_epoch/norm": float(np.nanmean(values("norm", "median"))),
        "sphere_epoch/effective_lr": float(np.nanmean(values("effective_lr", "median"))),
        "sphere_epoch/angular_step": float(np.sqrt(np.nanmean(values("angular_step", "rms") ** 2))),
    }


def fit(root: Path, module: LightningModule | None = None, ckpt: str | None = None, **arguments: Any) -> Any:
    """Train on eight batches an epoch; returns the trainer, what each epoch logged, and the record."""
    logger, epochs = TensorBoardLogger(root), Epochs()
    callbacks = [SphereMonitor(strict=True, print_summary=False), epochs, *arguments.pop("callbacks", [])]
    trainer = quiet_trainer(root, **{"logger": logger, "callbacks": callbacks, "log_every_n_steps": 3, **arguments})
    trainer.fit(module or LitNet(), loader(EIGHT), loader(EIGHT), ckpt_path=ckpt)
    return trainer, epochs.seen, read_run(logger.log_dir)


def test_each_epochs_means_are_those_of_its_steps(tmp_path: Path) -> None:
    trainer, seen, record = fit(tmp_path, max_epochs=3)
    assert record.invariant == (True, True, False)
    assert len(seen) == 3
    for number, logged in enumerate(seen):
        assert logged == pytest.approx(expected([(record, slice(8 * number, 8 * number + 8))]), rel=1e-6)
    assert seen[0]["sphere_epoch/norm"] != seen[1]["sphere_epoch/norm"]
    events = EventAccumulator(trainer.loggers[0].log_dir).Reload()
    for tag in TAGS:
        assert [event.value for event in events.Scalars(tag)] == pytest.approx([logged[tag] for logged in seen])
        assert [event.step for event in events.Scalars(tag)] == [7, 15, 23]
    assert not any("sphere" in name for name in trainer.progress_bar_metrics)


def test_other_callbacks_can_watch_them(tmp_path: Path) -> None:
    best = ModelCheckpoint(tmp_path, monitor="sphere_epoch/angular_step", mode="max", save_on_train_epoch_end=True)
    stop = EarlyStopping("sphere_epoch/norm", mode="min", patience=1, min_delta=1e9, check_on_train_epoch_end=True)
    trainer, seen, _ = fit(tmp_path, max_epochs=9, callbacks=[best, stop], enable_checkpointing=True)
    assert trainer.current_epoch == len(seen) == 2
    assert float(best.best_model_score) == pytest.approx(max(each["sphere_epoch/angular_step"] for each in seen))


class Pair(LightningModule):
    """Two networks with an optimizer each; the second one steps every other batch."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.first, self.second = LitNet().net, LitNet().net

    def training_step(self, batch: list[Tensor], number: int) -> None:
        networks = [self.first, self.second] if number % 2 == 0 else [self.first]
        for network, optimizer in zip(networks, self.optimizers(), strict=False):
            optimizer.zero_grad()
            self.manual_backward(F.cross_entropy(network(batch[0]), batch[1]))
            optimizer.step()

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        return [torch.optim.SGD(self.first.parameters(), 0.1), torch.optim.AdamW(self.second.parameters(), 1e-3)]


class Free(LightningModule):
    """No normalization anywhere."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.Tanh(), nn.Linear(16, 10))

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


@pytest.mark.parametrize("module", [Pair, Free])
def test_several_optimizers_and_nets_without_normalization(module: Any, tmp_path: Path) -> None:
    _, (logged,), record = fit(tmp_path, module())
    assert logged == pytest.approx(expected([(record, slice(None))]), rel=1e-6)
    assert any(record.invariant) is (module is Pair)


def test_steps_that_are_not_recorded_do_not_count(tmp_path: Path) -> None:
    logger, epochs = TensorBoardLogger(tmp_path), Epochs()
    monitor = SphereMonitor(strict=True, every_n_steps=3)
    quiet_trainer(tmp_path, logger=logger, callbacks=[monitor, epochs], max_epochs=2).fit(LitNet(), loader(EIGHT))
    record = read_run(logger.log_dir)
    assert record.steps.tolist() == [0, 3, 6, 9, 12, 15]
    assert epochs.seen[1] == pytest.approx(expected([(record, slice(3, None))]), rel=1e-6)


@pytest.mark.parametrize(
    "arguments",
    [{"fast_dev_run": 2}, {"log_every_n_steps": 0}, {"max_steps": 5}, {"limit_train_batches": 3}, {"logger": False}],
    ids=lambda arguments: next(iter(arguments)),
)
def test_odd_trainers(tmp_path: Path, arguments: dict[str, Any]) -> None:
    trainer = quiet_trainer(tmp_path, callbacks=[SphereMonitor(strict=True)], **arguments)
    trainer.fit(LitNet(), loader(EIGHT), loader(EIGHT))
    assert set(trainer.callback_metrics) >= TAGS


def test_a_barebones_trainer_logs_nothing_and_does_not_complain(tmp_path: Path, recwarn: Any) -> None:
    trainer = quiet_trainer(tmp_path, callbacks=[SphereMonitor(strict=True)], barebones=True, logger=None,
                            enable_progress_bar=None, enable_checkpointing=None, enable_model_summary=None)  # fmt: skip
    trainer.fit(Free(), loader(EIGHT))
    assert not any("log" in str(each.message) for each in recwarn)


def test_where_nothing_was_recorded_nothing_is_logged(tmp_path: Path) -> None:
    class Idle(Pair):
        def training_step(self, batch: list[Tensor], number: int) -> None:
            if self.current_epoch != 1:
                super().training_step(batch, number)

    class Fresh(Epochs):
        def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
            trainer.callback_metrics.clear()
            trainer._logger_connector._callback_metrics.clear()

    epochs = Fresh()
    quiet_trainer(tmp_path, callbacks=[SphereMonitor(strict=True), epochs], max_epochs=3).fit(Idle(), loader(EIGHT))
    assert [set(logged) for logged in epochs.seen] == [TAGS, set(), TAGS]


def test_a_monitor_serves_several_fits_and_none(tmp_path: Path) -> None:
    monitor = SphereMonitor(strict=True)
    quiet_trainer(tmp_path, callbacks=[monitor]).validate(LitNet(), loader(), verbose=False)
    values = []
    for fits in range(3):
        trainer = quiet_trainer(tmp_path, callbacks=[monitor], max_epochs=1)
        trainer.fit(LitNet(), loader(EIGHT))
        values.append(trainer.callback_metrics["sphere_epoch/angular_step"])
        assert not monitor.state_dict()
        trainer.save_checkpoint(tmp_path / f"{fits}.ckpt")
    assert values[0] == values[1] == values[2]


class Stop(Callback):
    """Ends the fit in the middle of an epoch."""

    def __init__(self, batch: int, epoch: int) -> None:
        self.at = batch, epoch

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, number: int) -> None:
        if (number, trainer.current_epoch) == self.at:
            raise RuntimeError("out of luck")


def test_nothing_of_an_interrupted_epoch_leaks_into_the_next_fit(tmp_path: Path) -> None:
    monitor, stop = SphereMonitor(strict=True), Stop(3, 0)
    with pytest.raises(RuntimeError, match="out of luck"):
        quiet_trainer(tmp_path, callbacks=[monitor, stop]).fit(LitNet(), loader(EIGHT))
    logger, epochs = TensorBoardLogger(tmp_path), Epochs()
    quiet_trainer(tmp_path, logger=logger, callbacks=[monitor, epochs]).fit(LitNet(lr=0.5), loader(EIGHT))
    assert epochs.seen[0] == pytest.approx(expected([(read_run(logger.log_dir), slice(None))]), rel=1e-6)


# ----------------------------------------------------------------- checkpoints


def test_an_epoch_that_is_resumed_in_its_middle_goes_on(tmp_path: Path) -> None:
    saver = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=13, save_top_k=-1)
    with pytest.raises(RuntimeError, match="out of luck"):
        fit(tmp_path / "a", callbacks=[Stop(6, 1), saver], max_epochs=2, enable_checkpointing=True)
    (path,) = tmp_path.glob("step=13*.ckpt")
    state = torch.load(path, weights_only=True)["callbacks"]["SphereMonitor"]
    assert [int(v) for name, v in state["epoch"]["sums"]["norm"].items() if name.endswith("count")] == [5 * 2]
    _, seen, second = fit(tmp_path / "b", LitNet(), str(path), max_epochs=3)
    first = read_run(tmp_path / "a")
    assert second.steps[0] in (12, 13)  # older Lightnings resume the axis of their own metrics one step early
    assert seen[0] == pytest.approx(expected([(first, slice(8, 13)), (second, slice(0, 3))]), rel=1e-6)
    assert seen[1] == pytest.approx(expected([(second, slice(3, 11))]), rel=1e-6)


def test_a_checkpoint_of_the_last_validation_does_not_count_twice(tmp_path: Path) -> None:
    saver = ModelCheckpoint(tmp_path, filename="{epoch}", save_on_train_epoch_end=False, save_top_k=-1)
    fit(tmp_path / "a", callbacks=[saver], max_epochs=1, enable_checkpointing=True)
    (path,) = tmp_path.glob("epoch=0*.ckpt")
    assert torch.load(path, weights_only=True)["callbacks"]["SphereMonitor"]["epoch"]["number"] == 0
    _, seen, second = fit(tmp_path / "b", LitNet(), str(path), max_epochs=2)
    assert second.steps.tolist() == list(range(8, 16))
    assert seen[-1] == pytest.approx(expected([(second, slice(None))]), rel=1e-6)


def test_checkpoints_between_epochs_hold_nothing_of_ours_and_resume(tmp_path: Path) -> None:
    saver = ModelCheckpoint(tmp_path, filename="{epoch}", save_on_train_epoch_end=True)
    fit(tmp_path / "a", callbacks=[saver], max_epochs=1, enable_checkpointing=True)
    state = torch.load(saver.best_model_path, weights_only=True)
    assert "SphereMonitor" not in state["callbacks"]
    _, seen, second = fit(tmp_path / "b", LitNet(), saver.best_model_path, max_epochs=2)
    assert seen[-1] == pytest.approx(expected([(second, slice(None))]), rel=1e-6)


def test_a_state_that_cannot_be_read_is_told_and_left(tmp_path: Path) -> None:
    monitor = SphereMonitor()
    with pytest.warns(SphereWarning, match="miss the steps before"):
        monitor.load_state_dict({"epoch": {"number": 0, "sums": {"norm": {}}}})
    monitor.load_state_dict({})
    with pytest.raises((RuntimeError, KeyError)):
        SphereMonitor(strict=True).load_state_dict({"epoch": {"number": 0, "sums": {"norm": {}}}})


# ------------------------------------------------------------- the parts alone


def recording(table: Any, invariant: tuple[bool, ...], quantities: tuple[str, ...]) -> Recording:
    table = np.asarray(table, dtype=np.float32)
    schema = TableSchema(tuple("abcd"[: len(invariant)]), quantities, STATS, invariant, ((0, 1),) * len(invariant))
    return Recording(schema, np.arange(len(table)), np.zeros(len(table)), table)


def test_quantities_that_are_not_recorded_or_not_known_are_missing() -> None:
    epoch = EpochMetrics()
    table = np.full((2, 2, 2, 4), np.nan)
    table[:, 0, 0, STATS.index("median")] = 2.0, 4.0
    table[:, 1, 0, STATS.index("median")] = 100.0
    epoch.begin(0, measures=True)
    epoch.write(recording(table, (True, False), ("norm", "effective_lr")))
    assert epoch.state_dict()["number"] == 0
    assert {name: float(value) for name, value in epoch.results(torch.device("cpu")).items()} == {
        "sphere_epoch/norm": 3.0
    }
    assert not epoch.results(torch.device("cpu"))
    assert not epoch.state_dict()


@pytest.mark.parametrize(("number", "measures", "kept"), [(4, True, True), (5, True, False), (4, False, False)])
def test_a_checkpoint_counts_in_its_own_epoch_and_where_it_was_measured(
    number: int, measures: bool, kept: bool
) -> None:
    saved, resumed = EpochMetrics(), EpochMetrics()
    saved.begin(4, measures=True)
    saved.write(recording(np.full((2, 1, 1, 4), 3.0), (True,), ("norm",)))
    resumed.load_state_dict(saved.state_dict())
    resumed.begin(number, measures=measures)
    assert bool(resumed.state_dict()) is kept
    assert bool(resumed.results(torch.device("cpu"))) is kept


# --------------------------------------------------------------- two processes

PROGRAM = """
import json, os, sys
sys.path.insert(0, {tests!r})
import torch
torch.set_num_threads(1)
from lightning_sphere.sinks import History
from test_epoch import epochs_of

def broken(*_):
    raise RuntimeError("a fault of the test")

rank, folder = int(os.environ["LOCAL_RANK"]), sys.argv[1]
seen = {{"whole": epochs_of(f"{{folder}}/whole", devices=2, strategy="ddp")}}
seen["resumed"] = epochs_of(f"{{folder}}/resumed", f"{{folder}}/whole/step=5.ckpt", devices=2, strategy="ddp")
if rank == 0:
    History.write = broken
seen["broken"] = epochs_of(f"{{folder}}/broken", devices=2, strategy="ddp")
with open(f"{{folder}}/{{rank}}.json", "w") as file:
    json.dump(seen, file)
torch.distributed.barrier()  # a process that ends while gloo's threads still run may abort
torch.distributed.destroy_process_group()
"""


def epochs_of(root: str | Path, ckpt: str | Path | None = None, **arguments: Any) -> list[dict[str, float]]:
    """What this process sees logged; a checkpoint is written at step 5. All processes get the same batches."""
    epochs, saver = Epochs(), ModelCheckpoint(root, filename="{step}", every_n_train_steps=5, save_top_k=-1)
    callbacks = [SphereMonitor(print_summary=False), epochs, saver]
    arguments = {"max_epochs": 2, "enable_checkpointing": True, "use_distributed_sampler": False, **arguments}
    quiet_trainer(Path(root), callbacks=callbacks, **arguments).fit(LitNet(), loader(EIGHT), ckpt_path=ckpt)
    return epochs.seen


def test_two_processes_log_the_same_as_one_and_a_failure_of_the_first_makes_none_wait(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM.format(tests=str(Path(__file__).parent)))
    with socket.socket() as found:
        found.bind(("localhost", 0))
        port = str(found.getsockname()[1])
    environment = {**os.environ, "MASTER_ADDR": "localhost", "MASTER_PORT": port, "WORLD_SIZE": "2", "NODE_RANK": "0"}
    command = [sys.executable, str(program), str(tmp_path)]
    processes = [
        subprocess.Popen(command, env={**environment, "LOCAL_RANK": rank}, stderr=subprocess.PIPE, text=True)
        for rank in "01"
    ]
    try:
        for process in processes:
            _, errors = process.communicate(timeout=150)
            assert process.returncode == 0, errors
            assert "sync_dist" not in errors
    finally:
        for process in processes:
            process.kill()
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in "01")
    assert first == second
    assert [set(logged) for logged in first["whole"]] == [TAGS, TAGS]
    alone = epochs_of(tmp_path / "alone")
    resumed = epochs_of(tmp_path / "resumed alone", tmp_path / "whole" / "step=5.ckpt")
    for logged, reference in zip(first["whole"] + first["resumed"], alone + resumed, strict=True):
        assert logged == pytest.approx(reference, rel=1e-6)
    assert first["broken"] == [{}, {}]
