"""Union-find over the rows of one parameter: which rows must be scaled together, and which must not be scaled."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.intp]
"""Row numbers of a parameter, counted from 1; 0 stands for "does not depend on the parameter"."""


class Partition:
    """Classes of rows that share one exponent.

    Row numbers start at 1. Number 0 is the exponent zero itself: a row in the class of 0 must not be scaled, it is
    *dead*. One label array serves both purposes: a label is the smallest row number of its class.

    Args:
        rows: Number of rows.
    """

    __slots__ = ("joined", "labels", "normalized", "seen")

    def __init__(self, rows: int) -> None:
        self.labels: IntArray = np.arange(rows + 1)
        self.joined = False
        self.normalized: npt.NDArray[np.bool_] = np.zeros(rows + 1, dtype=bool)
        """Rows that a norm was found for; where others must not be scaled, rows that nothing reads do not count."""
        self.seen: npt.NDArray[np.bool_] | None = None
        """Rows that were looked up, for parameters read by index; ``None`` when all rows are read."""

    def canonical(self, rows: IntArray) -> IntArray:
        """Replace every row number by the label of its class."""
        if not self.joined:
            return rows
        labels: IntArray = self.labels[rows]
        return labels

    def join_all(self, rows: IntArray) -> None:
        """Put all of ``rows`` into one class."""
        labels = self.labels[rows]
        lowest = labels.min()
        if (labels != lowest).any():
            chosen = np.zeros(self.labels.size, dtype=bool)
            chosen[labels] = True
            self.labels = np.where(chosen[self.labels], lowest, self.labels)
            self.joined = True

    def join_pairs(self, first: IntArray, second: IntArray) -> None:
        """Put ``first[i]`` and ``second[i]`` into one class, for every ``i``."""
        a, b = self.labels[first.ravel()], self.labels[second.ravel()]
        while (different := a != b).any():
            a, b = a[different], b[different]
            target = np.arange(self.labels.size)
            np.minimum.at(target, np.maximum(a, b), np.minimum(a, b))
            while not np.array_equal(target, following := target[target]):
                target = following
            self.labels, a, b = target[self.labels], target[a], target[b]
            self.joined = True

    def join_along(self, rows: IntArray, axes: Sequence[int]) -> IntArray:
        """Put all rows that differ along ``axes`` only into one class, and collapse these axes to size 1."""
        wide = [axis for axis in axes if rows.shape[axis] > 1]
        if not wide:
            return rows
        index: list[Any] = [slice(None)] * rows.ndim
        for axis in wide:
            index[axis] = slice(0, 1)
        first = rows[tuple(index)]
        if first.size == 1:
            self.join_all(rows)
        else:
            self.join_pairs(np.broadcast_to(first, rows.shape), rows)
        return self.canonical(first)

    @property
    def alive(self) -> bool:
        """Whether any row may be scaled."""
        return bool(self.labels[1:].any())

    @property
    def whole(self) -> bool:
        """Whether all rows are in one class."""
        return self.labels.size == 2 or bool((self.labels[1:] == self.labels[1]).all())

    def note_seen(self, rows: IntArray) -> None:
        """Note that only some rows of a parameter were read, by index."""
        if self.seen is None:
            self.seen = np.zeros(self.labels.size - 1, dtype=bool)
        self.seen[rows[rows > 0] - 1] = True

    def blocks(self) -> tuple[int, tuple[int, ...] | None] | None:
        """Express the classes as equal consecutive blocks.

        Returns:
            The number of blocks, the finest that no class crosses, and the indices of the blocks that may be scaled
            (``None`` for all of them); ``None`` if nothing may be scaled.
        """
        labels = self.labels[1:]
        rows = labels.size
        if not labels.all() and self.normalized.any():
            classes = np.isin(labels, self.labels[np.flatnonzero(self.normalized)])
            labels = np.where(classes, labels, 0)
        if self.seen is not None:
            return self._looked_up_blocks(labels)
        if not labels.any():
            return None
        if (labels == labels[0]).all():
            return 1, None
        if not self.joined:
            return rows, None
        for size in range(1, rows + 1):
            if rows % size:
                continue
            blocks = labels.reshape(rows // size, size)
            dead = (blocks == 0).any(axis=1)
            if not (dead == (blocks == 0).all(axis=1)).all():
                continue
            # A class must not cross blocks: its label, the smallest row in it, then lies in the block itself.
            if ((blocks - 1) // size != np.arange(rows // size)[:, None])[~dead].any():
                continue
            members = None if not dead.any() else tuple(np.flatnonzero(~dead).tolist())
            return rows // size, members
        return None

    def _looked_up_blocks(self, labels: IntArray) -> tuple[int, None] | None:
        """Blocks of a table read by index: what joins the rows of this batch joins others in the next one."""
        seen = labels[self.seen]
        if not seen.size or not labels.all():  # rows that were not looked up are dead only by another use
            return None
        return (labels.size, None) if np.unique(seen).size == seen.size else (1, None)
