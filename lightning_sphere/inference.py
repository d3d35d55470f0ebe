"""Invariance inferred from gradients alone, for weights that operations read into which discovery cannot look.

A group ``x`` that is scale-invariant has ``<g, x> = 0`` at every step. The converse is an inference, so a claim takes
several steps that agree to rounding, for every block of the weight, and a reason to prefer it to its rivals: a weight
with its bias looks invariant alone as long as the bias is zero. The weight must have moved meanwhile: where it was
initialized, its gradient may be orthogonal to it by chance (entries that are all alike before a softmax, another weight
that is still zero).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_sphere.groups import GroupPart, Kind, ScaleGroup

PerRow = Float[Tensor, "steps rows"]

Sums = tuple[PerRow, PerRow, PerRow, PerRow]
"""``<g, x>``, ``<g, g>``, ``<x, x>`` and ``<D, D>`` per step and row, float64, with ``D`` the displacement; NaN for
skipped steps and where nothing is known."""

STEPS = 8
"""Steps with a gradient that must agree before a claim."""

PATH = 0.03
"""How far a weight must have moved altogether during these steps, in units of its norm."""

SMALLEST = 1e-3
"""Cosines of gradient and weight up to here may be rounding or a norm's eps, in groups of few elements."""


def limit_for(elements: int) -> float:
    """Largest cosine that passes for zero: that of unrelated vectors is about ``1 / sqrt(elements)``."""
    return float(min(SMALLEST, 1e-2 / elements**0.5))


@dataclass(frozen=True)
class Inferred:
    """What several steps agree on."""

    blocks: int
    """Into how many equal consecutive blocks of rows the weight falls."""
    with_bias: bool
    """Whether it is invariant only together with its bias."""
    steps: int
    """How many steps agreed."""


@dataclass
class Evidence:
    """What the steps so far say of one weight.

    Args:
        rows: rows of the weight along its output axis.
        elements: of the whole weight.
    """

    rows: int
    elements: int
    steps: int = 0
    """Steps that had a gradient."""
    _worst: dict[tuple[int, bool], float] = field(default_factory=dict)
    """Largest cosine by number of blocks, without and with the bias."""
    _bias_felt: float = 0.0
    """Largest norm of the bias's gradient in comparison with the weight's."""
    _path: float = 0.0
    """How far the weight has moved, in units of its norm."""
    _seen: Tensor | None = None

    def add(self, alone: Sums, together: Sums | None) -> None:
        """Take the sums of some steps: of the weight, and of the weight and its bias if it has one."""
        known = alone[1].isfinite().all(-1) & (alone[1] * alone[2] > 0).any(-1)
        if together is not None:
            known &= together[1].isfinite().all(-1)
        if not bool(known.any()):
            return
        own = torch.stack(alone)[:, known]
        self.steps += int(known.sum())
        seen = (own[1] * own[2] > 0).any(0)
        self._path += float((own[3].sum(-1) / own[2].sum(-1)).sqrt().sum())
        self._seen = seen if self._seen is None else self._seen | seen
        variants = {False: own}
        if together is not None:
            variants[True] = both = torch.stack(together)[:, known]
            felt = (both[1] - own[1]).sum(-1).clamp_min(0.0) / own[1].sum(-1)
            self._bias_felt = max(self._bias_felt, float(felt.max()) ** 0.5)
        for blocks in divisors(self.rows):
            for with_bias, sums in variants.items():
                key = blocks, with_bias
                self._worst[key] = max(self._worst.get(key, 0.0), _largest_cosine(sums, blocks))

    def inferred(self) -> Inferred | None:
        """The finest claim that the steps agree on; ``None`` while there is none, or rivals are not told apart."""
        if self.steps < STEPS or self._path < PATH or self._seen is None or 2 * int(self._seen.sum()) < self.rows:
            return None
        for blocks in divisors(self.rows):
            limit = limit_for(self.elements // blocks)
            alone = self._worst[blocks, False] < limit
            together = self._worst.get((blocks, True), 1.0) < limit
            if not alone and not together:
                continue
            if alone and together and self._bias_felt > SMALLEST:
                return None  # The bias is still zero, or nearly so: which of both it is will show.
            return Inferred(blocks, not alone, self.steps)
        return None


class Inference:
    """Collects evidence on weights whose graph is hidden, and claims what it bears out.

    Attributes:
        claims: the layers claimed so far, by the weight's name.
    """

    def __init__(self) -> None:
        self.claims: dict[str, ScaleGroup] = {}
        self._evidence: dict[str, Evidence] = {}
        self._refuted: set[str] = set()

    def open_questions(self, layers: Sequence[ScaleGroup], hidden: Collection[str]) -> list[ScaleGroup]:
        """Those of some layers that are hidden and of which nothing was claimed yet."""
        settled = self.claims.keys() | self._refuted
        return [
            layer
            for layer in layers
            if layer.parameter in hidden and not layer.invariant and layer.parameter not in settled
        ]

    def take(self, question: ScaleGroup, alone: Sums, together: Sums | None, bias: str | None) -> None:
        """Add what some steps say of one weight.

        Args:
            question: the weight, cut into the rows of its output axis.
            alone: of the weight.
            together: of the weight and its bias; ``None`` if it has none.
            bias: the bias's name.
        """
        name = question.parameter
        evidence = self._evidence.setdefault(name, Evidence(question.blocks, math.prod(question.shape)))
        evidence.add(alone, together)
        found = evidence.inferred()
        if found is None:
            return
        rows, blocks = question.blocks, found.blocks
        kind: Kind = "row" if blocks == rows else "whole" if blocks == 1 else "group"
        unit = {"row": "per row", "group": "per block of rows", "whole": "as a whole"}[kind]
        partner = (GroupPart(bias),) if found.with_bias and bias is not None else ()
        why = question.reason.removeprefix("not invariant: ")
        self.claims[name] = replace(
            question,
            parts=(question.parts[0], *partner),
            blocks=blocks,
            kind=kind,
            reason=f"invariant {unit}{' together with its bias' * found.with_bias}: by the gradients of {found.steps} "
            f"steps alone ({why})",
        )

    def refute(self, name: str) -> None:
        """Take back a claim that later gradients contradicted, for good."""
        if self.claims.pop(name, None) is not None:
            self._refuted.add(name)


def divisors(rows: int) -> list[int]:
    """Numbers of equal blocks that rows fall into, the finest first."""
    return [blocks for blocks in range(rows, 0, -1) if rows % blocks == 0]


def _largest_cosine(sums: Float[Tensor, "4 steps rows"], blocks: int) -> float:
    """Of gradient and weight, over steps and blocks; blocks without gradient stay out."""
    gx, gg, xx, _ = sums.reshape(*sums.shape[:-1], blocks, -1).sum(-1)
    scale = (gg * xx).sqrt()
    return float(torch.where(scale > 0, gx.abs() / scale, 0.0).max())
