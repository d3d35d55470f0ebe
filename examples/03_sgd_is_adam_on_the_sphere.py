"""SGD on normalized weights is an adaptive method on the sphere, as Adam is one: see it on real digits.

    python examples/03_sgd_is_adam_on_the_sphere.py   # writes sgd_is_adam.html; and .png, where kaleido and Chrome are

Half a minute on two CPU cores. Roburin et al. (arXiv 2006.13382) show it for SGD with weight decay and no momentum: the
norm to the fourth plays Adam's second moment, v = r^4 / (2 lr^2 (1 - lr decay)^2). It follows from the gradients alone:

    v <- (1 - lr decay)^4 v + |grad L(u)|^2

Left, a run of SGD: v as the measured norms give it, as the gradients give it, and the ratio of both. Right, AdamG*,
which keeps its own v and looks at no norm, beside SGD on the same batches: the angle between both. Over the same
distance (at half the rate, each batch is used twice) it falls eightfold when the rate is halved: what AdamG* neglects
is of third order. To see that, the loss must be smooth and exactly invariant: GELU in place of ReLU, whose kinks make
gradients jump, and no eps in BatchNorm. The gray curve has ReLU and eps.
"""

from __future__ import annotations

import argparse
import runpy
from itertools import pairwise
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import plotly.graph_objects as go
import torch
from plotly.colors import sample_colorscale
from plotly.subplots import make_subplots
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD, Optimizer

from lightning_sphere import RunRecord, SphereTracker, discover, read_run
from lightning_sphere.functional import angular_step
from lightning_sphere.optim import AdamGStar

Batch: TypeAlias = tuple[Tensor, Tensor]
Curves: TypeAlias = npt.NDArray[np.float64]

FIRST = runpy.run_path(str(Path(__file__).with_name("01_digits_resnet.py")))
"""The first example: the network and its images."""
IMAGES, LABELS = FIRST["digits"]()[0].tensors

RATE, DECAY = 0.5, 3e-3
"""Of the run on the left; the same decay on the right."""
RATES = (0.05, 0.025, 0.0125)
"""On the right."""


def draw_batch() -> Batch:
    chosen = torch.randint(len(IMAGES), (64,))
    return FIRST["shifted"](IMAGES[chosen]), LABELS[chosen]


def loss_of(model: nn.Module, batch: Batch) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1], label_smoothing=0.1)


def take_step(model: nn.Module, optimizer: Optimizer, batch: Batch) -> None:
    optimizer.zero_grad()
    loss_of(model, batch).backward()  # type: ignore[no-untyped-call]
    optimizer.step()


def train(steps: int, log_dir: Path) -> RunRecord:
    """Train with SGD and record it."""
    torch.manual_seed(0)
    model = FIRST["DigitsResNet"]()
    optimizer = SGD(model.parameters(), RATE, weight_decay=DECAY)
    with SphereTracker(model, optimizer, log_dir=log_dir):
        for _ in range(steps):
            take_step(model, optimizer, draw_batch())
    return read_run(log_dir)


def make_ideal(module: nn.Module) -> None:
    """Take out of one module what hides the order: kinks and eps."""
    for name, child in module.named_children():
        if isinstance(child, nn.ReLU):
            setattr(module, name, nn.GELU())
    if isinstance(module, nn.BatchNorm2d):
        module.eps = 1e-30


def follow(lr: float, ideal: bool, batches: list[Batch]) -> Curves:
    """Train with SGD and with AdamG*, in float64, on each batch so often that every rate covers the same distance.

    Returns:
        In radians, after each batch: the angle between both, and that between SGD and the start; ``[batches, 2]``,
        root mean squares over all filters.
    """
    batches = [(images.double(), labels) for images, labels in batches]
    models = []
    for _ in range(2):
        torch.manual_seed(0)
        models.append(FIRST["DigitsResNet"]().double())
        if ideal:
            models[-1].apply(make_ideal)
    groups = discover(loss_of(models[0], batches[0]), models[0])
    optimizers = (
        SGD(models[0].parameters(), lr, weight_decay=DECAY),
        AdamGStar(models[1].named_parameters(), lr, DECAY, groups=groups),
    )
    filters = [[p for p in model.parameters() if p.dim() == 4] for model in models]
    start = [p.detach().clone() for p in filters[0]]
    angles = []
    for batch in batches:
        for _ in range(round(RATES[0] / lr)):
            for model, optimizer in zip(models, optimizers, strict=True):
                take_step(model, optimizer, batch)
        for others in (filters[1], start):
            turned = torch.cat([angular_step(a.detach(), b.detach()) for a, b in zip(others, filters[0], strict=True)])
            angles.append(float(turned.square().mean().sqrt()))
    return np.array(angles).reshape(-1, 2)


def second_moments(record: RunRecord) -> tuple[Curves, Curves]:
    """``v`` as the norm after each step says, and its ratio to that from the gradients; ``[steps - 1, layers]``."""
    layers = np.flatnonzero(record.invariant)
    norm = record["norm"][1:, layers].astype(float)
    return norm**4 / (2 * (RATE * (1 - RATE * DECAY)) ** 2), record["adam_equivalence"][:-1, layers].astype(float)


