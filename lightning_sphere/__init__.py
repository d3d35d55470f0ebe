"""What a training run really does to its normalized weights.

``SphereMonitor`` is a callback for Lightning's Trainer, ``SphereTracker`` the same for a plain loop. Everything is
imported on first use: TensorBoard imports this package at its own start and must not pay for torch or Lightning.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from lightning_sphere._version import __version__

if TYPE_CHECKING:
    from lightning_sphere.callback import SphereMonitor
    from lightning_sphere.discovery import Discovery, discover
    from lightning_sphere.groups import GroupPart, ScaleGroup
    from lightning_sphere.tensorboard.reader import RunRecord, read_run
    from lightning_sphere.tracker import SphereTracker
    from lightning_sphere.verdict import Verdict

_HOME = {
    "Discovery": "lightning_sphere.discovery",
    "GroupPart": "lightning_sphere.groups",
    "RunRecord": "lightning_sphere.tensorboard.reader",
    "ScaleGroup": "lightning_sphere.groups",
    "SphereMonitor": "lightning_sphere.callback",
    "SphereTracker": "lightning_sphere.tracker",
    "Verdict": "lightning_sphere.verdict",
    "discover": "lightning_sphere.discovery",
    "read_run": "lightning_sphere.tensorboard.reader",
}

__all__ = [
    "Discovery",
    "GroupPart",
    "RunRecord",
    "ScaleGroup",
    "SphereMonitor",
    "SphereTracker",
    "Verdict",
    "__version__",
    "discover",
    "read_run",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
