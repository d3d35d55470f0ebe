"""What each optimizer's step is made of: direction, divisor, rate and decay, read from its state.

Known are torch's SGD, Adam, AdamW, NAdam, RAdam, Adamax, Adagrad, RMSprop, Adafactor and Muon, Lion of any package, and
the package's own reference optimizers; :func:`register` adds others. An optimizer that is not known is measured with
``b = 1``.
"""

from lightning_sphere.directions import adaptive, momentum, scaled  # noqa: F401  # they register their families
from lightning_sphere.directions.direction import UNKNOWN, Direction, Numbers, Scalars, StepTensors, Terms
from lightning_sphere.directions.registry import asked_displacement, direction_of, register, unknown_optimizer

__all__ = [
    "UNKNOWN",
    "Direction",
    "Numbers",
    "Scalars",
    "StepTensors",
    "Terms",
    "asked_displacement",
    "direction_of",
    "register",
    "unknown_optimizer",
]
