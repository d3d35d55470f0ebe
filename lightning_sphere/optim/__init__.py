"""Reference optimizers of Roburin et al. (arXiv 2006.13382): what Adam does to normalized weights, taken away piece by
piece.

On scale-invariant groups, Adam differs from SGD in three ways: its element-wise division deforms directions, its
moments are those of other points of the sphere, and the radius moves and so schedules the learning rate.
:class:`AdamS` is without the first, :class:`AdamSRT` without the second as well, and :class:`AdamGStar`, without
momentum and at a fixed radius, is SGD written as an adaptive method on the sphere.
"""

from __future__ import annotations

from lightning_sphere.optim import directions  # noqa: F401  # makes them known to those who measure
from lightning_sphere.optim.adamg import AdamGStar
from lightning_sphere.optim.adams import AdamS, AdamSRT

__all__ = ["AdamGStar", "AdamS", "AdamSRT"]
