"""Nothing that was recorded is lost, whatever way a run ends."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import Callback
from pytorch_lightning.loggers import TensorBoardLogger
from torch.nn.functional import cross_entropy

from lightning_sphere import SphereMonitor, SphereTracker, read_run
from lightning_sphere.recording import Recording
from lit import LitNet, loader, quiet_trainer
from nets import batches, conv_net


class StopAt(Callback):
    """Raises after a number of batches."""

    def __init__(self, batch: int, error: BaseException) -> None:
        self.batch, self.error = batch, error

    def on_train_batch_end(self, *arguments: Any) -> None:
        if arguments[-1] == self.batch:
            raise self.error


@pytest.mark.parametrize("error", [RuntimeError("out of luck"), KeyboardInterrupt()])
def test_an_exception_in_the_fit_flushes_first(tmp_path: Path, error: BaseException) -> None:
    logger = TensorBoardLogger(tmp_path)
    trainer = quiet_trainer(tmp_path, logger=logger, callbacks=[StopAt(6, error), SphereMonitor(strict=True)])
    with pytest.raises((RuntimeError, SystemExit)):
        trainer.fit(LitNet(), loader(count=16 * 10))
    assert read_run(logger.log_dir).steps.tolist() == list(range(7))


def test_validation_sees_all_steps_before_it(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path)
    seen: list[list[int]] = []

    class Look(Callback):
        def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
            if not trainer.sanity_checking:
                logger.experiment.flush()
                seen.append(read_run(logger.log_dir).steps.tolist())

    trainer = quiet_trainer(
        tmp_path, logger=logger, callbacks=[SphereMonitor(strict=True), Look()], val_check_interval=4
    )
    trainer.fit(LitNet(), loader(count=16 * 10), loader(count=16))
    assert seen == [list(range(4)), list(range(8))]


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("budget_mb", [1e-6, 0.01])
def test_a_small_budget_flushes_earlier_and_loses_nothing(tmp_path: Path, budget_mb: float) -> None:
    logger = TensorBoardLogger(tmp_path)
    monitor = SphereMonitor(strict=True, device_budget_mb=budget_mb)
    quiet_trainer(tmp_path, logger=logger, callbacks=[monitor]).fit(LitNet(), loader(count=16 * 9))
    assert read_run(logger.log_dir).steps.tolist() == list(range(9))


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize(("rows", "flushes"), [(1, 40), (12, 10), (28, 2), (1000, 1)])
def test_the_budget_bounds_the_memory_and_so_the_steps_per_flush(rows: int, flushes: int) -> None:
    """Of ``rows`` that fit, eight are kept free for other optimizers' steps at the same position."""
    net = conv_net()
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    sizes: list[int] = []

    class Count:
        def write(self, recording: Recording) -> None:
            sizes.append(len(recording))

        def close(self) -> None: ...

    bytes_per_row = 5 * (8 + 11 + 10) * 8  # sums x filters x float64
    budget = 2 * (rows + 0.5) * bytes_per_row / 2**20  # one buffer is written while the other is evaluated
    with SphereTracker(net, optimizer, sinks=[Count()], device_budget_mb=budget, strict=True) as tracker:
        for images, classes in batches(40):
            optimizer.zero_grad()
            cross_entropy(net(images), classes).backward()
            optimizer.step()
            meter = tracker._taps[0]._meter
            assert meter is not None
            assert 2 * meter.ring.data.nbytes <= budget * 2**20
    assert sum(sizes) == 40
    assert len(sizes) == flushes


def test_a_plain_loop_that_fails_keeps_its_steps(tmp_path: Path) -> None:
    net = conv_net()
    optimizer = torch.optim.SGD(net.parameters(), 0.1)

    def train() -> None:
        with SphereTracker(net, optimizer, tmp_path, strict=True):
            for number, (images, classes) in enumerate(batches(10)):
                optimizer.zero_grad()
                cross_entropy(net(images), classes).backward()
                optimizer.step()
                if number == 4:
                    raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        train()
    assert read_run(tmp_path).steps.tolist() == list(range(5))


PLAIN = """
    import torch
    from nets import batches, conv_net
    from torch.nn.functional import cross_entropy
    from lightning_sphere import SphereTracker

    net = conv_net()
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    with SphereTracker(net, optimizer, folder, strict=True):
        for number, (images, classes) in enumerate(batches(100_000)):
            optimizer.zero_grad()
            cross_entropy(net(images), classes).backward()
            optimizer.step()
            if number == 20:
                print("ready", flush=True)
"""

LIGHTNING = """
    from lit import LitNet, loader, quiet_trainer
    from pytorch_lightning import Callback
    from pytorch_lightning.loggers import TensorBoardLogger
    from lightning_sphere import SphereMonitor

    class Ready(Callback):
        def on_train_batch_end(self, trainer, pl_module, *_):
            if trainer.global_step == 20:
                print("ready", flush=True)

    logger = TensorBoardLogger(folder, name="", version="")
    trainer = quiet_trainer(folder, logger=logger, callbacks=[SphereMonitor(strict=True), Ready()], max_epochs=10_000,
                            log_every_n_steps=1000)
    trainer.fit(LitNet(), loader())
"""


@pytest.mark.skipif(sys.platform == "win32", reason="SIGTERM cannot be handled on Windows")
@pytest.mark.parametrize(
    ("program", "code"),
    [(PLAIN, 143), (LIGHTNING, 0)],  # Lightning ends the program by itself, as if all were well
    ids=["plain loop", "Trainer"],
)
def test_sigterm_flushes(tmp_path: Path, program: str, code: int) -> None:
    source = f"folder = {str(tmp_path)!r}\n{textwrap.dedent(program)}"
    tests = Path(__file__).parent
    process = subprocess.Popen(
        [sys.executable, "-c", source], cwd=tests, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if line.strip() == "ready":
                break
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == code, errors
    steps = read_run(tmp_path).steps.tolist()
    assert len(steps) >= 20
    assert steps == list(range(len(steps)))
