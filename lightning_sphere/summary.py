"""The table at the end of a run."""

from __future__ import annotations

import math
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import numpy as np
from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from lightning_sphere.groups import ScaleGroup
from lightning_sphere.settling import LayerEquilibrium, told_of_all
from lightning_sphere.sinks import History
from lightning_sphere.verdict import Verdict

RESIDUAL_OK = 1e-3
"""Residuals up to here are taken as rounding; see theory in :mod:`lightning_sphere.geometry`."""

NARROWEST_NAME = 12
"""Columns that a layer's name keeps, however narrow the terminal."""

UNKNOWN = "-"
"""Shown where a number is not known."""

NUMBER_COLUMNS = 49
"""Width of all columns but name and shape, separators included."""

SHOWN = ("norm", "angular_step", "effective_lr", "invariance_residual")
"""The quantities that the table shows."""

NAMED = 5
"""So many layers of one verdict are named below the table."""

REMARKS = {
    "contradicted": "its gradients say that it is not invariant, against the claim",
    "eps dominates": "invariant but for the norm's eps, not small against the variance",
    "not yet seen": "no gradient tells yet whether it is invariant",
}
"""The verdicts that are told, and what they mean; every other invariant layer is verified."""


@dataclass(frozen=True)
class LayerSummary:
    """The state of one layer over the last recorded steps (medians over steps of medians over groups)."""

    layer: str
    shape: tuple[int, ...]
    kind: str
    norm: float
    angular_step: float
    """rad"""
    effective_lr: float
    norm_change: float
    """Relative change of the norm since the first recorded step: 0.1 is ten percent more."""
    residual: float
    reason: str = ""
    """Why it is invariant, or not."""
    tensors: int = 1
    """How many tensors make it."""
    verdict: Verdict | None = None
    """What the gradients say of its invariance; ``None`` where none is claimed."""
    equilibrium: LayerEquilibrium | None = None
    """How far it is from rotational equilibrium; ``None`` where it is not invariant."""


@dataclass(frozen=True)
class RunSummary:
    """All layers, in the model's order."""

    layers: tuple[LayerSummary, ...]
    steps: int
    """Recorded steps in all."""
    window: int
    """How many of the last steps the numbers are medians of."""
    failed: bool = False
    """Whether the tool switched itself off."""

    def __rich__(self) -> RenderableType:
        """The table, for 80 columns and more."""
        return self.render(80)

    def render(self, width: int) -> RenderableType:
        """The table and its legend.

        Args:
            width: columns of the terminal.
        """
        if not self.layers:
            why = (
                "it switched itself off, see the warning above"
                if self.failed
                else "no optimizer step, or no selected weight"
            )
            return Text(f"lightning_sphere measured nothing: {why}.")
        table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=0)
        for heading in ("layer", "shape", "kind"):
            table.add_column(heading, no_wrap=True)
        for heading in ("norm", "norm\nchange", "step\n(deg)", "effective\nlr", "residual"):
            table.add_column(heading, justify="right", no_wrap=True)
        shapes = max(len(_shape(row)) for row in self.layers)
        room = max(NARROWEST_NAME, width - NUMBER_COLUMNS - shapes)
        for row in self.layers:
            dim = "dim" if row.kind == "none" else ""
            table.add_row(
                _shorten(_name(row), room),
                _shape(row),
                row.kind,
                _number(row.norm),
                _percent(row.norm_change),
                _number(math.degrees(row.angular_step)),
                _number(row.effective_lr),
                _residual(row),
                style=dim,
            )
        head, legend = Text(self._title(), style="bold"), Text(self._legend(), style="dim")
        return Group(head, *self._hint(), "", table, "", *self._verdicts(width), *self._equilibrium(), legend)

    def print(self, log_dir: str | PathLike[str] | None = None, console: Console | None = None) -> None:
        """Print the table and, where events were written, the command that opens them.

        Args:
            log_dir: folder of the run's events.
            console: where to print; the terminal by default.
        """
        console = console or Console()
        console.print(self.render(console.width))
        if log_dir is not None and self.layers:
            console.print(Text.assemble("\nOpen the curves:  ", (tensorboard_command(log_dir), "bold")), soft_wrap=True)

    def _title(self) -> str:
        weights = [row for row in self.layers if row.kind != "joint"]
        refuted = [row for row in weights if row.verdict is not None and row.verdict.outcome == "contradicted"]
        invariant = sum(row.kind != "none" for row in weights) - len(refuted)
        joint = len(self.layers) - len(weights)
        sets = f", and {joint} joint set{'s' * (joint > 1)}" if joint else ""
        return (
            f"lightning_sphere: {invariant} of {len(weights)} weight{'s' * (len(weights) != 1 or invariant == 0)} "
            f"{'is' if invariant == 1 else 'are'} scale-invariant{sets}; "
            f"{self.steps} step{'s' if self.steps != 1 else ''} recorded"
        )

    def _hint(self) -> list[Text]:
        """Where nothing is invariant: why, of one layer."""
        if any(row.kind != "none" for row in self.layers):
            return []
        example = next((row for row in self.layers if row.reason), None)
        text = "Their norm and step are what they say; their effective lr and residual have no meaning."
        if example is not None:
            text += f" For example, {example.layer}: {example.reason}. discover(loss, model).table() tells the others."
        return [Text(text)]

    def _verdicts(self, width: int) -> Iterator[Text]:
        """The layers that are not verified, and what that means."""
        for outcome, meaning in REMARKS.items():
            rows = [(row.layer, row.verdict) for row in self.layers if row.verdict and row.verdict.outcome == outcome]
            if not rows:
                continue
            yield Text(f"{outcome}: {meaning}", style="yellow")
            for layer, verdict in rows[:NAMED]:
                told = ""
                if verdict.seen:
                    told = f": {verdict.concerned} of {verdict.seen} groups" if verdict.groups > 1 else ":"
                    told += f"{',' * (verdict.groups > 1)} residual up to {verdict.worst:.0e}"
                yield Text(f"  {_shorten(layer, max(NARROWEST_NAME, width - len(told) - 2))}{told}", style="yellow")
            if len(rows) > NAMED:
                yield Text(f"  and {len(rows) - NAMED} more", style="yellow")
            yield Text("")

    def _equilibrium(self) -> Iterator[Text]:
        """How far all layers are from equilibrium, in a few words."""
        told = told_of_all([row.equilibrium for row in self.layers if row.equilibrium is not None])
        if told:
            yield Text(told)
            yield Text("")

    def _legend(self) -> str:
        joint = any(row.kind == "joint" for row in self.layers)
        return (
            f"Medians over each layer's rows and the last "
            f"{f'{self.window} recorded steps' if self.window > 1 else 'recorded step'}.\n"
            "kind: what is invariant by itself: each row (filter), each group of rows, or\n"
            "the whole weight; none: nothing of it by itself (shown per row, embeddings\n"
            "as a whole). norm change: since start. step: rotation by one optimizer step.\n"
            + "joint: tensors that are invariant only all together, measured as one.\n" * joint
            + "residual: |cos(gradient, weight)|, near 0 confirms the invariance."
        )


