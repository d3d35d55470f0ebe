"""AdamG*: the adaptive method on the sphere that SGD is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.sgd import sgd

from lightning_sphere.optim.base import (
    Batch,
    GroupedOptimizer,
    check_common,
    compact_zeros,
    keep_divisors,
    new_step,
    plain_foreach,
)
from lightning_sphere.optim.choice import Groups
from lightning_sphere.optim.cuts import Cut, inner

TINY = torch.finfo(torch.float32).tiny
"""Keeps a group without direction, all zeros, from becoming NaN: it stays zero."""


class AdamGStar(GroupedOptimizer):
    r"""SGD without momentum, as the adaptive method on the sphere that it is for scale-invariant groups.

    A step of SGD with learning rate ``lr`` and L2 penalty ``weight_decay`` moves a group on the sphere, and lengthens
    it. The length divides later steps, as a second moment does. Here the point ``u`` on the sphere and the second
    moment ``v`` are stepped by themselves, the radius ``r_0`` of the group stays what it was before the first step, and
    ``u`` follows SGD's to second order in ``lr`` (Roburin et al., arXiv 2006.13382)::

        u <- normalize(u - alpha grad L(u) / sqrt(v))        v <- beta v + |grad L(u)|^2, with the gradient before

        beta = (1 - lr weight_decay)^4     alpha = (2 beta)^(-1/2)     v_0 = r_0^4 / (2 lr^2 sqrt(beta))

    The stored weight is ``r_0 u``, so that ``grad L(u)`` is ``r_0`` times its gradient. Tensors in no group are stepped
    as :class:`torch.optim.SGD` does with ``lr`` and ``weight_decay``, as they would be in the run that is mirrored.

    **Schedules.** ``alpha`` and ``beta`` know ``lr`` only by its product with ``weight_decay``; taken literally, a
    schedule of ``lr`` would hardly change a thing. What is kept is therefore not ``v`` but the radius that it stands
    for: ``v = r^4 / (2 lr^2 sqrt(beta))`` with ``r`` the radius that SGD would have by now. For constant ``lr`` nothing
    differs; under a schedule, the steps follow those of SGD under the same schedule, warm-up from 0 included.

    **State** of a tensor, in ``optimizer.state[p]``; all but ``step`` only for tensors in a group, one number per group
    in float32 (float64 for float64) in a shape that broadcasts against the tensor's:

    - ``step``: updates made, float32 of shape ``[]``, on the CPU.
    - ``radius``: ``r_0``; 0 before the first step.
    - ``growth``: ``(r / r_0)^4``, with ``r`` the radius that SGD would have by now.
    - ``divisor``: ``b = (1 - lr weight_decay) (r / r_0)^2`` of the last step, which went from ``x`` to
      ``r_0 normalize(x - lr g / b)``; 1 in blocks that are no groups.

    Momentum has no part in it, and no element-wise division. A group that is all zeros stays so. Tensors of one group
    need one ``lr`` and one ``weight_decay``.

    Args:
        params: as for :class:`AdamS`, with the same option ``invariant`` of param groups.
        lr: learning rate of the SGD that it mirrors; a number or a tensor of one.
        weight_decay: factor of its L2 penalty; ``lr * weight_decay`` must be below 1.
        groups: as for :class:`AdamS`.
        foreach: as for :class:`AdamS`.
        maximize: whether to ascend.

    Raises:
        TypeError, ValueError: naming the argument, what it takes and what it got.
    """

    shared = ("lr", "weight_decay")

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        weight_decay: float = 0.0,
        *,
        groups: Groups = None,
        foreach: bool | None = None,
        maximize: bool = False,
    ) -> None:
        defaults = {"lr": lr, "weight_decay": weight_decay, "foreach": foreach, "maximize": maximize}
        self._check(defaults)
        super().__init__(params, defaults, groups)

    def _check(self, options: dict[str, Any]) -> None:
        check_common(options)
        if not options["lr"] * options["weight_decay"] < 1:
            raise ValueError(
                f"weight_decay takes less than 1 / lr, got {options['weight_decay']!r} with lr={options['lr']!r}"
            )

    def _new_state(self, param: Tensor, cut: Cut | None) -> dict[str, Tensor]:
        if cut is None:
            return {"step": new_step()}
        zeros = compact_zeros(param, cut)
        return {"step": new_step(), "radius": zeros, "growth": torch.ones_like(zeros), "divisor": zeros.clone()}

    def _step_plain(self, options: dict[str, Any], params: list[Tensor], grads: list[Tensor]) -> None:
        for param in params:
            self.state[param]["step"] += 1
        sgd(
            params,
            grads,
            [None] * len(params),
            foreach=plain_foreach(options),
            weight_decay=options["weight_decay"],
            momentum=0.0,
            lr=options["lr"],
            dampening=0.0,
            nesterov=False,
            maximize=options["maximize"],
        )

    def _step_grouped(self, batches: Sequence[Batch]) -> None:
        cuts = [cut for batch in batches for cut in batch.cuts]
        params = [param for batch in batches for param in batch.params]
        grads = [grad for batch in batches for grad in batch.grads]
        foreach = all(batch.foreach for batch in batches)
        radii = [radius for batch in batches for radius in batch.values("radius")]
        firsts = [float(state["step"]) == 1 for batch in batches for state in batch.states]
        if any(firsts):
            for first, radius, square in zip(firsts, radii, inner(params, params, cuts, foreach), strict=True):
                if first:
                    radius.copy_(square.sqrt())
        squares = iter(inner(grads, grads, cuts, foreach))
        for batch in batches:
            update = _foreach_update if batch.foreach else _update
            keep_divisors(batch, update(batch, [next(squares) for _ in batch.params]))
        lengths = [square.sqrt().clamp_min(TINY) for square in inner(params, params, cuts, foreach)]
        shrinks = [
            cut.only_members(radius / length, 1.0) for cut, radius, length in zip(cuts, radii, lengths, strict=True)
        ]
        if foreach:
            torch._foreach_mul_(params, shrinks)
        else:
            for param, shrink in zip(params, shrinks, strict=True):
                param.mul_(shrink)


def _update(batch: Batch, squares: list[Tensor]) -> list[Tensor]:
    """Step in the tangent plane, one tensor after the other, from the groups' ``|g|^2``; returns the divisors."""
    lr, kept = batch.options["lr"], 1 - batch.options["lr"] * batch.options["weight_decay"]
    divisors = []
    for param, grad, radius, growth, square, cut in zip(
        batch.params, batch.grads, batch.values("radius"), batch.values("growth"), squares, batch.cuts, strict=True
    ):
        divisor = cut.only_members(growth.sqrt() * kept, 1.0)
        growth.mul_(kept**4).add_(square / radius.square().clamp_min(TINY) * (2 * lr**2 * kept**2))
        _decay_others(param, cut, divisor, kept)
        param.addcdiv_(grad, divisor / (lr if batch.options["maximize"] else -lr))
        divisors.append(divisor)
    return divisors


