"""What the reference optimizers have in common: arguments, state, and the way of a step."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from numbers import Real
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

from lightning_sphere.optim.choice import Choice, Groups, check_invariant
from lightning_sphere.optim.cuts import Cut


@dataclass(frozen=True)
class Batch:
    """The tensors of one param group that are in scale-invariant groups with a gradient; complex ones as real."""

    options: dict[str, Any]
    """The param group."""
    params: list[Tensor]
    grads: list[Tensor]
    """``p.grad`` itself, not to be written to; zeros where another tensor of the group has a gradient, and this one has
    none."""
    states: list[dict[str, Tensor]]
    cuts: list[Cut]
    foreach: bool

    def values(self, key: str) -> list[Tensor]:
        """An entry of all states, as real tensors that share its memory."""
        return [_as_real(state[key], param.dim()) for state, param in zip(self.states, self.params, strict=True)]


class GroupedOptimizer(Optimizer):
    """An optimizer that steps scale-invariant groups in a way of its own, and all else as a known one does."""

    shared: ClassVar[tuple[str, ...]] = ()
    """Options that all tensors of one group must have in common."""

    def __init__(self, params: Any, defaults: dict[str, Any], groups: Groups) -> None:
        self._choice = Choice.of(groups)
        self._cuts: dict[Tensor, Cut] | None = None
        super().__init__(params, {**defaults, "invariant": None})
        self._cuts = self._choice.cuts(self.param_groups, self.shared)

    # -- what the subclasses say -----------------------------------------------------------------------------------

    @abstractmethod
    def _check(self, options: dict[str, Any]) -> None:
        """Raise unless the options of a param group are right."""

    @abstractmethod
    def _new_state(self, param: Tensor, cut: Cut | None) -> dict[str, Tensor]:
        """The state of a tensor before its first step; ``cut`` is None where it is in no group."""

    @abstractmethod
    def _step_plain(self, options: dict[str, Any], params: list[Tensor], grads: list[Tensor]) -> None:
        """Step the tensors of one param group that are in no scale-invariant group."""

    @abstractmethod
    def _step_grouped(self, batches: Sequence[Batch]) -> None:
        """Step all tensors that are in scale-invariant groups."""

    # -- what torch expects ----------------------------------------------------------------------------------------

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a param group, as with any optimizer of torch.

        Args:
            param_group: ``params`` and options. A group of ``groups`` that it gives some tensors of must have all of
                them in the optimizer by the next step.

        Raises:
            TypeError, ValueError: naming the option, what it takes and what it got.
        """
        if isinstance(param_group, dict):
            self._check({**self.defaults, **param_group})
        super().add_param_group(param_group)
        self._cuts = None

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Make one step.

        Args:
            closure: computes the loss anew and its gradients.

        Returns:
            What the closure returned; ``None`` without one.

        Raises:
            RuntimeError: if a gradient is sparse, or only some tensors of a group are frozen; nothing is changed then.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._refuse_sparse_gradients()
        cuts = self._current_cuts()
        moving = {cuts[p].layer for options in self.param_groups for p in options["params"] if _moves(p) and p in cuts}
        self._refuse_half_frozen_groups(moving)
        batches = []
        for options in self.param_groups:
            plain = [param for param in options["params"] if param not in cuts and _moves(param)]
            grouped = [param for param in options["params"] if param in cuts and cuts[param].layer in moving]
            for param in chain(plain, grouped):
                if not self.state[param]:
                    self.state[param] = self._new_state(param, cuts.get(param))
            if plain:
                self._step_plain(options, plain, [param.grad for param in plain])
            if grouped:
                batches.append(self._batch(options, grouped, cuts))
        if batches:
            self._step_grouped(batches)
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state, in the precision that it was saved in.

        Args:
            state_dict: of an optimizer of this class with the same groups.

        Raises:
            ValueError: if it is the state of tensors that were grouped otherwise, or of another optimizer.
        """
        numbers = chain.from_iterable(options["params"] for options in state_dict["param_groups"])
        own = list(chain.from_iterable(options["params"] for options in self.param_groups))
        cuts = self._current_cuts()
        loaded = [(p, state_dict["state"][n]) for n, p in zip(numbers, own, strict=False) if n in state_dict["state"]]
        for param, saved in loaded:
            expected = {key: tuple(value.shape) for key, value in self._new_state(param, cuts.get(param)).items()}
            got = {key: tuple(v.shape) if isinstance(v, Tensor) else v for key, v in saved.items()}
            if saved and got != expected:
                raise ValueError(
                    f"state_dict takes the state of a {type(self).__name__} with the same groups: a tensor of shape "
                    f"{tuple(param.shape)} takes {expected}, got {got}"
                )
        super().load_state_dict(state_dict)
        for param, saved in loaded:  # torch casts to the weights' precision, which is too low for second moments
            for key, value in saved.items():
                device = torch.device("cpu") if key == "step" else param.device
                if (value.dtype, value.device) != (self.state[param][key].dtype, device) or key == "step":
                    self.state[param][key] = value.to(device, copy=True)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_choice": self._choice}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for options in self.param_groups:
            options.setdefault("invariant", None)  # what torch's own optimizers have saved is without
        self._cuts = None  # they are kept by tensor, and these may be others

    def _batch(self, options: dict[str, Any], params: list[Tensor], cuts: dict[Tensor, Cut]) -> Batch:
        states = [self.state[param] for param in params]
        for state in states:
            state["step"] += 1
        grads = [torch.zeros_like(param) if param.grad is None else param.grad for param in params]
        return Batch(
            options,
            [_real(param) for param in params],
            [_real(grad) for grad in grads],
            states,
            [cuts[param] for param in params],
            _wants_foreach(options["foreach"], params),
        )

    def _current_cuts(self) -> dict[Tensor, Cut]:
        if self._cuts is None:
            self._cuts = self._choice.cuts(self.param_groups, self.shared)
        return self._cuts

    def _refuse_sparse_gradients(self) -> None:
        for options in self.param_groups:
            for number, param in enumerate(options["params"]):
                if param.grad is not None and param.grad.layout != torch.strided:
                    name = options["param_names"][number] if "param_names" in options else f"number {number}"
                    raise RuntimeError(
                        f"{type(self).__name__} takes dense gradients, got a sparse one for parameter {name} of shape "
                        f"{tuple(param.shape)}; an embedding gives dense ones with sparse=False"
                    )

    def _refuse_half_frozen_groups(self, moving: set[int]) -> None:
        for param, cut in self._current_cuts().items():
            if cut.layer in moving and param.grad is None and not param.requires_grad:
                raise RuntimeError(
                    f"{type(self).__name__} steps a scale-invariant group as a whole, but a tensor of shape "
                    f"{tuple(param.shape)} is frozen while others of {self._choice.groups[cut.layer].name!r} are not"
                )


def keep_divisors(batch: Batch, divisors: Sequence[Tensor]) -> None:
    """Keep in the state what the last step was divided by."""
    for state, divisor in zip(batch.states, divisors, strict=True):
        if state["divisor"].is_complex():
            divisor = torch.view_as_complex(divisor.contiguous())
        state["divisor"] = divisor.view(state["divisor"].shape)


def compact_zeros(param: Tensor, cut: Cut) -> Tensor:
    """A number per group, which broadcasts against the tensor: zeros in float32, float64 for float64."""
    shape = cut.compact[: param.dim()]
    return torch.zeros(shape, dtype=torch.promote_types(_real(param).dtype, torch.float32), device=param.device)


def full_zeros(param: Tensor) -> Tensor:
    """A number per entry: zeros in at least float32."""
    return torch.zeros_like(param, dtype=torch.promote_types(param.dtype, torch.float32))


def new_step() -> Tensor:
    """A count of steps; on the CPU, as torch's optimizers have it, so that reading it never waits for a device."""
    return torch.tensor(0.0, dtype=torch.float32)


