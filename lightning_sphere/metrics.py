"""Norm, angular step and effective learning rate as torchmetrics, for anybody's LightningModule.

``SphereMonitor`` needs none of this: it measures every layer by itself. These classes are for a weight of your own
choice, next to your other metrics. A metric takes the weights around an optimizer step, and Lightning logs, resets and
synchronizes it as any other. Weights must be copied before the step, because optimizers write in place::

    import torch
    from pytorch_lightning import LightningModule
    from torch import nn
    from torch.nn.functional import cross_entropy

    from lightning_sphere.metrics import AngularStep, EffectiveLearningRate, WeightNorm

    class Net(LightningModule):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(1, 8, 3, bias=False)  # a BatchNorm follows: each filter is a group, axis=0
            self.rest = nn.Sequential(nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 10))
            self.angle, self.rate, self.length = AngularStep(), EffectiveLearningRate(), WeightNorm()

        def training_step(self, batch, batch_idx):
            self.log("conv/angular_step", self.angle, on_step=False, on_epoch=True)
            self.log("conv/effective_lr", self.rate, on_step=False, on_epoch=True)
            self.log("conv/norm", self.length, on_step=False, on_epoch=True)
            return cross_entropy(self.rest(self.conv(batch[0])), batch[1])

        def optimizer_step(self, epoch, batch_idx, optimizer, closure):
            before = self.conv.weight.detach().clone()
            super().optimizer_step(epoch, batch_idx, optimizer, closure)
            self.length.update(before)
            self.angle.update(before, self.conv.weight)
            self.rate.update(before, self.conv.weight, lr=optimizer.param_groups[0]["lr"])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)

Every metric is a mean over groups and steps, of a kind that ``aggregate`` chooses:

=============  ==================================================================================================
``aggregate``
=============  ==================================================================================================
``mean``       arithmetic
``rms``        root of the mean square: the measure that theories of rotational equilibrium predict for angles
``geometric``  ``exp`` of the mean logarithm, for values over orders of magnitude; 0 if one of them is, NaN if one
               is negative
=============  ==================================================================================================

NaN (unknown) is left out; the mean of nothing is NaN, without a warning. Sums are kept in float64, whatever the
precision of weights and module: ``half()``, ``to(dtype)`` and ``set_dtype()`` leave them so (float32 on devices without
float64, such as MPS). As in all of torchmetrics, states are saved in checkpoints after ``metric.persistent(True)``.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torchmetrics import Metric
from typing_extensions import Self

from lightning_sphere import functional
from lightning_sphere.measurement.sums import accumulation_dtype

Aggregate = Literal["mean", "rms", "geometric"]

_FORWARD: dict[str, Callable[[Tensor], Tensor]] = {"mean": torch.clone, "rms": torch.square, "geometric": torch.log}
_BACK: dict[str, Callable[[Tensor], Tensor]] = {"mean": torch.clone, "rms": torch.sqrt, "geometric": torch.exp}


class _GroupMean(Metric):
    """A mean over groups and steps: a sum and a count, which add up over updates and processes.

    Args:
        aggregate: kind of the mean.
        axis: the dimension that indexes the groups; ``None`` for the whole tensor.
        blocks: how many equal consecutive blocks along it; ``None`` for one per index.
        **arguments: torchmetrics' own, such as ``sync_on_compute`` and ``process_group``.
    """

    is_differentiable = False
    higher_is_better = None
    full_state_update = False

    def __init__(self, aggregate: Aggregate, axis: int | None, blocks: int | None, **arguments: Any) -> None:
        super().__init__(**arguments)
        if aggregate not in get_args(Aggregate):
            raise ValueError(f"aggregate takes one of {', '.join(map(repr, get_args(Aggregate)))}, got {aggregate!r}")
        functional.check_groups(axis, blocks)
        self.aggregate: Aggregate = aggregate
        self.axis, self.blocks = axis, blocks
        # A MetricCollection takes metrics for the same whose states have the same names and, after the first update,
        # the same values: those of weights that have not moved yet. So names tell apart what is not the same.
        kind = "_".join(str(part) for part in (type(self).__name__, aggregate, axis, blocks))
        self._total, self._count = f"{kind}_total", f"{kind}_count"
        zero = torch.zeros(())
        self.add_state(self._total, zero.to(accumulation_dtype(zero.device)), dist_reduce_fx="sum")
        self.add_state(self._count, zero.long(), dist_reduce_fx="sum")

    def update_values(self, values: Tensor) -> None:
        """Take values that are computed already.

        Args:
            values: numbers of any shape and floating point dtype; NaN is left out.

        Raises:
            TypeError: if they are no floating point tensor.
        """
        self._wrap_update(self._take)(values)

    @property
    def count(self) -> Tensor:
        """How many values this process has taken since the last reset; int64 without dimensions."""
        return getattr(self, self._count)  # type: ignore[no-any-return]

    def compute(self) -> Tensor:
        """The mean of all values since the last reset, over all processes; a tensor without dimensions."""
        return _BACK[self.aggregate](getattr(self, self._total) / self.count)

    def set_dtype(self, dst_type: str | torch.dtype) -> Self:
        """Without effect: sums stay float64."""
        return self

    def _take(self, values: Tensor) -> None:
        if not isinstance(values, Tensor) or not values.is_floating_point():
            got = values.dtype if isinstance(values, Tensor) else repr(values)
            raise TypeError(f"values takes a floating point tensor, got {got}")
        wide = values.detach().to(accumulation_dtype(values.device))
        known = ~wide.isnan()
        total = torch.where(known, _FORWARD[self.aggregate](wide), 0.0).sum()
        setattr(self, self._total, getattr(self, self._total) + total)
        setattr(self, self._count, self.count + known.sum())

    def _wrap_compute(self, compute: Callable[..., Any]) -> Callable[..., Any]:
        """Let NaN alone say that there was nothing to compute from; it is what torchmetrics also warns of."""
        wrapped = super()._wrap_compute(compute)

        @functools.wraps(compute)
        def quiet(*args: Any, **kwargs: Any) -> Any:
            if self.update_called:
                return wrapped(*args, **kwargs)
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="The ``compute`` method of metric")
                return wrapped(*args, **kwargs)

        return quiet

    def _apply(self, fn: Callable[[Tensor], Tensor], *_: Any, **__: Any) -> Self:
        """Follow the module to its device, but not into its precision: sums in bfloat16 would stand still."""

        def moved(state: Tensor) -> Tensor:
            device = fn(torch.empty_like(state)).device
            dtype = accumulation_dtype(device) if state.is_floating_point() else state.dtype
            if state.is_meta:  # nothing was counted there
                return torch.zeros_like(state, dtype=dtype, device=device)
            return state.to(dtype).to(device) if device.type != "cpu" else state.to(device).to(dtype)

        super()._apply(moved)
        return self


class AngularStep(_GroupMean):
    """By how many radians optimizer steps turn a weight.

    Per group and step ``atan2(|D_perp|, r + <D,u>)``, with the displacement ``D`` of the weights ``x``, ``r = |x|`` and
    ``u = x/r`` (:func:`lightning_sphere.functional.angular_step`); then the mean over groups and steps. The default is
    the root mean square, which theories of equilibrium predict.

    Args:
        axis: the dimension of the weight that indexes its groups; ``None`` takes the whole weight as one.
        blocks: how many equal consecutive blocks along ``axis`` are groups; ``None`` for each index.
        aggregate: ``"mean"``, ``"rms"`` or ``"geometric"``.
        **arguments: torchmetrics' own, such as ``sync_on_compute`` and ``process_group``.

    Raises:
        TypeError, ValueError: for a wrong argument, naming it, what it takes and what it got.

    Example::

        >>> import torch
        >>> from lightning_sphere.metrics import AngularStep
        >>> angle = AngularStep(axis=0)
        >>> angle.update(torch.tensor([[3.0, 0.0], [0.0, 2.0]]), torch.tensor([[3.0, 3.0], [0.0, 5.0]]))
        >>> angle.compute()  # one row turned by pi / 4, the other not at all
        tensor(0.5554, dtype=torch.float64)
    """

    def __init__(
        self, axis: int | None = 0, *, blocks: int | None = None, aggregate: Aggregate = "rms", **arguments: Any
    ) -> None:
        super().__init__(aggregate, axis, blocks, **arguments)

    def update(self, before: Tensor, after: Tensor) -> None:
        """Take one step.

        Args:
            before: a copy of the weights before the step, floating point, of any shape.
            after: the weights after it, of the same shape.

        Raises:
            TypeError, ValueError: for a wrong argument, naming it, what it takes and what it got.
        """
        self._take(functional.angular_step(before, after, axis=self.axis, blocks=self.blocks))


class EffectiveLearningRate(_GroupMean):
    """Learning rate of the equivalent optimization on the sphere.

    Per group and step ``lr / (r nu) / (1 + <x,D>/r^2)``, with the displacement ``D`` of the weights ``x``, ``r = |x|``,
    ``nu = r |b| / sqrt(d)`` and the optimizer's divisor ``b`` (:func:`lightning_sphere.functional.effective_lr`); then
    the mean over groups and steps. The default is the arithmetic one: times the number of steps it is the time that
    the optimization on the sphere has covered.

    Args:
        axis: the dimension of the weight that indexes its groups; ``None`` takes the whole weight as one.
        blocks: how many equal consecutive blocks along ``axis`` are groups; ``None`` for each index.
        aggregate: ``"mean"``, ``"rms"`` or ``"geometric"``.
        **arguments: torchmetrics' own, such as ``sync_on_compute`` and ``process_group``.

    Raises:
        TypeError, ValueError: for a wrong argument, naming it, what it takes and what it got.

    Example::

        >>> import torch
        >>> from lightning_sphere.metrics import EffectiveLearningRate
        >>> rate = EffectiveLearningRate(axis=0)
        >>> rate.update(torch.tensor([[2.0, 0.0]]), torch.tensor([[2.0, 0.1]]), lr=0.1)
        >>> rate.compute()  # lr / r^2
        tensor(0.0250, dtype=torch.float64)
    """

    def __init__(
        self, axis: int | None = 0, *, blocks: int | None = None, aggregate: Aggregate = "mean", **arguments: Any
    ) -> None:
        super().__init__(aggregate, axis, blocks, **arguments)

    def update(self, before: Tensor, after: Tensor, lr: float | Tensor, divisor: Tensor | None = None) -> None:
        """Take one step.

        Args:
            before: a copy of the weights before the step, floating point, of any shape.
            after: the weights after it, of the same shape.
            lr: the learning rate that the optimizer used, a number or a tensor with one element.
            divisor: what the optimizer divided the step by, of a shape that expands to the weights':
                ``sqrt(v_hat) + eps`` for Adam. ``None`` is 1, as for SGD.

        Raises:
            TypeError, ValueError: for a wrong argument, naming it, what it takes and what it got.
        """
        self._take(functional.effective_lr(before, after, lr, divisor, axis=self.axis, blocks=self.blocks))


class WeightNorm(_GroupMean):
    """Length of a weight, ``|x|`` per group; then the mean over groups and steps.

    Args:
        axis: the dimension of the weight that indexes its groups; ``None`` takes the whole weight as one.
        blocks: how many equal consecutive blocks along ``axis`` are groups; ``None`` for each index.
        aggregate: ``"mean"``, ``"rms"`` or ``"geometric"``.
        **arguments: torchmetrics' own, such as ``sync_on_compute`` and ``process_group``.

    Raises:
        TypeError, ValueError: for a wrong argument, naming it, what it takes and what it got.

    Example::

        >>> import torch
        >>> from lightning_sphere.metrics import WeightNorm
        >>> length = WeightNorm(axis=None)
        >>> length.update(torch.tensor([[3.0, 0.0], [0.0, 4.0]]))
        >>> length.compute()
        tensor(5., dtype=torch.float64)
    """

    def __init__(
        self, axis: int | None = 0, *, blocks: int | None = None, aggregate: Aggregate = "mean", **arguments: Any
    ) -> None:
        super().__init__(aggregate, axis, blocks, **arguments)

    def update(self, weight: Tensor) -> None:
        """Take the weights of one step.

        Args:
            weight: floating point, of any shape.

        Raises:
            TypeError, ValueError: for a wrong argument, naming it, what it takes and what it got.
        """
        self._take(functional.norm(weight, axis=self.axis, blocks=self.blocks))
