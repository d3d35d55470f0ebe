"""The shapes and dtypes that annotations promise hold at run time, for a real run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PROGRAM = """
from jaxtyping import install_import_hook
with install_import_hook(["lightning_sphere.geometry", "lightning_sphere.statistics"], "beartype.beartype"):
    import lightning_sphere.geometry, lightning_sphere.statistics
import torch
from nets import batches, conv_net
from torch.nn.functional import cross_entropy
from lightning_sphere import SphereTracker

net = conv_net()
optimizer = torch.optim.AdamW(net.parameters(), 1e-2)
with SphereTracker(net, optimizer, strict=True) as tracker:
    for images, classes in batches(3):
        optimizer.zero_grad()
        cross_entropy(net(images), classes).backward()
        optimizer.step()
assert tracker.summary().steps == 3
try:
    lightning_sphere.statistics.rms(torch.ones(3, dtype=torch.int64))
except Exception as error:
    print("caught", type(error).__name__)
"""


def test_annotated_shapes_hold() -> None:
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=Path(__file__).parent, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert "caught" in result.stdout  # the check is on
