"""AdamS and AdamSRT: Adam without what it does to scale-invariant groups that SGD does not."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from numbers import Real
from typing import Any

import torch
from torch import Tensor
from torch.optim.adam import adam

from lightning_sphere.optim.base import (
    Batch,
    GroupedOptimizer,
    check_common,
    check_number,
    compact_zeros,
    full_zeros,
    keep_divisors,
    new_step,
    plain_foreach,
)
from lightning_sphere.optim.choice import Groups
from lightning_sphere.optim.cuts import Cut, entries, inner


class AdamS(GroupedOptimizer):
    r"""Adam with one second moment per scale-invariant group, so that no step's direction is deformed.

    Per group with weights ``x`` of ``d`` entries and gradient ``g`` (Roburin et al., arXiv 2006.13382)::

        g <- g + weight_decay x
        m <- beta1 m + (1 - beta1) g
        v <- beta2 v + (1 - beta2) |g|^2 / d
        x <- x - lr  m / (1 - beta1^t) / (sqrt(v / (1 - beta2^t)) + eps)

    Adam's element-wise division turns a step out of the direction of its momentum; the division by one number per group
    does not. Tensors in no group are stepped as :class:`torch.optim.Adam` does, bit for bit; without groups this is
    Adam. Tensors without gradient are skipped; a group that only some tensors have a gradient of is stepped as a whole,
    and what is missing is zero.

    Example::

        optimizer = AdamS(model.named_parameters(), lr=1e-3, groups=discover(loss, model))
        optimizer = AdamS([{"params": filters, "invariant": "row"}, {"params": others}], lr=1e-3)

    **State** of a tensor, in ``optimizer.state[p]``:

    - ``step``: updates made, float32 of shape ``[]``, on the CPU.
    - ``exp_avg``: ``m``, of the tensor's shape and dtype.
    - ``exp_avg_sq``: ``v``; the tensor's shape and dtype where it is in no group. Else one number per group in float32
      (float64 for float64, with low precision it could not decay), in a shape that broadcasts against the tensor's,
      such as ``[64, 1, 1, 1]`` for the rows of ``[64, 3, 3, 3]``. All tensors of a group, and all rows of a block, hold
      the same number. Where only some blocks of a tensor are groups, it has the tensor's shape.
    - ``divisor``: what the momentum was divided by in the last step, ``sqrt(v / (1 - beta2^t)) + eps``, of the shape of
      ``exp_avg_sq``. Only for tensors in a group.

    No step waits for the device, unless ``lr`` is a tensor on it and tensors are in no group: torch's Adam reads it.

    Args:
        params: tensors, pairs of name and tensor (``model.named_parameters()``), or param groups of either. A param
            group may set every option but ``groups``, and one more: ``invariant``, which is ``"row"`` if every index of
            the first dimension of each of its tensors is a group, ``"whole"`` if each tensor is, ``None`` (default) if
            none is.
        lr: learning rate; a number or a tensor of one.
        betas: decay of the first and of the second moment.
        eps: added to the root of the second moment.
        weight_decay: factor of the L2 penalty, which is part of the gradient.
        groups: what is scale-invariant: a :class:`~lightning_sphere.Discovery` (of it, the ``groups``; groups with no
            tensor in this optimizer are left out), or a sequence of :class:`~lightning_sphere.ScaleGroup`, such as
            ``[*discovery.groups, *discovery.joint_groups]``. It goes by names: ``params`` must have them.
        foreach: whether to compute with all tensors at once, which takes fewer launches and more memory. By default,
            as in torch, where none is on the CPU.
        maximize: whether to ascend.

    Raises:
        TypeError, ValueError: naming the argument, what it takes and what it got.
    """

    shared = ("betas",)

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        groups: Groups = None,
        foreach: bool | None = None,
        maximize: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "foreach": foreach,
            "maximize": maximize,
        }
        self._check(defaults)
        super().__init__(params, defaults, groups)

    def _check(self, options: dict[str, Any]) -> None:
        check_common(options)
        check_number("eps", options["eps"])
        betas = options["betas"]
        takes = f"betas takes two numbers from 0 to below 1, got {betas!r}"
        if not isinstance(betas, (tuple, list)) or not all(isinstance(beta, Real) for beta in betas):
            raise TypeError(takes)
        if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
            raise ValueError(takes)

    def _new_state(self, param: Tensor, cut: Cut | None) -> dict[str, Tensor]:
        state = {"step": new_step(), "exp_avg": torch.zeros_like(param)}
        if cut is None:
            return {**state, "exp_avg_sq": torch.zeros_like(param)}
        second_moment = compact_zeros(param, cut) if cut.members is None else full_zeros(param)
        return {**state, "exp_avg_sq": second_moment, "divisor": torch.zeros_like(second_moment)}

    def _step_plain(self, options: dict[str, Any], params: list[Tensor], grads: list[Tensor]) -> None:
        states = [self.state[param] for param in params]
        adam(
            params,
            grads,
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            foreach=plain_foreach(options),
            has_complex=any(param.is_complex() for param in params),
            amsgrad=False,
            beta1=options["betas"][0],
            beta2=options["betas"][1],
            lr=options["lr"],
            weight_decay=options["weight_decay"],
            eps=options["eps"],
            maximize=options["maximize"],
        )

    def _step_grouped(self, batches: Sequence[Batch]) -> None:
        grads = [(_foreach_gradients if batch.foreach else _gradients)(batch) for batch in batches]
        squares = iter(mean_squares(batches, list(chain.from_iterable(grads))))
        for batch, gradients in zip(batches, grads, strict=True):
            update = _foreach_update if batch.foreach else _update
            keep_divisors(batch, update(batch, gradients, [next(squares) for _ in gradients]))


class AdamSRT(AdamS):
    r"""AdamS that takes its moments along to the new point of the sphere (rescaling and transport).

    The gradients of a scale-invariant group are tangent to the sphere at the point where they were taken, and shrink as
    the weights grow. After each step of :class:`AdamS`, from ``x`` to ``x'``, the moments of each group become what
    they are at ``x'`` (Roburin et al., arXiv 2006.13382)::

        v <- v |x|^2 / |x'|^2
        m <- (m <x, x'> - x <m, x'>) / |x'|^2

    so that ``m`` is orthogonal to ``x'``, and momentum does not push weights outwards or inwards.
    ``x'`` are the weights as they are stored after the step. A group whose weights are all zero has no direction: its
    moments are dropped.

    **State**, arguments and errors are those of :class:`AdamS`, but ``exp_avg`` and ``exp_avg_sq`` have been
    transported: of the step just made, only ``divisor`` tells what it divided by, and ``a = -(x' - x) divisor / lr``
    what it divided. A step needs a copy of the weights that are in groups, for as long as it takes. Name no tensor
    ``invariant`` that is not: each entry of a vector that is ``"row"`` would lose its momentum.
    """

    def _step_grouped(self, batches: Sequence[Batch]) -> None:
        before = [param.clone() for batch in batches for param in batch.params]
        super()._step_grouped(batches)
        transport(batches, before)


def mean_squares(batches: Sequence[Batch], grads: Sequence[Tensor]) -> list[Tensor]:
    """``|g|^2 / d`` per group, compact; of a tensor of which only some blocks are groups, ``g^2`` for the others."""
    cuts = [cut for batch in batches for cut in batch.cuts]
    foreach = all(batch.foreach for batch in batches)
    squares, sizes = inner(grads, grads, cuts, foreach), entries(cuts)
    means = torch._foreach_div(squares, sizes) if foreach else map(torch.div, squares, sizes)
    return [
        mean if cut.members is None else cut.only_members(mean, grad.to(mean.dtype).square())
        for mean, cut, grad in zip(means, cuts, grads, strict=True)
    ]


def transport(batches: Sequence[Batch], before: list[Tensor]) -> None:
    """Take the moments from the weights ``before`` to those that they are now."""
    foreach = all(batch.foreach for batch in batches)
    cuts = [cut for batch in batches for cut in batch.cuts]
    after = [param for batch in batches for param in batch.params]
    moments = [value for batch in batches for value in batch.values("exp_avg")]
    seconds = [value for batch in batches for value in batch.values("exp_avg_sq")]

    tiny = torch.finfo(torch.float32).tiny
    squares = [square.clamp_min(tiny) for square in inner(after, after, cuts, foreach)]

    def ratios(lhs: list[Tensor], rhs: list[Tensor], others: float) -> list[Tensor]:
        products = inner(lhs, rhs, cuts, foreach)
        found = torch._foreach_div(products, squares) if foreach else map(torch.div, products, squares)
        return [cut.only_members(ratio, others) for cut, ratio in zip(cuts, found, strict=True)]

    along = ratios(moments, after, 0.0)  # <m, x'> / |x'|^2, to be had before m is changed
    kept = ratios(before, after, 1.0)
    scales = ratios(before, before, 1.0)
    if foreach:
        torch._foreach_mul_(moments, kept)
        torch._foreach_addcmul_(moments, before, along, value=-1.0)
        torch._foreach_mul_(seconds, scales)
    else:
        for moment, weight, factor, share in zip(moments, before, kept, along, strict=True):
            moment.mul_(factor).addcmul_(weight, share, value=-1.0)
        for second, scale in zip(seconds, scales, strict=True):
            second.mul_(scale)


# -- one tensor after the other ------------------------------------------------------------------------------------


def _gradients(batch: Batch) -> list[Tensor]:
    """What the step uses: of the right sign, with the decay; never written to, as it may be ``p.grad`` itself."""
    grads = [-grad for grad in batch.grads] if batch.options["maximize"] else batch.grads
    decay = batch.options["weight_decay"]
    return [grad.add(p, alpha=decay) for grad, p in zip(grads, batch.params, strict=True)] if decay else grads


def _update(batch: Batch, grads: list[Tensor], squares: list[Tensor]) -> list[Tensor]:
    """One step of Adam from gradients and what stands for their squares; returns the divisors."""
    beta1, beta2 = batch.options["betas"]
    divisors = []
    for param, moment, second, grad, square, step in zip(
        batch.params, batch.values("exp_avg"), batch.values("exp_avg_sq"), grads, squares, _steps(batch), strict=True
    ):
        moment.lerp_(grad, 1 - beta1)
        second.mul_(beta2).add_(square, alpha=1 - beta2)
        divisor = second.sqrt().div_((1 - beta2**step) ** 0.5).add_(batch.options["eps"])
        rate = batch.options["lr"] / (1 - beta1**step)
        param.addcdiv_(moment, divisor / -rate)
        divisors.append(divisor)
    return divisors


# -- all tensors at once -------------------------------------------------------------------------------------------


def _foreach_gradients(batch: Batch) -> list[Tensor]:
    grads = list(torch._foreach_neg(batch.grads)) if batch.options["maximize"] else batch.grads
    decay = batch.options["weight_decay"]
    return list(torch._foreach_add(grads, batch.params, alpha=decay)) if decay else grads


def _foreach_update(batch: Batch, grads: list[Tensor], squares: list[Tensor]) -> list[Tensor]:
    beta1, beta2 = batch.options["betas"]
    moments, seconds, steps = batch.values("exp_avg"), batch.values("exp_avg_sq"), _steps(batch)
    torch._foreach_lerp_(moments, grads, 1 - beta1)
    torch._foreach_mul_(seconds, beta2)
    torch._foreach_add_(seconds, squares, alpha=1 - beta2)
    divisors = list(torch._foreach_sqrt(seconds))
    torch._foreach_div_(divisors, [(1 - beta2**step) ** 0.5 for step in steps])
    torch._foreach_add_(divisors, batch.options["eps"])
    rates = [-batch.options["lr"] / (1 - beta1**step) for step in steps]
    torch._foreach_addcdiv_(batch.params, moments, torch._foreach_div(divisors, rates))
    return divisors


def _steps(batch: Batch) -> list[float]:
    return [float(state["step"]) for state in batch.states]
