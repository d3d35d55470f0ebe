"""The examples run as a user runs them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from lightning_sphere import read_run

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_digits(tmp_path: Path, optimizer: str) -> None:
    command = [sys.executable, str(EXAMPLES / "01_digits_resnet.py"), "--epochs", "2", "--optimizer", optimizer]
    result = subprocess.run([*command, "--runs", str(tmp_path)], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "9 of 10 weights are scale-invariant; 44 steps recorded" in result.stdout
    assert "Open the curves:" in result.stdout
    assert "validation accuracy:" in result.stdout
    assert read_run(tmp_path).values.shape[:2] == (44, 10)


@pytest.mark.slow
def test_digits_reach_the_accuracy_that_is_promised(tmp_path: Path) -> None:
    command = [sys.executable, str(EXAMPLES / "01_digits_resnet.py"), "--runs", str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    accuracy = float(result.stdout.partition("validation accuracy:")[2].strip().rstrip("%"))
    assert accuracy > 95
