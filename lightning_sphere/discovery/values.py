"""The numbers in the graph, as far as its nodes saved them or they follow from what was saved."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod

import numpy as np
import torch
from torch import Tensor

from lightning_sphere.discovery.graph import Edge, short_name, signed
from lightning_sphere.discovery.known import RESHAPES, Known
from lightning_sphere.discovery.saved import saved_tensor, saved_tensors

Index = tuple[slice, ...]
"""What is asked of a tensor: a range of each dimension."""

LARGEST = 1 << 22
"""Most elements that are read to find one number."""
DEEPEST = 24

_ELEMENTWISE: dict[str, Callable[[Tensor], Tensor]] = {
    "Abs": torch.abs,
    "Neg": torch.neg,
    "Sqrt": torch.sqrt,
    "Rsqrt": torch.rsqrt,
    "Reciprocal": torch.reciprocal,
    "Relu": torch.relu,
    "Exp": torch.exp,
    "Log": torch.log,
    "Square": torch.square,
    "Clone": lambda x: x,
    "Alias": lambda x: x,
}


class Values(Known):
    """Values of the graph, also those that follow from what was saved."""

    def part(self, edge: Edge, index: Index, depth: int = DEEPEST) -> Tensor | None:
        """A part of a value, read or computed; ``None`` where it is not known.

        Args:
            edge: The value.
            index: Which part of it.
            depth: How many operations may be computed after another.
        """
        if edge is None or depth == 0 or prod(part.stop - part.start for part in index) > LARGEST:
            return None
        value = self.saved(edge)
        if value is not None:
            return value[index]
        position, node = edge[0], self.graph.nodes[edge[0]]
        name = short_name(self.graph.names[position])
        edges = self.graph.edges[position]

        def source(number: int, where: Index) -> Tensor | None:
            return self.part(edges[number], where, depth - 1)

        if name in _ELEMENTWISE:
            given = source(0, index)
            return None if given is None else _ELEMENTWISE[name](given)
        if name == "ToCopy":
            given = source(0, index)
            return None if given is None else given.to(node._input_metadata[0].dtype)
        if name == "Pow" and isinstance(getattr(node, "_saved_exponent", None), (int, float)):
            given = source(0, index)
            return None if given is None else given.pow(node._saved_exponent)
        if name == "ClampMin" and isinstance(getattr(node, "_saved_min", None), (int, float)):
            given = source(0, index)
            return None if given is None else given.clamp_min(node._saved_min)
        if name in ("Mul", "Div", "Add", "Sub"):
            return self._combined(position, name, index, depth)
        if name in _REDUCTIONS or name in ("Var", "VarMean", "Std", "StdMean"):
            return self._reduced(edge, name, index, depth)
        if name in ("Mm", "Bmm"):
            rows, columns = index[-2:]
            first, second = edges[:2]
            inner = self._inner(position)
            left = self._operand(node, "self", first, (*index[:-2], rows, inner), depth)
            right = self._operand(node, "mat2", second, (*index[:-2], inner, columns), depth)
            return None if left is None or right is None else left @ right
        if name == "Convolution":
            return self._convolved(position, index, depth)
        if name == "Addmm":
            return self._affine(position, index, depth)
        if name in ("IndexAdd", "ScatterAdd") and edges[0] is None:
            return self._gathered(position, name, index, depth)
        return self._moved(position, name, index, depth)

    def _convolved(self, position: int, index: Index, depth: int) -> Tensor | None:
        """One element of a convolution."""
        node, edges = self.graph.nodes[position], self.graph.edges[position]
        shapes = [None if edge is None else self.shape_of(edge) for edge in edges[:2]]
        for place, saved in enumerate(("input", "weight")):
            if shapes[place] is None and (data := saved_tensor(node, saved)) is not None:
                shapes[place] = tuple(data.shape)
        image, filters = shapes
        alone = all(part.stop - part.start == 1 for part in index)
        if image is None or filters is None or node._saved_transposed or not alone:
            return None
        bias_is_data = edges[2] is None and any(getattr(node, "_saved_bias_sym_sizes_opt", None) or ())
        per_group = self.graph.shapes[position][0][1] // int(node._saved_groups)
        group = index[1].start // per_group * filters[1]
        window, taps, steps = [index[0], slice(group, group + filters[1])], [index[1], slice(0, filters[1])], []
        for axis, part in enumerate(index[2:]):
            stride, padding, dilation = (
                int(getattr(node, f"_saved_{name}")[axis]) for name in ("stride", "padding", "dilation")
            )
            start, size = part.start * stride - padding, image[axis + 2]
            first = max(0, -(start // dilation))
            last = min(filters[axis + 2] - 1, (size - 1 - start) // dilation)
            if last < first:
                return None
            window.append(slice(start + first * dilation, start + last * dilation + 1))
            taps.append(slice(first, last + 1))
            steps.append(slice(None, None, dilation))
        given = self._operand(node, "input", edges[0], tuple(window), depth)
        weight = self._operand(node, "weight", edges[1], tuple(taps), depth)
        bias = None if edges[2] is None else self.part(edges[2], (index[1],), depth - 1)
        if given is None or weight is None or bias_is_data or (bias is None) != (edges[2] is None):
            return None
        every = (slice(None), slice(None), *steps)
        total = (given[every] * weight).sum()
        return (total if bias is None else total + bias).reshape((1,) * len(index))

    def _affine(self, position: int, index: Index, depth: int) -> Tensor | None:
        """A linear layer with bias."""
        node, (bias, first, second) = self.graph.nodes[position], self.graph.edges[position][:3]
        rows, columns = index
        inner = slice(0, self.shape_of(second)[-2]) if second is not None else slice(0, 0)
        a = self._operand(node, "mat1", first, (rows, inner), depth)
        b = self._operand(node, "mat2", second, (inner, columns), depth)
        c = None if bias is None else self.part(bias, broadcast(index, self.shape_of(bias)), depth - 1)
        if a is None or b is None or c is None:
            return None
        return torch.addmm(c.expand(a.shape[0], b.shape[1]), a, b, beta=node._saved_beta, alpha=node._saved_alpha)

    def _gathered(self, position: int, name: str, index: Index, depth: int) -> Tensor | None:
        """A sum of elements that go to the same place of a tensor of zeros."""
        node, source = self.graph.nodes[position], self.graph.edges[position][1]
        chosen = saved_tensor(node, "index")
        if source is None or chosen is None:
            return None
        value = self.part(source, whole(self.shape_of(source)), depth - 1)
        if value is None:
            return None
        total = torch.zeros(self.graph.shapes[position][0], dtype=value.dtype, device=value.device)
        axis = signed(int(node._saved_dim))
        total = total.index_add_(axis, chosen, value) if name == "IndexAdd" else total.scatter_add_(axis, chosen, value)
        return total[index]

    def _indexed(self, position: int, source: tuple[int, int], depth: int, index: Index) -> Tensor | None:
        """What is read by index, of the whole tensor."""
        node = self.graph.nodes[position]
        chosen = [saved_tensor(node, "index")] if hasattr(node, "_saved_index") else saved_tensors(node, "indices")
        value = self.part(source, whole(self.shape_of(source)), depth - 1)
        if value is None or chosen is None:
            return None
        if hasattr(node, "_saved_index"):
            return None if chosen[0] is None else value.index_select(signed(int(node._saved_dim)), chosen[0])[index]
        return value[tuple(slice(None) if places is None else places for places in chosen)][index]

    def _operand(self, node: object, name: str, edge: Edge, index: Index, depth: int) -> Tensor | None:
        """A part of an operand, which is data where it has no edge."""
        if edge is not None:
            return self.part(edge, index, depth - 1)
        value = saved_tensor(node, name)
        return None if value is None else value[index]

    def _inner(self, position: int) -> slice:
        """The dimension that a matrix product contracts."""
        first, second = self.graph.edges[position][:2]
        if first is not None:
            return slice(0, self.shape_of(first)[-1])
        return slice(0, 0 if second is None else self.shape_of(second)[-2])

    def shape_of(self, edge: tuple[int, int]) -> tuple[int, ...]:
        """The shape of a value; empty if it was never made."""
        shapes = self.graph.shapes[edge[0]]
        return shapes[edge[1]] if edge[1] < len(shapes) else ()

    def _combined(self, position: int, name: str, index: Index, depth: int) -> Tensor | None:
        """A sum, product or quotient of two values; a number in it must have been saved."""
        node, edges = self.graph.nodes[position], self.graph.edges[position][:2]
        operands = []
        for edge, saved in zip(edges, ("self", "other"), strict=False):
            data = saved_tensor(node, saved) if edge is None else None
            shape = tuple(data.shape) if data is not None else () if edge is None else self.shape_of(edge)
            operands.append(self._operand(node, saved, edge, broadcast(index, shape), depth))
        if len(operands) < 2 or operands[0] is None or operands[1] is None:
            return None
        first, second = operands[0], operands[1]
        if name in ("Add", "Sub"):
            return torch.add(first, second, alpha=node._saved_alpha * (1 if name == "Add" else -1))
        return first * second if name == "Mul" else first / second

    def _reduced(self, edge: tuple[int, int], name: str, index: Index, depth: int) -> Tensor | None:
        """A reduction over dimensions: only what belongs to the part that is asked for is read."""
        position, output = edge
        node, source = self.graph.nodes[position], self.graph.edges[position][0]
        if source is None:
            return None
        shape = self.shape_of(source)
        saved = getattr(node, "_saved_dim", None)
        dims = (saved,) if isinstance(saved, int) else saved or range(len(shape))
        axes = sorted({signed(int(dim)) % max(len(shape), 1) for dim in dims}) if shape else []
        kept, where = list(index), []
        keepdim = len(self.graph.shapes[position][0]) == len(shape)
        for axis, size in enumerate(shape):
            if axis in axes:
                where.append(slice(0, size))
                if keepdim:
                    kept.pop(0)
            else:
                where.append(kept.pop(0))
        value = self.part(source, tuple(where), depth - 1)
        if value is None:
            return None
        if name in ("Var", "VarMean", "Std", "StdMean"):
            if output == 1:
                return value.mean(axes, keepdim=keepdim)
            correction = getattr(node, "_saved_correction", 1)
            variance = value.var(axes, correction=1 if correction is None else correction, keepdim=keepdim)
            return variance if name.startswith("Var") else variance.sqrt()
        if name in ("LinalgVectorNorm", "Norm"):
            order = getattr(node, "_saved_ord", getattr(node, "_saved_p", 2))
            norm: Tensor = torch.linalg.vector_norm(value, 2 if order is None else order, axes or None, keepdim)
            return norm
        result = _REDUCTIONS[name](value, axes, keepdim) if axes else value
        return result if isinstance(result, Tensor) else None

    def _moved(self, position: int, name: str, index: Index, depth: int) -> Tensor | None:
        """A value whose elements were moved."""
        node, source = self.graph.nodes[position], self.graph.edges[position][0]
        if source is None:
            return None
        shape, own = self.shape_of(source), self.graph.shapes[position][0]
        sizes = [part.stop - part.start for part in index]
        if name == "Expand":
            value = self.part(source, broadcast(index, shape), depth - 1)
            return None if value is None else value.expand(sizes)
        if name in ("Permute", "Transpose", "T"):
            order = list(range(len(shape)))[::-1]
            if name == "Permute":
                order = [signed(int(dim)) % len(shape) for dim in node._saved_dims]
            elif name == "Transpose":
                order.reverse()
                a, b = (signed(int(dim)) % len(shape) for dim in (node._saved_dim0, node._saved_dim1))
                order[a], order[b] = b, a
            value = self.part(source, tuple(index[order.index(axis)] for axis in range(len(shape))), depth - 1)
            return None if value is None else value.permute(order)
        if name == "Slice" and signed(int(node._saved_step)) == 1:
            axis = signed(int(node._saved_dim)) % len(shape)
            start = slice(signed(int(node._saved_start)), None).indices(shape[axis])[0]
            moved = slice(index[axis].start + start, index[axis].stop + start)
            return self.part(source, (*index[:axis], moved, *index[axis + 1 :]), depth - 1)
        if name == "Select":
            axis = signed(int(node._saved_dim)) % len(shape)
            place = signed(int(node._saved_index)) % shape[axis]
            value = self.part(source, (*index[:axis], slice(place, place + 1), *index[axis:]), depth - 1)
            return None if value is None else value.squeeze(axis)
        if name in ("Index", "IndexSelect"):
            return self._indexed(position, source, depth, index)
        if name in RESHAPES and prod(sizes) == 1:
            flat = int(np.ravel_multi_index([part.start for part in index], own)) if own else 0
            element = np.unravel_index(flat, shape) if shape else ()
            value = self.part(source, tuple(slice(int(i), int(i) + 1) for i in element), depth - 1)
            return None if value is None else value.reshape(sizes)
        if name in RESHAPES:
            value = self.part(source, whole(shape), depth - 1)
            return None if value is None else value.reshape(own)[index]
        return None


def whole(shape: Sequence[int]) -> Index:
    """All of a tensor."""
    return tuple(slice(0, size) for size in shape)


def broadcast(index: Index, shape: Sequence[int]) -> Index:
    """The part of an operand that a part of the result of an element-wise operation depends on."""
    own = index[len(index) - len(shape) :]
    return tuple(slice(0, 1) if size == 1 else part for part, size in zip(own, shape, strict=True))


_REDUCTIONS: dict[str, Callable[..., object]] = {
    "Mean": torch.mean,
    "Sum": torch.sum,
    "Amax": torch.amax,
    "Amin": torch.amin,
    "LinalgVectorNorm": torch.linalg.vector_norm,
    "Norm": torch.linalg.vector_norm,
}
