"""Places for recordings other than TensorBoard: any logger that takes scalars, and the memory of the run itself."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from lightning_sphere.recording import MEDIAN, Recording
from lightning_sphere.tensorboard.schema import TableSchema


class ScalarSink:
    """Gives the summary curves to a logger, step by step.

    Args:
        log_metrics: ``log_metrics(metrics, step)`` of the logger.
    """

    def __init__(self, log_metrics: Callable[[dict[str, float], int], None]) -> None:
        self._log_metrics = log_metrics

    def write(self, recording: Recording) -> None:
        """Log the curves' known values of every step."""
        for row, step in enumerate(recording.steps.tolist()):
            values = {tag: float(curve[row]) for tag, curve in recording.scalars.items()}
            known = {tag: value for tag, value in values.items() if value == value}
            if known:
                self._log_metrics(known, step)

    def close(self) -> None:
        """Nothing to do: the logger belongs to the user."""


class History:
    """Remembers what the summary at the end needs: each layer's norm at the start, and the last steps.

    Args:
        window: how many recorded steps count as the last ones.
    """

    def __init__(self, window: int) -> None:
        self.schema: TableSchema | None = None
        self.first_norm: dict[str, float] = {}
        self.steps = 0
        """Recorded steps, skipped ones included."""
        self._recent: deque[tuple[TableSchema, npt.NDArray[np.float32]]] = deque(maxlen=window)

    def write(self, recording: Recording) -> None:
        """Take the medians of the last steps."""
        self.schema = recording.schema
        self.steps += len(recording)
        medians = recording.table[..., MEDIAN]
        names = recording.schema.quantities
        norm = names.index("norm") if "norm" in names else None
        for index, layer in enumerate(recording.schema.layers if norm is not None else ()):
            if layer not in self.first_norm:
                known = medians[:, index, norm]
                known = known[~np.isnan(known)]
                if len(known):
                    self.first_norm[layer] = float(known[0])
        self._recent.extend((recording.schema, row) for row in medians)

    def close(self) -> None:
        """Nothing to do."""

    def recent(self) -> npt.NDArray[np.float32]:
        """Medians of the last steps that have the current layers, ``[steps, layers, quantities]``."""
        rows = [row for schema, row in self._recent if self.schema is not None and schema.layers == self.schema.layers]
        return np.stack(rows) if rows else np.empty((0, 0, 0), dtype=np.float32)