def check_number(argument: str, value: Any, *, tensor: bool = False) -> None:
    """Raise unless the value is a number from 0 on, or, where allowed, a tensor of one."""
    takes = f"{argument} takes a number from 0 on{', or a tensor of one' if tensor else ''}, got {value!r}"
    if tensor and isinstance(value, Tensor):
        if value.numel() != 1:
            raise ValueError(takes)
    elif isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(takes)
    if not 0 <= value < float("inf"):
        raise ValueError(takes)


def check_common(options: dict[str, Any]) -> None:
    """Raise unless the options that all these optimizers have are right."""
    check_number("lr", options["lr"], tensor=True)
    check_number("weight_decay", options["weight_decay"])
    if options["foreach"] not in (None, True, False):
        raise TypeError(f"foreach takes True, False or None, got {options['foreach']!r}")
    if not isinstance(options["maximize"], bool):
        raise TypeError(f"maximize takes True or False, got {options['maximize']!r}")
    check_invariant(options.get("invariant"))


def plain_foreach(options: dict[str, Any]) -> bool | None:
    """``foreach`` for torch's own functions, which cannot combine it with a tensor as lr."""
    foreach: bool | None = options["foreach"]
    return False if isinstance(options["lr"], Tensor) else foreach


def _wants_foreach(foreach: bool | None, params: Sequence[Tensor]) -> bool:
    """As torch's optimizers choose: if not told otherwise, for plain tensors that are not on the CPU."""
    if foreach is not None:
        return foreach
    return all(type(param) in (Tensor, Parameter) and param.device.type != "cpu" for param in params)


def _moves(param: Tensor) -> bool:
    return param.grad is not None


def _real(tensor: Tensor) -> Tensor:
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


def _as_real(value: Tensor, dimensions: int) -> Tensor:
    """An entry of the state in the dimensions of the tensor as a real one."""
    value = _real(value)
    return value.unsqueeze(-1) if value.dim() < dimensions else value
