"""Rules for tables that are read by index."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from lightning_sphere.discovery.degrees import Value, constant
from lightning_sphere.discovery.partition import IntArray
from lightning_sphere.discovery.registry import Context, rule


@rule("Embedding")
def embedding(ctx: Context) -> Value:
    """Rows of a table, looked up by index."""
    table = ctx.settle(ctx.source())
    if getattr(ctx.node._raw_saved_indices, "unpack_hook", None) is not None:  # which rows are read stays unknown
        table = ctx.uniform(table, [0])
    indices: IntArray | None = None

    def look_up(rows: IntArray) -> IntArray:
        nonlocal indices
        if rows.shape[0] == 1:
            return rows.reshape((1,) * (len(ctx.shape) - 1) + rows.shape[1:])
        if indices is None:
            indices = _indices(ctx.node._saved_indices, rows.shape[0])
        found: IntArray = rows[indices].reshape((*indices.shape, rows.shape[1]))
        return found

    degree = table.degree.map(look_up)
    for symbol, terms in degree.fields.items():
        if any(rows.shape[-1] == 1 and indices is not None for _, rows in terms):
            ctx.system.partitions[symbol].note_seen(np.concatenate([rows.ravel() for _, rows in terms]))
    return Value(ctx.shape, degree, varies=(True,) * len(ctx.shape))


def _indices(saved: Tensor, rows: int) -> IntArray:
    """The indices that were looked up; a tensor without numbers stands for ones that differ as far as they can."""
    if type(saved).__name__ == "FakeTensor":
        return np.arange(saved.numel()).reshape(saved.shape) % rows
    return np.asarray(saved.detach().cpu().numpy(), dtype=np.intp)


@rule("EmbeddingBag")
def embedding_bag(ctx: Context) -> Sequence[Value]:
    """Sums or means of looked up rows: all rows must scale equally."""
    table = ctx.settle(ctx.uniform(ctx.source(), [0]))
    value = Value(ctx.shape, table.degree, varies=(True,) * len(ctx.shape))
    return [value, *(constant(shape) for shape in ctx.shapes[1:])]
