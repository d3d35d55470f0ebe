"""What the page is told of one run: its layers, steps, cards and findings."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from lightning_sphere.diagnosis import Evidence, diagnose
from lightning_sphere.tensorboard.dashboard.answers import number
from lightning_sphere.tensorboard.dashboard.cards import CARD_QUANTITIES, STATES, Steps, cards
from lightning_sphere.tensorboard.dashboard.series import Description, Table, UnreadableError

READ = (*CARD_QUANTITIES, "lost_update")
"""Quantities that cards and findings are made of."""

KINDS = ("row", "group", "whole", "joint", "none")
VERDICTS = ("verified", "contradicted", "eps dominates", "not yet seen")


def about(
    name: str, description: Description, recorded: tuple[str, ...], read: Callable[[str], Table]
) -> dict[str, Any]:
    """One run as the page reads it.

    Args:
        name: of the run.
        description: of its layers.
        recorded: names of its quantities.
        read: gives one of them.

    Raises:
        UnreadableError: if none of the numbers can be read.
    """
    tables = _tables(recorded, read)
    steps = max(tables.values(), key=lambda table: len(table.steps))
    if not len(steps.steps):
        raise UnreadableError("none of its numbers belongs to the layers that it describes")
    layers = [_layer(layer, description) for layer in description.layers]
    evidence = Evidence(
        layers=description.layers,
        invariant=np.array([layer["invariant"] for layer in layers], dtype=bool),
        groups={layer["name"]: layer for layer in layers},
        medians={quantity: table.medians for quantity, table in tables.items()},
        steps=len(steps.steps),
        skipped=_skipped(tables, steps),
    )
    return {
        "name": name,
        "layers": layers,
        "unmeasured": _unmeasured(description),
        "steps": {
            "shown": evidence.steps,
            "first": int(steps.steps[0]),
            "last": int(steps.steps[-1]),
            "skipped": evidence.skipped,
        },
        "first_wall_time": float(steps.wall_times[0]),
        "last_wall_time": float(steps.wall_times[-1]),
        "cards": cards(evidence, layers, _shared_steps(tables)),
        "findings": [dataclasses.asdict(finding) for finding in diagnose(evidence)],
    }


def _tables(recorded: tuple[str, ...], read: Callable[[str], Table]) -> dict[str, Table]:
    """The quantities that are needed and can be read; where there is none of them, the first that can."""
    wanted = [name for name in recorded if name in READ]
    tables: dict[str, Table] = {}
    problem = UnreadableError("none of its quantities is known")
    for name in (*wanted, *(name for name in recorded if name not in wanted)):
        if name not in wanted and any(len(table.steps) for table in tables.values()):
            break
        try:
            tables[name] = read(name)
        except UnreadableError as error:
            problem = error
    if not tables:
        raise problem
    return tables


def _shared_steps(tables: Mapping[str, Table]) -> Steps | None:
    """The steps of effective and nominal learning rate; ``None`` where they were kept of different ones."""
    effective, nominal = (tables.get(name) for name in ("effective_lr", "lr"))
    if effective is None or nominal is None or not np.array_equal(effective.wall_times, nominal.wall_times):
        return None
    return nominal.steps


def _skipped(tables: Mapping[str, Table], steps: Table) -> int:
    """Steps that are there without any number."""
    known: set[tuple[float, int]] = set()
    for table in tables.values():
        rows = ~np.isnan(table.medians).all(axis=1)
        known.update(zip(table.wall_times[rows].tolist(), table.steps[rows].tolist(), strict=True))
    return len(set(zip(steps.wall_times.tolist(), steps.steps.tolist(), strict=True)) - known) if known else 0


def _layer(name: str, description: Description) -> dict[str, Any]:
    row = description.groups.get(name, {})
    blocks = _count(row.get("blocks")) or description.blocks[name]
    members = row.get("members")
    invariant = description.invariant[name]
    inside = len(members) if isinstance(members, (list, tuple)) else blocks
    return {
        "name": name,
        "invariant": invariant,
        "kind": "joint" if row.get("joint") is True else _one_of(row.get("kind"), KINDS) or "none",
        "parameter": _text(row.get("parameter")) or name,
        "blocks": blocks,
        "invariant_blocks": inside if invariant else 0,
        "norm": _text(row.get("norm")),
        "reason": _text(row.get("reason")) or "",
        "verdict": _one_of(row.get("verdict"), VERDICTS),
        "verified_share": _real(row.get("verified_share")),
        "residual": _real(row.get("residual")),
        "equilibrium_state": _one_of(row.get("equilibrium_state"), STATES),
        "equilibrium": _text(row.get("equilibrium")),
        "joint_with": _texts(row.get("joint_with")),
    }


def _unmeasured(description: Description) -> list[dict[str, str]]:
    """The weights that are no layer of the table, and why."""
    rows = [row for row in description.last.groups if row.get("layer") not in description.layers]
    return [{"parameter": _text(row.get("parameter")) or "", "reason": _text(row.get("reason")) or ""} for row in rows]


# A file may hold anything: whatever is not of its type is left out.


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _texts(value: Any) -> list[str]:
    return [one for one in value if isinstance(one, str)] if isinstance(value, (list, tuple)) else []


def _one_of(value: Any, known: tuple[str, ...]) -> str | None:
    return value if isinstance(value, str) and value in known else None


def _real(value: Any) -> float | None:
    try:
        return number(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None
    except OverflowError:
        return None


def _count(value: Any) -> int:
    return value if type(value) is int and value > 0 else 0
