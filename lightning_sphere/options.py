"""The arguments that `SphereMonitor` and `SphereTracker` share, checked when they are given."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from os import PathLike
from typing import Any

from torch.optim import Optimizer

from lightning_sphere.checkpoints import check_reference
from lightning_sphere.directions import UNKNOWN, direction_of
from lightning_sphere.given import TAKES, Groups, checked
from lightning_sphere.histograms import SHOWN, USUAL
from lightning_sphere.quantities import CONTEXT, CORE, PHENOMENA, QUANTITIES

SELECTION = "'core', 'full', or names of quantities"
"""What an argument that selects quantities takes."""


@dataclass(frozen=True)
class Options:
    """Checked arguments.

    Raises:
        TypeError, ValueError: naming the argument, what it takes and what it got.
    """

    every_n_steps: int = 1
    include: tuple[str, ...] | None = None
    exclude: tuple[str, ...] | None = None
    groups: Groups | None = None
    quantities: tuple[str, ...] = "core"  # type: ignore[assignment]  # turned into names
    drift_from: Any = None
    per_layer_scalars: bool | int = False
    histograms: bool | int = False
    custom_scalars: bool = False
    device_budget_mb: float = 64.0
    file_budget_mb: float = 64.0
    strict: bool = False

    def __post_init__(self) -> None:
        check_count("every_n_steps", self.every_n_steps)
        object.__setattr__(self, "quantities", selected_quantities(self.quantities))
        if self.drift_from is not None:
            check_reference(self.drift_from)
            if not {"drift", "straightness"} & set(self.quantities):
                raise ValueError("drift_from is of no use here: quantities leaves out 'drift'")
        check_stride("per_layer_scalars", self.per_layer_scalars)
        check_stride("histograms", self.histograms)
        if self.histograms is not False and not set(SHOWN) & set(self.quantities):
            raise ValueError(f"histograms is of no use here: quantities has none of {', '.join(SHOWN)}")
        check_flag("custom_scalars", self.custom_scalars)
        check_flag("strict", self.strict)
        _check_size("device_budget_mb", self.device_budget_mb)
        _check_size("file_budget_mb", self.file_budget_mb)
        if self.include is not None:
            object.__setattr__(self, "include", _patterns("include", self.include))
            if not self.include:
                raise ValueError("include takes at least one name or pattern (None measures all), got none")
        if self.exclude is not None:
            object.__setattr__(self, "exclude", _patterns("exclude", self.exclude))
        if isinstance(self.groups, type):
            raise TypeError(f"groups takes {TAKES}, got {self.groups!r}")
        if self.groups is not None and not callable(self.groups):
            object.__setattr__(self, "groups", checked(self.groups))

    @property
    def per_layer_every(self) -> int:
        """Curves of single layers have a point at each so many recorded steps; 0 for none."""
        return int(self.per_layer_scalars)

    @property
    def histograms_every(self) -> int:
        """Histograms are made at each so many recorded steps; 0 for never."""
        return USUAL if self.histograms is True else int(self.histograms)

    def check_names(self, known: Iterable[str]) -> None:
        """Make sure that every pattern of ``include`` and ``exclude`` names something.

        Args:
            known: names of all modules and parameters.

        Raises:
            ValueError: naming the pattern and the closest known names.
        """
        names = sorted(name for name in set(known) if name)
        for argument, patterns in (("include", self.include or ()), ("exclude", self.exclude or ())):
            for pattern in patterns:
                if not any(_matches(pattern, name) for name in names):
                    close = difflib.get_close_matches(pattern, names, n=3)
                    hint = f"; did you mean {', '.join(map(repr, close))}?" if close else ""
                    raise ValueError(
                        f"{argument} takes names of modules or parameters, or patterns such as 'layer1.*'; "
                        f"{pattern!r} matches none{hint}"
                    )

    def selects(self, names: Sequence[str]) -> bool:
        """Whether a layer known by any of these names (its own, its parameter's) is to be measured."""
        included = self.include is None or any(_matches(p, name) for p in self.include for name in names)
        return included and not any(_matches(p, name) for p in self.exclude or () for name in names)


def _matches(pattern: str, name: str) -> bool:
    """A name matches itself, a pattern that fits it, and the name of a module that contains it."""
    return fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}.*")