def summarize(
    history: History,
    layers: Sequence[ScaleGroup],
    verdicts: Mapping[str, Verdict] | None = None,
    equilibrium: Mapping[str, LayerEquilibrium] | None = None,
) -> RunSummary:
    """Reduce the last recorded steps to one row per layer.

    Args:
        history: what was recorded.
        layers: what is known of the layers, for shapes and kinds.
        verdicts: what the gradients say of them, by name of the layer.
        equilibrium: how far they are from equilibrium, by name.
    """
    recent, schema = history.recent(), history.schema
    if schema is None or not len(recent):
        return RunSummary((), history.steps, 0)
    known = {layer.name: layer for layer in layers}
    rows = []
    for index, name in enumerate(schema.layers):
        known_now = {quantity: _median(recent[:, index, q]) for q, quantity in enumerate(schema.quantities)}
        last = {name: known_now.get(name, math.nan) for name in SHOWN}
        first = history.first_norm.get(name, math.nan)
        rows.append(
            LayerSummary(
                layer=name,
                shape=known[name].shape if name in known else (),
                kind=_kind(known[name]) if schema.invariant[index] and name in known else "none",
                norm=last["norm"],
                angular_step=last["angular_step"],
                effective_lr=last["effective_lr"],
                norm_change=last["norm"] / first - 1.0 if first else math.nan,
                residual=last["invariance_residual"],
                reason=known[name].reason if name in known else "",
                tensors=len(known[name].parts) if name in known else 1,
                verdict=(verdicts or {}).get(name),
                equilibrium=(equilibrium or {}).get(name),
            )
        )
    return RunSummary(tuple(rows), history.steps, len(recent))


def tensorboard_command(log_dir: str | PathLike[str]) -> str:
    """The command that opens a folder of events, as this environment must spell it."""
    program = "tensorboard"
    beside = Path(sys.executable).with_name(program)
    if shutil.which(program) is None and beside.exists():
        program = str(beside.relative_to(Path.cwd())) if beside.is_relative_to(Path.cwd()) else str(beside)
    folder = str(log_dir)
    return f"{program} --logdir {folder if ' ' not in folder else repr(folder)}"


def _median(values: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> float:
    known = values[~np.isnan(values)]
    return float(np.median(known)) if len(known) else math.nan


def _name(row: LayerSummary) -> str:
    """A joint set's name without its number of tensors, which stands in the next column."""
    number = f"{row.tensors} tensors"
    return row.layer.removesuffix(f", {number}").removesuffix(f" ({number})") if row.kind == "joint" else row.layer


def _shorten(name: str, room: int) -> str:
    """Keep the end of a long name: that is where layers differ."""
    return name if len(name) <= room else "…" + name[len(name) - room + 1 :]


def _number(value: float) -> str:
    """Three significant digits, in the shortest usual notation."""
    if math.isnan(value):
        return UNKNOWN
    return f"{value:.3g}" if value == 0 or 1e-3 <= abs(value) < 1e4 else f"{value:.1e}"


def _kind(layer: ScaleGroup) -> str:
    return "joint" if layer.joint else layer.kind


def _shape(row: LayerSummary) -> str:
    if row.kind == "joint":
        return f"{row.tensors} tensors"
    return "x".join(map(str, row.shape))


def _percent(value: float) -> str:
    if math.isnan(value):
        return UNKNOWN
    return f"{value:+.1%}" if abs(value) < 10 else f"x{value + 1:.3g}"


def _residual(row: LayerSummary) -> Text:
    if math.isnan(row.residual):
        return Text(UNKNOWN)
    style = "" if row.kind == "none" else "green" if row.residual <= RESIDUAL_OK else "yellow"
    return Text(f"{row.residual:.0e}", style=style)
