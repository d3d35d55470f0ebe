"""Runs of known numbers for the tests in the browser, of every kind, verdict and state; and one real training."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pytorch_lightning.loggers import TensorBoardLogger

from dashboard_world import Run, schema_of, write_run
from lightning_sphere import RunRecord, SphereMonitor, read_run
from lightning_sphere.tensorboard.schema import TableSchema
from lit import LitNet, loader, quiet_trainer

JOINT = "mlp.up + mlp.down (2 tensors)"
LAYERS = ("stem.conv", "stage2.conv", "stage1.conv", "attention.qkv", "attention.out", "adapter", "head", JOINT)
"""In an order that no sorting gives."""

QUANTITIES = (
    *("norm", "angular_step", "effective_lr", "radius_growth", "invariance_residual", "equilibrium_ratio"),
    *("drift", "lr", "equilibrium_angle", "equilibrium_norm"),
)

STEPS = 60
SECONDS = 3.0
"""From one step of the synthetic runs to the next."""
SKIPPED = (12, 13)
HOLE = ("stage1.conv", range(20, 28))
"""A layer, and the steps at which nothing is known of it."""
NEVER = "adapter"
"""A layer without a single number."""

LONG, LONG_STEPS = "long", 1900
"""A run of more samples than the heatmap has columns; TensorBoard keeps all of them."""

SETTLED, ON_THE_WAY = "in equilibrium since step 40", "reaches equilibrium in about 500 steps"

ROWS: dict[str, dict[str, Any]] = {
    "stem.conv": {"blocks": 8, "residual": 1.25e-7, "equilibrium": SETTLED, "equilibrium_state": "settled"},
    "stage2.conv": {"kind": "group", "blocks": 4, "equilibrium": ON_THE_WAY, "reason": "followed by GroupNorm"},
    "stage1.conv": {
        "blocks": 16,
        "verdict": "contradicted",
        "verified_share": 0.25,
        "residual": 0.31,
        "equilibrium": "out of reach: no weight decay",
        "equilibrium_state": "out of reach",
    },
    "attention.qkv": {
        "kind": "whole",
        "axis": None,
        "blocks": 1,
        "verdict": "eps dominates",
        "verified_share": 0.0,
        "residual": 0.05,
        "equilibrium": SETTLED,
        "equilibrium_state": "settled",
        "reason": "followed by RMSNorm",
    },
    "attention.out": {"blocks": 6, "equilibrium": SETTLED, "equilibrium_state": "settled"},
    "adapter": {
        "blocks": 2,
        "verdict": "not yet seen",
        "verified_share": None,
        "residual": None,
        "equilibrium": None,
        "equilibrium_state": "unknown",
    },
    JOINT: {
        "kind": "joint",
        "axis": None,
        "blocks": 1,
        "parameter": "mlp.up.weight",
        "norm": "mlp.norm",
        "joint_with": ("mlp.down.weight",),
        "reason": "only the product is normalized",
        "joint": True,
    },
}
UNMEASURED: dict[str, Any] = {
    "layer": "positions",
    "parameter": "positions",
    "kind": "none",
    "reason": "no optimizer steps it",
}

SPREAD = {"p10": 0.5, "median": 1.0, "p90": 1.75, "rms": 1.125}
"""Every statistic, as a share of the median: powers of two, so that float32 keeps the shares exact."""
PLAIN = ("lr", "equilibrium_angle", "equilibrium_norm")
"""Quantities that are the same in all groups of a layer."""


def schema(layers: tuple[str, ...] = LAYERS, rows: dict[str, dict[str, Any]] | None = None) -> TableSchema:
    """The description of the synthetic runs: all layers but the head are invariant."""
    invariant = [name != "head" for name in layers]
    return schema_of(layers, QUANTITIES, invariant=invariant, rows=ROWS if rows is None else rows, further=[UNMEASURED])


def numbers(schema: TableSchema, steps: int = STEPS, factor: float = 1.0) -> np.ndarray:
    """All cells differ; the learning rate decays; ``[steps, layers, quantities, stats]``, float32."""
    at, place = np.arange(steps)[:, None], np.arange(len(schema.layers))[None, :]
    wave = np.sin(at / 5.0 + place)
    lr = 0.1 * 0.97**at
    curves = {
        "norm": 1.0 + place + 0.01 * at,
        "angular_step": 0.001 * 2.0**place * (1.0 + 0.1 * wave) * 0.98**at,
        "effective_lr": lr / (1.0 + place) ** 2 * (1.0 + 0.05 * wave),
        "radius_growth": 0.01 * wave * (1.0 + place),
        "invariance_residual": 1e-8 * 10.0 ** (0.5 * place) * (1.0 + 0.1 * wave),
        "equilibrium_ratio": 0.5 * 2.0 ** (place / 2.0) * (1.0 + 0.1 * wave),
        "drift": 0.02 * at * (1.0 + 0.1 * place),
        "lr": lr + 0.0 * place,
        "equilibrium_angle": np.sqrt(0.001 * lr) * (1.0 + 0.25 * place),
        "equilibrium_norm": 2.0 + 0.5 * place + 0.0 * at,
    }
    table = np.empty((steps, *schema.shape), dtype=np.float32)
    for index, name in enumerate(schema.quantities):
        middle = (curves[name] * (1.0 if name in PLAIN else factor)).astype(np.float32)
        spread = [1.0 if name in PLAIN else SPREAD[stat] for stat in schema.stats]
        table[:, :, index] = middle[:, :, None] * np.array(spread, dtype=np.float32)
        if name == "drift":
            table[[step for step in range(steps) if step % 10], :, index] = np.nan
    for layer in {NEVER, HOLE[0]} & set(schema.layers):
        table[slice(None) if layer == NEVER else list(HOLE[1]), schema.layers.index(layer)] = np.nan
    table[list(SKIPPED)] = np.nan
    return table


OTHER_LAYERS = ("stem.conv", "stage2.conv", "new.conv", "stage1.conv", "attention.qkv", "attention.out", "head")
"""Of the second run: one that the first has not, and two that only the first has are missing."""
OTHER_STEPS = 50

FACTOR = 4.0
"""Numbers of the second run are those of the first, at the same place, times this."""


@dataclass(frozen=True)
class World:
    """What lies in the logdir: ``first`` and ``second`` are the two to compare."""

    logdir: Path
    runs: dict[str, Run]
    real: RunRecord

    @property
    def first(self) -> Run:
        return self.runs["first"]

    @property
    def second(self) -> Run:
        return self.runs["second"]


def make_world(logdir: Path) -> World:
    """Write all runs: ``first``, ``second``, ``long`` and ``real`` (a short training)."""
    one, other = schema(), schema(OTHER_LAYERS)
    further = numbers(other, OTHER_STEPS, FACTOR)
    lengthy = schema_of(("one", "two"), ("angular_step", "lr"))
    steps = np.arange(LONG_STEPS)[:, None]
    zigzag = (0.01 + 0.005 * (-1.0) ** steps) * np.array([1.0, 3.0]) * (1.0 + steps / LONG_STEPS)
    long = np.stack([zigzag, np.full_like(zigzag, 0.1)], axis=2)[..., None] * np.ones(4)
    runs = {
        "first": write_run(logdir / "first", steps=STEPS, schema=one, table=numbers(one), seconds=SECONDS),
        "second": write_run(logdir / "second", steps=OTHER_STEPS, schema=other, table=further, seconds=SECONDS),
        LONG: write_run(logdir / LONG, steps=LONG_STEPS, schema=lengthy, table=long.astype(np.float32)),
    }
    return World(logdir, runs, _train(logdir))


def _train(logdir: Path) -> RunRecord:
    logger = TensorBoardLogger(logdir, name="real", version="")
    trainer = quiet_trainer(logdir, logger=logger, log_every_n_steps=1, callbacks=[SphereMonitor(strict=True)])
    trainer.fit(LitNet(), loader(count=16 * 30))
    return read_run(logger.log_dir)
