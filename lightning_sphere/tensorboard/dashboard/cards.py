"""The few numbers on top of the page: medians over the last steps, and what became of them since the first ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from lightning_sphere.diagnosis import WINDOW, Evidence, Medians, PerLayer, late, middle, per_layer
from lightning_sphere.tensorboard.dashboard.answers import number

Steps: TypeAlias = npt.NDArray[np.int64]

CARD_QUANTITIES = ("angular_step", "effective_lr", "lr")
"""What the cards read."""

STATES = ("settled", "transient", "out of reach", "unknown")
"""States of a layer's equilibrium."""


def cards(evidence: Evidence, layers: list[dict[str, Any]], steps: Steps | None = None) -> dict[str, Any]:
    """All cards of a run.

    The numbers are of invariant layers, of all where none is (``all_layers``): each layer's median over the last
    steps at which the number is known, then the median over layers.

    Args:
        evidence: the run's numbers.
        layers: what the page is told of each layer, in the same order.
        steps: positions of the steps at which effective and nominal learning rate are known, if they are the same.

    Returns:
        As the page reads it.
    """
    counted = evidence.invariant if evidence.invariant.any() else np.ones(len(evidence.layers), dtype=bool)
    shown = {name: values[:, counted] for name, values in evidence.medians.items()}
    invariant = [layer for layer in layers if layer["invariant"]]
    verdicts = [layer["verdict"] for layer in layers]
    states = [layer["equilibrium_state"] or "unknown" for layer in invariant]
    now = {name: _over_layers(late(shown[name])) if name in shown else None for name in CARD_QUANTITIES}
    turning = np.ones(len(evidence.layers), dtype=bool) if counted.sum() < 2 else counted
    return {
        "layers": len(layers),
        "invariant_layers": len(invariant),
        "all_layers": not invariant,
        "groups": sum(layer["invariant_blocks"] for layer in invariant),
        "verified": verdicts.count("verified"),
        "contradicted": verdicts.count("contradicted"),
        "eps_dominates": verdicts.count("eps dominates"),
        "unseen": sum(layer["verdict"] in (None, "not yet seen") for layer in invariant),
        "window": min(WINDOW, evidence.steps),
        "effective_lr": now["effective_lr"],
        "nominal_lr": now["lr"],
        "lr_ratio": _ratio(now["effective_lr"], now["lr"]),
        **_ratios(shown, steps),
        "angular_step": now["angular_step"],
        **_speeds(evidence, turning),
        "equilibrium": {**{state: states.count(state) for state in STATES}, "total": len(states)},
    }


def _over_layers(medians: Medians) -> float | None:
    return number(middle(per_layer(medians)))


def _ratios(shown: Mapping[str, Medians], steps: Steps | None) -> dict[str, Any]:
    """Effective over nominal learning rate along the run: a schedule does not move it, norms and second moments do.

    Of each step at which most layers' are known the median over them; at the start over the first of these steps.
    """
    told: dict[str, Any] = dict.fromkeys(("lr_ratio_start", "lr_ratio_lowest", "lr_ratio_highest"))
    if steps is None or "effective_lr" not in shown or "lr" not in shown:
        return told
    effective, nominal = shown["effective_lr"], shown["lr"]
    if effective.shape != nominal.shape or len(steps) != len(nominal):
        return told
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = effective.astype(np.float64) / nominal
    known = np.count_nonzero(np.isfinite(ratios), axis=1)
    if not known.any():
        return told
    most = known == known.max()  # medians over changing sets of layers would jump for no other reason
    of_steps, at = np.nanmedian(np.where(np.isfinite(ratios), ratios, np.nan)[most], axis=1), steps[most]
    told["lr_ratio_start"] = number(float(np.median(of_steps[:WINDOW])))
    for name, index in (("lr_ratio_lowest", of_steps.argmin()), ("lr_ratio_highest", of_steps.argmax())):
        told[name] = {"ratio": number(float(of_steps[index])), "step": int(at[index])}
    return told


def _speeds(evidence: Evidence, turning: npt.NDArray[np.bool_]) -> dict[str, Any]:
    """The layers that turn fastest and slowest; of all layers, where too few are invariant to be compared."""
    names = evidence.names(turning)
    turned = np.full(len(names), np.nan)
    if "angular_step" in evidence.medians:
        turned = per_layer(late(evidence.medians["angular_step"][:, turning]))
    return {
        "fastest": _extreme(turned, names, -1),
        "slowest": _extreme(turned, names, 0),
        "speed_of_all": bool(turning.sum() > evidence.invariant.sum()),
    }


def _ratio(one: float | None, other: float | None) -> float | None:
    return number(one / other) if one is not None and other else None


def _extreme(turned: PerLayer, names: tuple[str, ...], place: int) -> dict[str, Any] | None:
    """The layer that stands first or last by its angular step; the first in network order of several alike."""
    known = [index for index in range(len(names)) if np.isfinite(turned[index])]
    if not known:
        return None
    value = sorted(float(turned[index]) for index in known)[place]
    name = next(names[index] for index in known if float(turned[index]) == value)
    return {"layer": name, "angular_step": value}
