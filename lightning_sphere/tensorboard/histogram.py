"""Histograms as TensorBoard's own plugin reads them, from counts."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from tensorboard.compat.proto.summary_pb2 import DATA_CLASS_TENSOR, Summary
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
from tensorboard.compat.proto.types_pb2 import DT_DOUBLE
from tensorboard.plugins.histogram.metadata import create_summary_metadata

from lightning_sphere.quantities import QUANTITIES


def histogram_tag(quantity: str, layer: str) -> str:
    """TensorBoard makes one group of charts of what has the same words before the first slash."""
    return f"sphere_histograms_{quantity}/{layer}"


def histogram_value(quantity: str, layer: str, buckets: npt.NDArray[np.float64], *, described: bool) -> Any:
    """One histogram.

    Args:
        quantity: its name.
        layer: its name.
        buckets: ``[buckets, 3]``: left edge, right edge, count.
        described: whether to say what it is, as the first value of a tag must.
    """
    shape = TensorShapeProto(dim=[TensorShapeProto.Dim(size=size) for size in buckets.shape])
    content = np.ascontiguousarray(buckets, dtype="<f8").tobytes()
    tensor = TensorProto(dtype=DT_DOUBLE, tensor_shape=shape, tensor_content=content)
    return Summary.Value(
        tag=histogram_tag(quantity, layer), tensor=tensor, metadata=_description(quantity, layer) if described else None
    )


def _description(name: str, layer: str) -> Any:
    """The layer's name as the heading, for the tag is too long for one; and what is counted."""
    quantity = QUANTITIES[name]
    unit = f", in {quantity.unit}" if quantity.unit else ""
    text = f"{quantity.title}{unit}, of the layer's groups (its filters): `{quantity.equation}`. {quantity.meaning}"
    metadata = create_summary_metadata(display_name=layer, description=text)
    metadata.data_class = DATA_CLASS_TENSOR
    return metadata
