"""Discovery of scale-invariant groups from the autograd graph of a loss.

The graph is read from the parameters to the loss. Every value gets a degree: how it scales when rows of a parameter
are scaled. Products add degrees, sums demand equal ones, functions that are not homogeneous demand none, and a
normalization starts again from none. What may be scaled in the end without changing the loss is invariant.

    entry -> graph (what there is) -> interpret (a rule per operation) -> solve (classes of rows) -> result
"""

from __future__ import annotations

from lightning_sphere.discovery.entry import discover
from lightning_sphere.discovery.result import Discovery, merge

__all__ = ["Discovery", "discover", "merge"]
