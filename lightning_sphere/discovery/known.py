"""The numbers that the graph saved, found by the value that they are."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lightning_sphere.discovery.graph import Graph, short_name
from lightning_sphere.discovery.saved import is_hidden, saved_tensor

_OPERANDS: dict[str, tuple[str, ...]] = {
    "Mm": ("self", "mat2"),
    "Bmm": ("self", "mat2"),
    "Addmm": ("", "mat1", "mat2"),
    "Baddbmm": ("", "batch1", "batch2"),
    "Addcmul": ("", "tensor1", "tensor2"),
    "Convolution": ("input", "weight"),
    "Linear": ("input", "weight"),
}
_FIRST = ("self", "input")
_SECOND = ("other", "weight", "end")

_INVERSE: dict[str, Callable[[Tensor], Tensor]] = {
    "Sqrt": torch.square,
    "Rsqrt": lambda x: x.square().reciprocal(),
    "Reciprocal": torch.reciprocal,
    "Log": torch.exp,
    "Exp": torch.log,
}
RESHAPES = ("View", "UnsafeView", "ReshapeAlias", "Unsqueeze", "Squeeze", "Reshape", "Clone", "ToCopy", "Alias")


class Known:
    """Finds values of the graph in what their makers and readers saved. Nothing is changed, no hook runs.

    Args:
        graph: The graph.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.hidden = False
        """Whether a hook was in the way since this was last set to false."""

    def saved(self, edge: tuple[int, int]) -> Tensor | None:
        """A whole value, if its maker or one of its readers saved it."""
        position, output = edge
        node, shape = self.graph.nodes[position], self.graph.shapes[position]
        if position in self.graph.leaves or hasattr(node, "variable"):
            variable: Tensor = node.variable.detach()
            return variable
        if output >= len(shape):
            return None
        if output == 0 and (own := self._look(node, "result", shape[0])) is not None:
            return own
        for reader in self.graph.consumers[position]:
            name = short_name(self.graph.names[reader])
            for index, source in enumerate(self.graph.edges[reader]):
                if source != edge:
                    continue
                operands: tuple[str, ...] = (_FIRST, _SECOND)[index] if index < 2 else ()
                if name in _OPERANDS:
                    operands = _OPERANDS[name][index : index + 1]
                for operand in filter(None, operands):
                    if (value := self._look(self.graph.nodes[reader], operand, shape[output])) is not None:
                        return value
        return None

    def later(self, edge: tuple[int, int], depth: int = 4) -> Tensor | None:
        """A whole value from what was made of it, where that can be undone."""
        value = self.saved(edge)
        if value is not None or edge[1] > 0 or depth == 0:
            return value
        shape = self.graph.shapes[edge[0]][0]
        for reader in self.graph.consumers[edge[0]]:
            name = short_name(self.graph.names[reader])
            result = self._look(self.graph.nodes[reader], "result", self.graph.shapes[reader][0])
            if name in _INVERSE and result is not None:
                return _INVERSE[name](result.to(torch.float64)).to(result.dtype)
            if name == "ViewAsReal" and (pairs := self.later((reader, 0), depth - 1)) is not None:
                return torch.view_as_complex(pairs.contiguous())
            if name in RESHAPES or name == "Expand":
                result = self.later((reader, 0), depth - 1)
                if result is None:
                    continue
                if name == "Expand":
                    missing = result.ndim - len(shape)
                    result = result[(0,) * missing]
                    for axis, size in enumerate(shape):
                        result = result.narrow(axis, 0, size) if size == 1 else result
                return result.reshape(shape)
        return None

    def _look(self, node: object, name: str, shape: Sequence[int]) -> Tensor | None:
        value = saved_tensor(node, name)
        if value is None:
            self.hidden = self.hidden or is_hidden(node, name)
        return value if value is not None and tuple(value.shape) == tuple(shape) else None