def draw(record: RunRecord, ideal: dict[float, Curves], usual: Curves) -> go.Figure:
    """Left the second moments and their ratio, a color for each layer; right the angles, a color for each rate."""
    above, beside = "Second moment <i>v</i> of SGD, each layer", "Angle between SGD and AdamG*"
    places = {"specs": [[{}, {"rowspan": 2}], [{}, None]], "subplot_titles": [above, beside, "measured / gradients"]}
    spaces = {"row_heights": [0.7, 0.3], "vertical_spacing": 0.15, "horizontal_spacing": 0.13}
    figure = make_subplots(2, 2, **places, **spaces)
    measured, ratio = second_moments(record)
    colors = sample_colorscale("Viridis", np.linspace(0.1, 0.9, measured.shape[1]).tolist())
    for row, curves, name, width, dash in (
        (1, measured, "from the measured norm", 5, "solid"),
        (1, measured / ratio, "from the gradients alone", 2, "dot"),
        (2, ratio, "", 2, "solid"),
    ):
        for index, color in enumerate(colors):
            line = {"color": "black" if dash == "dot" else color, "width": width, "dash": dash}
            legend = {"name": name, "showlegend": bool(name) and index == 0}
            figure.add_scatter(x=record.steps[1:], y=curves[:, index], line=line, **legend, row=row, col=1)
    colors = sample_colorscale("Oranges", np.linspace(1.0, 0.5, len(RATES)).tolist())
    angles = [(f"lr {lr:g}", ideal[lr][:, 0], color, "solid") for lr, color in zip(RATES, colors, strict=True)]
    angles += [("both, from where they started", ideal[RATES[0]][:, 1], "black", "dot")]
    angles += [(f"lr {RATES[-1]:g}, with ReLU and eps", usual[:, 0], "gray", "solid")]
    for name, angle, color, dash in angles:
        line, x = {"color": color, "width": 3, "dash": dash}, np.arange(1, len(angle) + 1)
        figure.add_scatter(x=x, y=angle, line=line, showlegend=False, row=1, col=2)
        place = {"x": x[-1], "y": np.log10(angle[-1]), "xanchor": "right", "yanchor": "bottom"}
        figure.add_annotation(text=name, font_color=color, showarrow=False, **place, row=1, col=2)
    figure.update_yaxes(type="log", exponentformat="power", dtick=1)
    figure.update_yaxes(title_text="<i>v</i>", row=1, col=1)
    figure.update_yaxes(title_text="ratio", type="linear", dtick=None, row=2, col=1)
    figure.update_yaxes(title_text="angle (rad)", range=[-11, 0], row=1, col=2)
    figure.update_xaxes(title_text="optimizer steps", row=2, col=1)
    figure.update_xaxes(title_text=f"distance (steps at lr {RATES[0]})", row=1, col=2)
    legend = {"x": 0.01, "y": 0.44, "yanchor": "bottom", "bgcolor": "rgba(0,0,0,0)"}
    layout = {"width": 1100, "height": 650, "margin": {"t": 50, "r": 20, "b": 70}, "legend": legend, "font_size": 16}
    return figure.update_layout(template="simple_white", **layout)


def tell(record: RunRecord, ideal: dict[float, Curves], usual: Curves) -> str:
    """The figures found."""
    off = np.abs(second_moments(record)[1] - 1).max()
    angles = [ideal[lr][-1, 0] for lr in RATES]
    less = ["", *(f", {big / small:.1f} times less (theory: 8)" for big, small in pairwise(angles))]
    rows = [f"  lr {lr:<8g}{angle:.1e} rad{text}\n" for lr, angle, text in zip(RATES, angles, less, strict=True)]
    return f"""\
SGD, {len(record.steps)} steps: v from the norms and v from the gradients differ by at most {off:.2%}.
Angle between SGD and AdamG*, after both turned by {ideal[RATES[0]][-1, 1]:.2g} rad:
{"".join(rows)}  lr {RATES[-1]:<8g}{usual[-1, 0]:.1e} rad with ReLU and BatchNorm's eps, which hide the order"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1000, help="of the run on the left; at most 30 on the right")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder for TensorBoard's event files")
    parser.add_argument("--out", type=Path, default=Path("sgd_is_adam.html"), help="the drawing")
    arguments = parser.parse_args()
    if arguments.steps < 2:
        parser.error(f"--steps takes at least 2, got {arguments.steps}")

    record = train(arguments.steps, arguments.runs / "sgd_is_adam")
    torch.manual_seed(5)
    batches = [draw_batch() for _ in range(min(30, arguments.steps))]
    ideal = {lr: follow(lr, True, batches) for lr in RATES}
    usual = follow(RATES[-1], False, batches)
    print(tell(record, ideal, usual))
    figure = draw(record, ideal, usual)
    figure.write_html(arguments.out, include_plotlyjs=True)
    print(f"drawn: {arguments.out}")
    try:
        figure.write_image(arguments.out.with_suffix(".png"))
    except Exception as error:  # of many kinds, where kaleido or the browser is missing
        print(f"no picture beside it: {' '.join(str(error).split())}")


if __name__ == "__main__":
    main()
