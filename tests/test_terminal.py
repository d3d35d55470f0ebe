"""What stands on a terminal of 80 columns when a fit with Lightning's progress bar has ended."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

pyte = pytest.importorskip("pyte")
pty = pytest.importorskip("pty")

PROGRAM = """
from lit import LitNet, loader, quiet_trainer
from pytorch_lightning.loggers import TensorBoardLogger
from lightning_sphere import SphereMonitor

class Shown(LitNet):
    def validation_step(self, batch, number):
        self.log("validation_loss_of_a_long_name", 1.0, prog_bar=True)  # the bar is three lines high

logger = TensorBoardLogger({folder!r}, name="", version="")
callbacks = [SphereMonitor(strict=True), {bar}()]
trainer = quiet_trainer({folder!r}, logger=logger, callbacks=callbacks, enable_progress_bar=True)
trainer.fit(Shown(), loader(count=320), loader(count=64))
"""


def screen_after(program: str) -> list[str]:
    """Run a Python program on a pseudo-terminal; the lines that a person sees at its end."""
    screen = pyte.HistoryScreen(80, 100)
    stream = pyte.ByteStream(screen)
    child, descriptor = pty.fork()
    if child == 0:
        os.chdir(Path(__file__).parent)
        environment = {**os.environ, "COLUMNS": "80", "LINES": "100", "TERM": "xterm-256color"}
        os.execve(sys.executable, [sys.executable, "-c", program], environment)
    while True:
        try:
            data = os.read(descriptor, 65536)
        except OSError:  # Linux says so when the other end has closed
            break
        if not data:
            break
        stream.feed(data)
    os.close(descriptor)
    _, status = os.waitpid(child, 0)
    lines = [line.rstrip() for line in screen.display]
    assert status == 0, "\n".join(lines)
    return lines


@pytest.mark.parametrize("bar", ["RichProgressBar", "TQDMProgressBar"])
def test_the_whole_summary_is_seen_under_the_progress_bar(tmp_path: Path, bar: str) -> None:
    program = PROGRAM.format(folder=str(tmp_path), bar=bar)
    program = f"from pytorch_lightning.callbacks import {bar}\n{program}"
    lines = screen_after(program)
    text = "\n".join(lines)
    assert "lightning_sphere: 2 of 3 weights are scale-invariant; 20 steps recorded" in text
    for layer in ("net.0", "net.3", "net.9"):
        assert sum(line.startswith(f"{layer} ") for line in lines) == 1, text
    assert "Open the curves:" in text, text
    assert text.rfind("Epoch 0") < text.index("lightning_sphere:") < text.index("Open the curves:"), text
