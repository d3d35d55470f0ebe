"""From raw times to the figures of a table; pure functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, median, quantiles
from typing import Any

from benchmarks.variants import AGAIN, BARE, GRAD_NORM, VARIANTS

Results = Mapping[str, Mapping[str, Any]]
"""What ``interleave.take_turns`` gives, by variant."""


@dataclass(frozen=True)
class Figures:
    """One row of the table. What is not known is ``None``; all but ``ms`` is more than bare training."""

    variant: str
    title: str
    ms: float
    """Per step, median of the rounds."""
    ratio: float
    """Time over that of bare training in the same round, median of the rounds."""
    quartiles: tuple[float, float]
    """Half of the rounds' ratios lie between."""
    added_ms: float
    """Per step, median of the rounds."""
    flush_ms: float | None
    """The part of ``added_ms`` that holds up training for evaluation and writing, per step."""
    less_than_grad_norm: float | None
    """``added_ms`` of ``grad_norm`` over ours."""
    operations: float | None
    synchronizations: float | None
    bytes: float | None
    memory: float | None
    """Bytes at the peak."""


def bare_times(results: Results) -> list[float]:
    """Milliseconds per step of bare training, one of each round: the mean of both processes, if there are two."""
    series = [results[name]["ms"] for name in (BARE, AGAIN) if name in results]
    return [mean(values) for values in zip(*series, strict=True)]


def measurement_error(results: Results) -> float | None:
    """By which share both bare trainings differ, median of the rounds; ``None`` where there is only one."""
    if AGAIN not in results:
        return None
    pairs = zip(results[BARE]["ms"], results[AGAIN]["ms"], strict=True)
    return float(abs(median(second / first for first, second in pairs) - 1))


def quartiles_of(values: Sequence[float]) -> tuple[float, float]:
    """The middle half."""
    if len(values) < 2:
        return values[0], values[0]
    cuts = quantiles(values, n=4, method="inclusive")
    return cuts[0], cuts[2]


def figures(results: Results) -> list[Figures]:
    """One row per variant, bare training once."""
    bare = bare_times(results)
    compared = results.get(GRAD_NORM)
    added_by_grad_norm = None if compared is None else _added(compared["ms"], bare)
    return [_figures(name, results, bare, added_by_grad_norm) for name in VARIANTS if name in results and name != AGAIN]


def _figures(name: str, results: Results, bare: Sequence[float], added_by_grad_norm: float | None) -> Figures:
    own = bare if name == BARE else results[name]["ms"]
    ratios = [value / base for value, base in zip(own, bare, strict=True)]
    added = _added(own, bare)
    ours = name.startswith("sphere")

    def more(key: str) -> float | None:
        """What it counts beyond the bare training."""
        counted = results[name].get(key)
        if name == BARE or counted is None:
            return None
        return float(counted - mean(results[base][key] for base in (BARE, AGAIN) if base in results))

    return Figures(
        variant=name,
        title=VARIANTS[name].title,
        ms=median(own),
        ratio=median(ratios),
        quartiles=quartiles_of(ratios),
        added_ms=added,
        flush_ms=median(results[name]["flush_ms"]) if ours else None,
        less_than_grad_norm=added_by_grad_norm / added if ours and added_by_grad_norm and added > 0 else None,
        operations=more("operations"),
        synchronizations=more("synchronizations"),
        bytes=more("bytes"),
        memory=more("peak_memory"),
    )


def _added(own: Sequence[float], bare: Sequence[float]) -> float:
    return float(median(value - base for value, base in zip(own, bare, strict=True)))
