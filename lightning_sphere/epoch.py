"""Means over an epoch, for whoever watches a run once an epoch: early stopping, checkpoints, tables of runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lightning_sphere.metrics import AngularStep, EffectiveLearningRate, WeightNorm
from lightning_sphere.recording import MEDIAN, RMS, Recording, shown_layers

TAG = "sphere_epoch/"
_STAT = {"norm": MEDIAN, "angular_step": RMS, "effective_lr": MEDIAN}


class EpochMetrics:
    """Norm, angular step and effective learning rate over the steps of an epoch and the layers that count.

    ``angular_step`` is the root mean square of the layers' own (over their groups), ``norm`` and ``effective_lr`` are
    the means of the layers' medians, each layer and recorded step counting once. The layers are those that a
    normalization follows, as known when the steps were written; all if there are none. NaN (unknown) is left out.

    It is a sink for the recordings of the one process that measures. The others have one that stays empty, because
    :meth:`results` adds up the sums of all processes. Sums wait on the CPU, since that is where recordings arrive.
    """

    def __init__(self) -> None:
        self._epoch: int | None = None
        self._metrics: dict[str, WeightNorm | AngularStep | EffectiveLearningRate] = {
            "norm": WeightNorm(),
            "angular_step": AngularStep(),
            "effective_lr": EffectiveLearningRate(),
        }
        for metric in self._metrics.values():
            metric.persistent(True)

    def begin(self, epoch: int, *, measures: bool) -> None:
        """Start an epoch, or go on with the one that a checkpoint was written in.

        Args:
            epoch: its number.
            measures: whether this process is the one that measures; what a checkpoint holds is counted only there.
        """
        if epoch != self._epoch or not measures:
            self.clear()
        self._epoch = epoch

    def write(self, recording: Recording) -> None:
        """Take the steps of one flush."""
        rows = recording.table[:, shown_layers(recording.schema)]
        for name, metric in self._metrics.items():
            if name in recording.schema.quantities:
                metric.update_values(torch.from_numpy(rows[:, :, recording.schema.quantities.index(name), _STAT[name]]))

    def close(self) -> None:
        """Nothing to do: the epoch is not over where a tracker ends."""

    def results(self, device: torch.device) -> dict[str, Tensor]:
        """Means over all processes, each of which must call this; then start afresh.

        Args:
            device: where processes exchange tensors.

        Returns:
            Tensors without dimensions by tag, the same in all processes; what is unknown is missing.
        """
        try:
            means = {TAG + name: metric.to(device).compute() for name, metric in self._metrics.items()}
        finally:
            self.clear()
        return {tag: mean for tag, mean in means.items() if not mean.isnan()}

    def state_dict(self) -> dict[str, Any]:
        """Sums, counts and the epoch's number: tensors and plain types; empty if nothing was counted."""
        if not any(metric.count for metric in self._metrics.values()):
            return {}
        sums = {name: dict(metric.state_dict()) for name, metric in self._metrics.items()}
        return {"number": self._epoch, "sums": sums}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what :meth:`state_dict` gave."""
        self.clear()
        if state:
            for name, metric in self._metrics.items():
                metric.load_state_dict(state["sums"][name])
            self._epoch = state["number"]

    def clear(self) -> None:
        """Forget everything."""
        self._epoch = None
        for metric in self._metrics.values():
            metric.to("cpu").reset()