def _check_size(argument: str, value: Any) -> None:
    """Raise unless the value is a positive number of MiB."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{argument} takes a number of MiB, got {value!r}")
    if not 0 < value < float("inf"):
        raise ValueError(f"{argument} takes a positive number of MiB, got {value!r}")


def _patterns(argument: str, value: Any) -> tuple[str, ...]:
    values = (value,) if isinstance(value, str) else value
    if not isinstance(values, (list, tuple, set, frozenset)) or not all(isinstance(item, str) for item in values):
        raise TypeError(f"{argument} takes a name or a sequence of names or patterns, got {value!r}")
    return tuple(values)


def selected_quantities(value: Any) -> tuple[str, ...]:
    """The names of the quantities that an argument selects, in recorded order.

    Args:
        value: ``"core"``, ``"full"``, or the name of a quantity, or several.

    Raises:
        TypeError, ValueError: for anything else, naming the argument ``quantities``, what it takes and what it got.
    """
    if isinstance(value, str) and value in ("core", "full"):
        selected = (*CORE, *(PHENOMENA if value == "full" else ()), *CONTEXT)
        return tuple(quantity.name for quantity in selected)
    value = (value,) if isinstance(value, str) else value
    if not isinstance(value, Collection) or not all(isinstance(name, str) for name in value):
        raise TypeError(f"quantities takes {SELECTION}, got {value!r}")
    unknown = sorted(set(value) - set(QUANTITIES))
    if unknown or not value:
        got = ", ".join(map(repr, unknown)) if unknown else "none"
        raise ValueError(f"quantities takes {SELECTION} ({', '.join(QUANTITIES)}), got {got}")
    return tuple(name for name in QUANTITIES if name in value)


def check_count(argument: str, value: Any) -> None:
    """Raise unless the value is a positive integer."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{argument} takes a positive integer, got {value!r}")
    if value < 1:
        raise ValueError(f"{argument} takes a positive integer, got {value!r}")


def check_stride(argument: str, value: Any) -> None:
    """Raise unless the value is a bool, or a positive integer: each so many recorded steps."""
    if isinstance(value, bool):
        return
    if not isinstance(value, int):
        raise TypeError(f"{argument} takes True, False or a positive integer, got {value!r}")
    if value < 1:
        raise ValueError(f"{argument} takes True, False or a positive integer, got {value!r}")


def check_flag(argument: str, value: Any) -> None:
    """Raise unless the value is a bool."""
    if not isinstance(value, bool):
        raise TypeError(f"{argument} takes True or False, got {value!r}")


def optimizers_in(value: Any) -> list[Optimizer]:
    """The optimizers of an argument that takes one or several."""
    found = list(value) if isinstance(value, Iterable) else [value]
    for item in found:
        if not isinstance(item, Optimizer):
            got = type(item).__name__
            raise TypeError(f"optimizer takes a torch.optim.Optimizer or a sequence of them, got {got}")
    if not found:
        raise ValueError("optimizer takes at least one torch.optim.Optimizer, got none")
    return found


def check_outlets(log_dir: Any, writer: Any, sinks: Any, position: Any) -> None:
    """Raise unless the arguments that say where recordings go, and where on the x axis, are of use."""
    if log_dir is not None and writer is not None:
        raise ValueError("log_dir and writer both say where to write: give one of them")
    if log_dir is not None and not isinstance(log_dir, (str, PathLike)):
        raise TypeError(f"log_dir takes a path, got {log_dir!r}")
    if not isinstance(sinks, Sequence) or not all(callable(getattr(sink, "write", None)) for sink in sinks):
        raise TypeError(f"sinks takes a sequence of objects with write(recording) and close(), got {sinks!r}")
    if position is not None and not callable(position):
        raise TypeError(f"position takes a function, got {position!r}")


def applicable(names: Sequence[str], optimizers: Sequence[Optimizer]) -> tuple[str, ...]:
    """Some quantities without those that are of SGD alone, where no optimizer is SGD."""
    without = all((direction_of(optimizer) or UNKNOWN).radius is None for optimizer in optimizers)
    return tuple(name for name in names if not (without and name == "adam_equivalence"))
