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

FADE = 0.99
"""Of a step's weight per later step, in drawn angles: about a hundred are averaged, for gradients come in bursts."""


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
    """Root mean square over each layer's groups and, fading, the steps so far; ``[steps, layers]``."""
    total, weight, means = np.zeros(len(record.layers)), 0.0, []
    for square in record.stat(quantity, "rms").astype(float) ** 2:
        total, weight = FADE * total + square, FADE * weight + 1.0
        means.append(total / weight)
    curves: Curves = np.sqrt(np.stack(means))
    return curves


def draw(runs: dict[str, tuple[RunRecord, dict[str, float]]]) -> go.Figure:
    """A column for each optimizer: angles above, norms below; a color for each layer."""
    titles = [f"<b>{name}</b>: angle per step" for name in runs] + [f"<b>{name}</b>: norm" for name in runs]
    figure = make_subplots(2, len(runs), shared_xaxes=True, subplot_titles=titles, vertical_spacing=0.1)
    for column, (record, norms) in enumerate(runs.values(), start=1):
        angle, ratio = mean_square_root(record, "angular_step"), mean_square_root(record, "equilibrium_ratio")
        colors = sample_colorscale("Viridis", np.linspace(0, 0.9, len(norms)).tolist())
        for (layer, predicted_norm), color in zip(norms.items(), colors, strict=True):
            index = record.layers.index(layer)
            curve = {"x": record.steps, "line": {"color": color, "width": 2}, "name": layer, "legendgroup": layer}
            figure.add_scatter(y=np.degrees(angle[:, index]), showlegend=column == 1, **curve, row=1, col=column)
            norm = record["norm"][:, index] / predicted_norm
            figure.add_scatter(y=norm, showlegend=False, **curve, row=2, col=column)
        predicted = np.degrees(angle[:, index] / ratio[:, index])  # the same for all layers
        dashed = {"x": record.steps, "line": {"color": "black", "dash": "dash", "width": 3}, "name": "<b>predicted</b>"}
        figure.add_scatter(y=predicted, showlegend=column == 1, **dashed, row=1, col=column)
        figure.add_scatter(y=np.ones(len(norm)), showlegend=False, **dashed, row=2, col=column)
    ticks = [0.1, 0.2, 0.5, 1, 2, 5]
    figure.update_yaxes(type="log", tickvals=ticks, ticktext=[f"{tick:g}" for tick in ticks])
    figure.update_yaxes(title_text="degrees", row=1, col=1)
    figure.update_yaxes(title_text="measured / predicted", row=2, col=1)
    figure.update_xaxes(title_text="optimizer steps", row=2)
    margin = {"t": 50, "l": 80, "r": 20, "b": 70}
    return figure.update_layout(template="simple_white", width=1100, height=700, font_size=16, margin=margin)


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
        figure.write_image(arguments.out.with_suffix(".png"))
    except Exception as error:  # of many kinds, where kaleido or the browser is missing
        print(f"no picture beside it: {' '.join(str(error).split())}")


if __name__ == "__main__":
    main()
