"""The protocol buffers of one event."""

from __future__ import annotations

from typing import Any

from tensorboard.compat.proto.summary_pb2 import DATA_CLASS_TENSOR, Summary, SummaryMetadata
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
from tensorboard.compat.proto.types_pb2 import DT_FLOAT, DT_STRING

from lightning_sphere.quantities import QUANTITIES
from lightning_sphere.tensorboard.schema import FORMAT, PLUGIN_NAME, SCHEMA_TAG, TABLE_TAG, TableSchema


def string_value(tag: str, content: bytes, metadata: Any) -> Any:
    """A string for a plugin of TensorBoard's, or for ours."""
    metadata.data_class = DATA_CLASS_TENSOR
    tensor = TensorProto(dtype=DT_STRING, tensor_shape=TensorShapeProto(), string_val=[content])
    return Summary.Value(tag=tag, tensor=tensor, metadata=metadata)


def schema_value(content: bytes) -> Any:
    """The description of all rows from this event on."""
    return string_value(SCHEMA_TAG, content, _own())


def table_value(quantity: str, schema: TableSchema) -> Any:
    """One quantity of all layers, without its numbers."""
    size = len(schema.layers), len(schema.stats)
    shape = TensorShapeProto(dim=[TensorShapeProto.Dim(size=length) for length in size])
    tensor = TensorProto(dtype=DT_FLOAT, tensor_shape=shape)
    return Summary.Value(tag=TABLE_TAG + quantity, tensor=tensor, metadata=_own())


def scalar_value(tag: str) -> Any:
    """One point of a curve, without its number; unit, equation and meaning are shown beside the chart."""
    group, _, rest = tag.partition("/")
    name = rest.partition("/")[0] if group in ("sphere", "sphere_bands") else group.removeprefix("sphere_")
    quantity = QUANTITIES.get(name)
    metadata = None
    if quantity is not None:
        unit = f", in {quantity.unit}" if quantity.unit else ""
        text = f"{quantity.title}{unit}: `{quantity.equation}`. {quantity.meaning}"
        plugin_data = SummaryMetadata.PluginData(plugin_name="scalars")
        metadata = SummaryMetadata(plugin_data=plugin_data, summary_description=text)
    return Summary.Value(tag=tag, metadata=metadata)


def _own() -> Any:
    """What hands a value to our plugin."""
    plugin_data = SummaryMetadata.PluginData(plugin_name=PLUGIN_NAME, content=b'{"format":%d}' % FORMAT)
    return SummaryMetadata(plugin_data=plugin_data, data_class=DATA_CLASS_TENSOR)
