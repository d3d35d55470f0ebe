"""The argument ``drift_from``: from what it names to the weights that drift is measured from."""

from __future__ import annotations

import logging

from torch import nn

from lightning_sphere.checkpoints import Source, load_reference, match
from lightning_sphere.measurement.reference import ReferenceWeights

_log = logging.getLogger("lightning_sphere")


def reference_weights(drift_from: Source | None, model: nn.Module) -> tuple[ReferenceWeights, dict[str, str]]:
    """The weights that drift is measured from.

    Args:
        drift_from: a checkpoint's path, a mapping of names to tensors, or a module. ``None``: the weights that each
            parameter has when it is first measured.
        model: the network; a log entry says of which of its weights nothing is known.

    Returns:
        The weights; and why a parameter has none, by its name.

    Raises:
        TypeError, ValueError, FileNotFoundError: see :func:`lightning_sphere.checkpoints.load_reference`.
    """
    if drift_from is None:
        return ReferenceWeights(), {}
    found, missing = match(load_reference(drift_from), model)
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    without = [name for name in missing if len(shapes[name]) > 1]
    if without:
        _log.warning(
            "drift_from has no weights for %d of the model's tensors, whose drift stays unknown: %s (%s)%s",
            len(without),
            without[0],
            missing[without[0]],
            " and others" if len(without) > 1 else "",
        )
    return ReferenceWeights(found), missing
