"""Small instances of real architectures, to hold discovery against measured invariance.

Widths and depths are tiny; the order of operations is that of the well-known libraries.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable

from . import classic, dense, diffusion, gates, generative, heads, hybrids, losses, mobile, rare, tokens, windows
from .case import Case

MODULES = (classic, mobile, gates, dense, generative, diffusion, tokens, windows, hybrids, heads, losses, rare)


def _is_case(function: object, module: str) -> bool:
    """Whether a function of a module builds a case without being told anything."""
    if (
        not inspect.isfunction(function)
        or function.__module__ != module
        or function.__annotations__["return"] != "Case"
    ):
        return False
    kinds = [p.default is p.empty for p in inspect.signature(function).parameters.values()]
    return not any(kinds)


ARCHITECTURES: dict[str, Callable[[], Case]] = {
    name: function
    for module in MODULES
    for name, function in vars(module).items()
    if _is_case(function, module.__name__)
}
"""Every architecture by name."""
