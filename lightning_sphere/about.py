"""What a run is, as text: which weights are invariant and why, the arguments, the optimizers, the versions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from os import PathLike, fspath
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_sphere._version import __version__
from lightning_sphere.discovery.repeats import Row, collapse
from lightning_sphere.tensorboard.schema import TableSchema
from lightning_sphere.tensorboard.text import code, escaped, marked, table

ROWS = 200
"""Most lines of the table."""

FEW = 12
"""So many names, or values of a setting, are listed."""

SETTINGS = ("lr", "weight_decay", "momentum", "betas", "eps")
"""Settings of an optimizer that are told."""

_APART = "\0"


def teller(arguments: Mapping[str, Any], optimizers: Sequence[Optimizer]) -> Callable[[TableSchema], str]:
    """Takes down what a run starts with, to be told once its layers are known.

    Args:
        arguments: of the callback or tracker, by name.
        optimizers: those that are measured.
    """
    facts = facts_of(arguments, optimizers)
    return lambda schema: about(schema, facts)


def facts_of(arguments: Mapping[str, Any], optimizers: Sequence[Optimizer]) -> list[str]:
    """Arguments, optimizers and versions as lines of Markdown, as they are now.

    Args:
        arguments: of the callback or tracker, by name.
        optimizers: those that are measured.
    """
    given = ", ".join(f"{code(name)} {_value(value)}" for name, value in arguments.items())
    return [
        *(f"- Optimizer: {_optimizer(optimizer)}" for optimizer in optimizers),
        f"- Arguments: {given}",
        f"- Versions: lightning_sphere {escaped(__version__)}, torch {escaped(str(torch.__version__))}",
    ]


def about(schema: TableSchema, facts: Sequence[str]) -> str:
    """A run's description in Markdown.

    Args:
        schema: with what is known of each weight.
        facts: from :func:`facts_of`.
    """
    weights = [row for row in schema.groups if not row["joint"]]
    joint = [row for row in schema.groups if row["joint"]]
    trained = [row for row in weights if not row["reason"].startswith("frozen")]
    invariant = sum(row["kind"] != "none" for row in trained)
    plural = "s" if len(trained) != 1 else ""
    sentence = f"**{invariant} of {len(trained)} weight{plural} {'is' if invariant == 1 else 'are'} scale-invariant**"
    if joint:
        sizes = ", ".join(str(1 + len(row["joint_with"])) for row in joint[:FEW])
        more = ", ..." if len(joint) > FEW else ""
        sentence += f"; {len(joint)} joint set{'s' if len(joint) > 1 else ''} of {sizes}{more} tensors"
    if len(trained) < len(weights):
        sentence += f"; {len(weights) - len(trained)} frozen"
    blocks = [f"{sentence}.", "\n".join(facts), _weights(weights)]
    for row in joint[:FEW]:
        names = [folded.name for folded in collapse([Row(name) for name in (row["parameter"], *row["joint_with"])])]
        more = f" and {len(names) - FEW} more" if len(names) > FEW else ""
        listed = ", ".join(map(code, names[:FEW]))
        blocks.append(f"{code(row['layer'])}, {marked(row['reason'])}: {listed}{more}")
    return "\n\n".join(blocks)


def _weights(rows: Sequence[Mapping[str, Any]]) -> str:
    """The table of all weights; those of repeated blocks that are alike share a line."""
    named = [
        Row(row["layer"], f"{row['norm'] or ''}{_APART}{row['reason']}", (row["kind"], row["blocks"])) for row in rows
    ]
    lines = []
    folded = collapse(named)
    for row in folded[:ROWS]:
        norm, _, reason = row.text.partition(_APART)
        kind, blocks = row.same if isinstance(row.same, tuple) else ("", "")
        times = f" ({row.count}x)" if row.count > 1 else ""
        cut = f"{kind}&nbsp;x&nbsp;{blocks}" if blocks and blocks > 1 else str(kind)
        why = reason if not norm or norm in reason else f"{reason} ({norm})"
        lines.append([code(row.name) + times, cut, marked(why)])
    wide = "&nbsp;" * 3  # TensorBoard breaks short words where others are long
    result = table(("weight", f"{wide}kind{wide}", "why"), lines)
    left = sum(row.count for row in folded[ROWS:])
    return result + (f"\n\nThe table ends here: {left} more weights are in `read_run(...).groups`." if left else "")


def _optimizer(optimizer: Optimizer) -> str:
    """Class and settings; where these differ between param groups, the values that there are."""
    told = []
    for name in SETTINGS:
        values = list(dict.fromkeys(_value(group[name]) for group in optimizer.param_groups if name in group))
        if values:
            told.append(f"{code(name)} {' / '.join(values[:FEW])}{' / ...' if len(values) > FEW else ''}")
    count = len(optimizer.param_groups)
    return f"{code(type(optimizer).__name__)}{f' with {count} param groups' if count > 1 else ''}: {', '.join(told)}"


def _value(value: Any) -> str:
    """A setting in short; what may be large by its type alone."""
    if isinstance(value, Tensor):  # one on a device is not waited for
        return _value(value.item()) if value.numel() == 1 and value.device.type == "cpu" else "a tensor"
    if isinstance(value, float):
        return escaped(f"{value:.4g}")
    if isinstance(value, (bool, int, str)) or value is None:
        return escaped(str(value))
    if isinstance(value, PathLike):
        return escaped(str(fspath(value)))
    if isinstance(value, (tuple, list)) and all(isinstance(item, (bool, int, float, str, Tensor)) for item in value):
        return "(" + ", ".join(map(_value, value[:FEW])) + (", ...)" if len(value) > FEW else ")")
    return f"given ({escaped(type(value).__name__)})"
