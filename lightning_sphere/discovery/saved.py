"""Read what autograd's nodes saved, and nothing that would run a hook."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor


def hooked(raw: Any) -> bool:
    """Whether reading a saved tensor would run a hook: activation checkpointing recomputes then, offloading copies.

    PyTorch versions that do not tell count as having one.
    """
    return getattr(raw, "unpack_hook", raw) is not None


def is_hidden(node: Any, name: str) -> bool:
    """Whether a node saved a tensor that must not be looked at."""
    raw = getattr(node, f"_raw_saved_{name}", None)
    if isinstance(raw, (tuple, list)):
        return any(map(hooked, raw))
    return raw is not None and (hooked(raw) or _without_numbers(getattr(node, f"_saved_{name}", None)))


def _without_numbers(value: object) -> bool:
    """Whether a tensor stands for one: it has a shape and no elements that could be read."""
    return isinstance(value, torch.Tensor) and (value.is_meta or type(value).__name__ == "FakeTensor")


def saved_tensor(node: Any, name: str) -> Tensor | None:
    """A tensor that a node saved, without its graph; ``None`` if there is none, or none that can be read."""
    raw = getattr(node, f"_raw_saved_{name}", None)
    if raw is None or hooked(raw):
        return None
    try:
        value = getattr(node, f"_saved_{name}")
    except RuntimeError:  # it was changed in place since, or backward has freed it
        return None
    return _with_numbers(value)


def _with_numbers(value: Any) -> Tensor | None:
    """A tensor without its graph; ``None`` for anything else, and for a fake, which has a shape but no numbers."""
    return value.detach() if isinstance(value, torch.Tensor) and not _without_numbers(value) else None


def freed(nodes: Iterable[Any]) -> bool:
    """Whether a backward pass has freed what a graph saved, by the first node that saved a tensor."""
    for node in nodes:
        for name in dir(node):
            raw = getattr(node, name, None) if name.startswith("_raw_saved_") else None
            if raw is None or isinstance(raw, (tuple, list)) or hooked(raw):
                continue
            try:
                getattr(node, name.replace("_raw_saved_", "_saved_"))
            except RuntimeError as error:
                return "freed" in str(error)
            return False
    return False


def saved_tensors(node: Any, name: str) -> list[Tensor | None] | None:
    """A list of tensors that a node saved, such as indices; ``None`` if it can not be read."""
    raws = getattr(node, f"_raw_saved_{name}", None)
    if not isinstance(raws, (tuple, list)) or any(map(hooked, raws)):
        return None
    try:
        values = getattr(node, f"_saved_{name}")
    except RuntimeError:
        return None
    return None if any(map(_without_numbers, values)) else [_with_numbers(value) for value in values]
