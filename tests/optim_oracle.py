"""Slow float64 oracles of the reference optimizers: group by group, from the formulas, in numpy alone.

A layout says which entries are a group: for every group a list of (name of a tensor, flat indices into it). Entries in
no group are groups of their own for Adam, which is what element-wise means.
"""

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[np.float64]
Layout: TypeAlias = list[list[tuple[str, npt.NDArray[np.int64]]]]
Part: TypeAlias = tuple[str, int]
"""Name of a tensor and the axis along which it is cut."""


def block_indices(shape: Sequence[int], axis: int, blocks: int) -> list[npt.NDArray[np.int64]]:
    """Flat indices of each of the equal consecutive blocks along an axis."""
    numbers = np.arange(int(np.prod(shape))).reshape(shape)
    if blocks == 1:
        return [numbers.ravel()]
    return [piece.ravel() for piece in np.split(numbers, blocks, axis=axis)]


def layout_of(
    shapes: Mapping[str, Sequence[int]], layers: Sequence[tuple[Sequence[Part], int, Sequence[int] | None]]
) -> Layout:
    """The groups of layers, each given as (parts, blocks, members)."""
    layout: Layout = []
    for parts, blocks, members in layers:
        cut = {name: block_indices(shapes[name], axis, blocks) for name, axis in parts}
        for block in range(blocks) if members is None else members:
            layout.append([(name, cut[name][block]) for name, _ in parts])
    return layout


class SlowAdam:
    """Adam, AdamS (with groups) and AdamSRT (with groups and transport)."""

    def __init__(
        self,
        weights: Mapping[str, Array],
        layout: Layout,
        *,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        transport: bool = False,
    ) -> None:
        self.weights = {name: np.array(value, dtype=np.float64) for name, value in weights.items()}
        self.layout, self.transport = layout, transport
        self.lr, self.betas, self.eps, self.weight_decay = lr, betas, eps, weight_decay
        self.m = {name: np.zeros_like(value) for name, value in self.weights.items()}
        self.v = {name: np.zeros_like(value) for name, value in self.weights.items()}  # a group's number in every entry
        self.b = {name: np.zeros_like(value) for name, value in self.weights.items()}
        self.t = 0

    def step(self, grads: Mapping[str, Array]) -> None:
        self.t += 1
        lonely = {name: set(range(value.size)) for name, value in self.weights.items()}
        for group in self.layout:
            self._step_group(group, grads, self.transport)
            for name, indices in group:
                lonely[name] -= set(indices.tolist())
        for name, indices in lonely.items():
            for index in sorted(indices):
                self._step_group([(name, np.array([index]))], grads, False)

    def _step_group(
        self, group: list[tuple[str, npt.NDArray[np.int64]]], grads: Mapping[str, Array], transport: bool
    ) -> None:
        def read(source: Mapping[str, Array]) -> Array:
            return np.concatenate([source[name].ravel()[indices] for name, indices in group])

        beta1, beta2 = self.betas
        x, m, v = read(self.weights), read(self.m), float(read(self.v)[0])
        g = read(grads) + self.weight_decay * x
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * float(g @ g) / len(g)
        b = np.sqrt(v / (1 - beta2**self.t)) + self.eps
        x_new = x - self.lr * (m / (1 - beta1**self.t)) / b
        if transport:
            v = v * float(x @ x) / float(x_new @ x_new)
            m = (m * float(x @ x_new) - x * float(m @ x_new)) / float(x_new @ x_new)
        start = 0
        for name, indices in group:
            end = start + len(indices)
            for target, values in ((self.weights, x_new[start:end]), (self.m, m[start:end]), (self.v, v), (self.b, b)):
                target[name].ravel()[indices] = values  # ravel of a contiguous array is a view
            start = end


def adam_g_star(u: Array, r0: float, lr: float, decay: float, grad: "Gradient", steps: int) -> tuple[Array, float]:
    """The points on the sphere, ``[steps + 1, d]``, and the last second moment of AdamG*: the paper's recursion."""
    beta = (1 - lr * decay) ** 4
    alpha = 1 / np.sqrt(2 * beta)
    v = r0**4 / (2 * lr**2 * np.sqrt(beta))
    path = [u]
    for _ in range(steps):
        slope = grad(u)
        moved = u - alpha * slope / np.sqrt(v)
        v = beta * v + float(slope @ slope)
        u = moved / np.linalg.norm(moved)
        path.append(u)
    return np.array(path), v


def sgd_on_the_sphere(x: Array, lr: Sequence[float], decay: float, grad: "Gradient") -> tuple[Array, Array]:
    """The directions, ``[steps + 1, d]``, and the radii of SGD with L2; ``grad`` is the gradient on the unit sphere."""
    path = [x]
    for rate in lr:
        r = np.linalg.norm(x)
        x = x - rate * (grad(x / r) / r + decay * x)
        path.append(x)
    points = np.array(path)
    radii = np.linalg.norm(points, axis=1)
    return points / radii[:, None], radii


def angles(one: Array, other: Array) -> Array:
    """Angles between rows of unit length, exact for small ones."""
    return 2 * np.arcsin(np.linalg.norm(one - other, axis=1) / 2)


class Gradient:
    """Gradient, on the unit sphere, of the scale-invariant ``x'Ax / (2 |x|^2)`` with a random symmetric ``A``."""

    def __init__(self, size: int, seed: int = 0) -> None:
        matrix = np.random.default_rng(seed).normal(size=(size, size)) / np.sqrt(size)
        self.matrix = (matrix + matrix.T) / 2

    def __call__(self, u: Array) -> Array:
        image = self.matrix @ u
        return image - float(u @ image) * u