def _foreach_update(batch: Batch, squares: list[Tensor]) -> list[Tensor]:
    """The same for all tensors at once."""
    lr, kept = batch.options["lr"], 1 - batch.options["lr"] * batch.options["weight_decay"]
    radii, growths = batch.values("radius"), batch.values("growth")
    divisors = list(torch._foreach_mul(torch._foreach_sqrt(growths), kept))
    divisors = [cut.only_members(divisor, 1.0) for cut, divisor in zip(batch.cuts, divisors, strict=True)]
    floored = torch._foreach_clamp_min(torch._foreach_mul(radii, radii), TINY)
    gains = torch._foreach_mul(torch._foreach_div(squares, floored), 2 * lr**2 * kept**2)
    torch._foreach_mul_(growths, kept**4)
    torch._foreach_add_(growths, gains)
    for param, cut, divisor in zip(batch.params, batch.cuts, divisors, strict=True):
        _decay_others(param, cut, divisor, kept)
    rate = lr if batch.options["maximize"] else -lr
    torch._foreach_addcdiv_(batch.params, batch.grads, torch._foreach_div(divisors, rate))
    return divisors


def _decay_others(param: Tensor, cut: Cut, like: Tensor, kept: float | Tensor) -> None:
    """Shrink the blocks that are no groups, as the L2 penalty does; that of groups is in what divides their steps."""
    if cut.members is not None:
        param.mul_(cut.only_members(torch.ones_like(like), kept))
