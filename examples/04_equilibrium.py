"""Watch the layers of a network reach rotational equilibrium, with AdamW and with SGD, each at a constant rate.

    python examples/04_equilibrium.py        # writes equilibrium.html; and .png, where kaleido and a browser are there

A minute on two CPU cores. Weight decay shortens normalized weights and gradients lengthen them, until both cancel.
From then on a layer turns by an angle per step that lr, decay and momentum alone determine, the same for all layers
(Kosson et al., *Rotational Equilibrium*, arXiv 2305.17212). The dashed lines are predicted, nothing in them is fitted.
"""

from __future__ import annotations

import argparse
import runpy
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import plotly.graph_objects as go
import torch
from plotly.colors import sample_colorscale
from plotly.subplots import make_subplots
from torch.nn import functional as F

from lightning_sphere import RunRecord, SphereTracker, read_run

Curves: TypeAlias = npt.NDArray[np.float64]

FIRST = runpy.run_path(str(Path(__file__).with_name("01_digits_resnet.py")))
"""The first example: the network and its images."""

DECAY = {"AdamW": 0.7, "SGD": 2e-3}
"""More than usual, so that the equilibrium comes soon: with a tenth of it, it takes ten times as long."""

SMOOTHED = 200
"""Steps over which drawn angles are averaged: single gradients come in bursts."""


def train(name: str, steps: int, log_dir: Path) -> dict[str, float]:
    """Train in a plain loop; return the norm that is predicted for each layer at the end."""
    torch.manual_seed(0)
    model = FIRST["DigitsResNet"]()
    images, labels = FIRST["digits"]()[0].tensors
    optimizer: torch.optim.Optimizer
    if name == "AdamW":
        optimizer = torch.optim.AdamW(model.parameters(), 3e-3, weight_decay=DECAY[name])
    else:
        optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=DECAY[name])
    with SphereTracker(model, optimizer, log_dir=log_dir) as tracker:
        for _ in range(steps):
            batch = torch.randint(len(images), (64,))
            logits = model(FIRST["shifted"](images[batch]))
            optimizer.zero_grad()
            loss = F.cross_entropy(logits, labels[batch], label_smoothing=0.1)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    print(f"\n{name}, weight decay {DECAY[name]}")
    for layer, state in tracker.equilibrium.items():
        print(f"  {layer:18} {state.describe()}")
    return {layer: state.predicted_norm for layer, state in tracker.equilibrium.items()}


def mean_square_root(record: RunRecord, quantity: str) -> Curves:
    """Root mean square over each layer's groups and the last steps, ``[steps, layers]``."""
    square = record.values[..., record.quantities.index(quantity), record.stats.index("rms")].astype(float) ** 2
    count = min(SMOOTHED, len(square))
    kernel = np.ones(count) / count
    smooth: Curves = np.sqrt(np.apply_along_axis(np.convolve, 0, square, kernel, "valid"))
    return smooth


def draw(runs: dict[str, tuple[RunRecord, dict[str, float]]]) -> go.Figure:
    """A column for each optimizer: angles above, norms below; a color for each layer."""
    figure = make_subplots(2, len(runs), shared_xaxes=True, column_titles=list(runs), vertical_spacing=0.06)
    for column, (record, norms) in enumerate(runs.values(), start=1):
        angle, ratio = mean_square_root(record, "angular_step"), mean_square_root(record, "equilibrium_ratio")
        norm = record["norm"]
        colors = dict(zip(norms, sample_colorscale("Viridis", np.linspace(0, 0.9, len(norms)).tolist()), strict=True))
        for layer, color in colors.items():
            index = record.layers.index(layer)
            line = {"color": color, "width": 1.5}
            shared = {"name": layer, "legendgroup": layer}
            predicted = angle[:, index] / ratio[:, index]
            later, relative = record.steps[-len(angle) :], norm[:, index] / norms[layer]
            figure.add_scatter(
                x=later, y=np.degrees(angle[:, index]), line=line, showlegend=column == 1, **shared, row=1, col=column
            )
            figure.add_scatter(x=record.steps, y=relative, line=line, showlegend=False, **shared, row=2, col=column)
        dashed = {"color": "black", "dash": "dash", "width": 2}
        figure.add_scatter(
            x=later, y=np.degrees(predicted), line=dashed, name="predicted", showlegend=column == 1, row=1, col=column
        )
        figure.add_hline(1.0, line=dashed, row=2, col=column)
    figure.update_yaxes(type="log", tickvals=[0.1, 0.2, 0.5, 1, 2, 5])
    figure.update_yaxes(title_text="angle per step (degrees)", row=1, col=1)
    figure.update_yaxes(title_text="norm / predicted norm", row=2, col=1)
    figure.update_xaxes(title_text="optimizer steps", row=2)
    return figure.update_layout(template="simple_white", width=1100, height=750, legend_title_text="layer")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder for TensorBoard's event files")
    parser.add_argument("--out", type=Path, default=Path("equilibrium.html"), help="the drawing")
    arguments = parser.parse_args()

    runs = {}
    for name in DECAY:
        log_dir = arguments.runs / f"equilibrium_{name.lower()}"
        norms = train(name, arguments.steps, log_dir)
        runs[name] = read_run(log_dir), norms
    figure = draw(runs)
    figure.write_html(arguments.out, include_plotlyjs=True)
    print(f"\ndrawn: {arguments.out}")
    try:
        figure.write_image(arguments.out.with_suffix(".png"), scale=2)
    except (ValueError, RuntimeError) as error:
        print(f"no picture beside it: {' '.join(str(error).split())}")


if __name__ == "__main__":
    main()
