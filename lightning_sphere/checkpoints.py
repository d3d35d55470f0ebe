"""The argument ``drift_from``: weights of a checkpoint, by the names of a model's parameters."""

from __future__ import annotations

import pickle
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from os import PathLike, fspath
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

Source: TypeAlias = "str | PathLike[str] | Mapping[str, Any] | nn.Module"
"""What ``drift_from`` takes."""

TAKES = (
    "the path of a Lightning checkpoint, of a saved state dict or of a .safetensors file, a mapping from names to "
    "tensors, or a module"
)

WRAPPERS = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
"""Parts of names that wrappers add anywhere: compiling, sharding, recomputing activations."""

SHOWN = 3
"""So many names are shown in a message."""


def check_reference(source: Any) -> None:
    """Check ``drift_from`` where it is given, without reading any weights.

    Raises:
        TypeError: if it is of another type than it takes.
        FileNotFoundError: if there is no such file.
        ValueError: if the path is that of a folder or of an index, as sharded checkpoints have.
    """
    if isinstance(source, (nn.Module, Mapping)):
        return
    if not isinstance(source, (str, PathLike)) or not isinstance(fspath(source), str):
        raise TypeError(f"drift_from takes {TAKES}; got {source!r}")
    path = Path(source)
    if path.is_dir() or path.name.endswith(".index.json"):
        kind = "a folder" if path.is_dir() else "an index"
        raise ValueError(
            f"drift_from takes one file; {str(path)!r} is {kind}, as sharded checkpoints have it: give its gathered "
            "weights as a mapping from names to tensors"
        )
    if not path.is_file():
        raise FileNotFoundError(f"drift_from takes {TAKES}; there is no file {str(path)!r}")


def load_reference(source: Source) -> dict[str, Tensor]:
    """Read the weights that drift is measured from.

    Of a Lightning checkpoint these are those under ``"state_dict"``, of a module its parameters. Everything but
    floating-point tensors is left out. Files are read with ``weights_only=True``: nothing in them is executed.

    Args:
        source: ``drift_from``.

    Returns:
        Copies on the CPU, in the dtypes of the source, by the names of the source. They stay the same whatever happens
        to the file, the mapping or the module afterwards, and take as much memory as the source's weights (what else a
        file holds, such as an optimizer's state, is not read where torch can map the file).

    Raises:
        TypeError, FileNotFoundError: see :func:`check_reference`.
        ValueError: also if the file cannot be read, if it holds no weights, or if they are sharded or quantized.
        ImportError: for a ``.safetensors`` file where safetensors is not installed.
    """
    check_reference(source)
    if isinstance(source, nn.Module):
        content: Any = dict(source.named_parameters(remove_duplicate=False))
        origin = f"this {type(source).__name__}"
    elif isinstance(source, Mapping):
        content, origin = source, "this mapping"
    else:
        content, origin = _read(Path(source)), repr(fspath(source))
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping):
        raise ValueError(f"drift_from takes {TAKES}; {origin} holds a {type(content).__name__}")
    tensors = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    for name, tensor in tensors.items():
        why = _unusable(name, tensor)
        if why is not None:
            raise ValueError(f"drift_from takes plain weights; {name!r} of {origin} {why}")
    found = {
        name: tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
        if tensor.is_floating_point()
    }
    if not found:
        entries = ", ".join(map(repr, islice(content, SHOWN))) or "nothing"
        raise ValueError(f"drift_from takes {TAKES}; {origin} holds no floating-point tensors by name, but {entries}")
    return found


def match(reference: Mapping[str, Tensor], model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Find which weights of a checkpoint are those of a model's parameters.

    Names are compared without what wrappers add (``_orig_mod.`` anywhere, ``module.`` before all names), and all names
    of a tied parameter count. One prefix more may stand before the checkpoint's names or before the model's: a
    checkpoint of a backbone that the model holds as ``backbone.``, a ``LightningModule`` that holds the model as
    ``model.``. The prefix is the one under which most parameters find a weight of their own shape, or none if that is
    as good. If yet another finds more than half as many, it is not clear which is meant, and nothing is guessed.

    Args:
        reference: weights by the checkpoint's names, as :func:`load_reference` gives them.
        model: the network.

    Returns:
        The weights by the names of the model's parameters, not copied; and by the name of each floating-point parameter
        that has none, why.

    Raises:
        ValueError: if no weight matches, or if several prefixes may be meant; it shows names of both sides.
    """
    theirs = dict(zip(_plain(reference), reference.values(), strict=True))
    named = [(name, p) for name, p in model.named_parameters(remove_duplicate=False) if not is_lazy(p)]
    parameters = {name: p for name, p in model.named_parameters() if not is_lazy(p) and p.is_floating_point()}
    names: dict[int, list[str]] = {}
    for plain, (_, parameter) in zip(_plain([name for name, _ in named]), named, strict=True):
        names.setdefault(id(parameter), []).append(plain)
    ours = {name: names[id(parameter)] for name, parameter in parameters.items()}
    shapes = {name: parameter.shape for name, parameter in parameters.items()}
    shift = _best_shift(theirs, ours, shapes)
    found: dict[str, Tensor] = {}
    reasons: dict[str, str] = {}
    for name, shape in shapes.items():
        candidates = [theirs[their] for their in map(shift.of, ours[name]) if their in theirs]
        fitting = [tensor for tensor in candidates if tensor.shape == shape]
        if fitting:
            found[name] = fitting[0]
        elif candidates:
            reasons[name] = f"shape {tuple(candidates[0].shape)} there, {tuple(shape)} here"
        else:
            reasons[name] = "not in the checkpoint"
    # Biases alone may have the same name and shape in any two models.
    weights = [name for name, shape in shapes.items() if len(shape) > 1]
    if not found or (weights and found.keys().isdisjoint(weights)):
        raise ValueError(
            f"drift_from takes weights of this model; it holds none of the name and shape of a parameter: "
            f"there {_examples(reference)}; here {_examples(parameters)}"
        )
    return found, reasons


class _Shift(NamedTuple):
    """How the model's names become the checkpoint's: one prefix is taken off, or one is added."""

    off: str = ""
    on: str = ""

    def of(self, name: str) -> str | None:
        return self.on + name.removeprefix(self.off) if name.startswith(self.off) else None

    def __str__(self) -> str:
        return f"{self.off!r} before the model's names" if self.off else f"{self.on!r} before the checkpoint's names"


def _best_shift(
    theirs: Mapping[str, Tensor], ours: Mapping[str, Sequence[str]], shapes: Mapping[str, torch.Size]
) -> _Shift:
    """The prefix that most parameters speak for; none if that is as good."""
    prefixes: dict[str, list[str]] = {}
    for their in theirs:
        for prefix, rest in _cuts(their):
            prefixes.setdefault(rest, []).append(prefix)
    votes: Counter[_Shift] = Counter()
    for name, own in ours.items():
        off = {_Shift(off=prefix): rest for one in own for prefix, rest in _cuts(one) if rest in theirs}
        on = {_Shift(on=prefix): prefix + one for one in own for prefix in prefixes.get(one, ())}
        votes.update(shift for shift, their in (off | on).items() if theirs[their].shape == shapes[name])
    best, count = max(votes.items(), key=lambda item: (item[1], item[0] == _Shift()), default=(_Shift(), 0))
    rivals = [shift for shift, votes_for in votes.items() if shift != best and 2 * votes_for > count]
    if rivals and best != _Shift():
        meant = " or ".join(str(shift) if shift != _Shift() else "no prefix" for shift in (best, *rivals[:SHOWN]))
        raise ValueError(
            f"drift_from takes weights of this model; it is not clear which are meant, with {meant}. "
            "Give a mapping from the names of the model's parameters to tensors"
        )
    return best


def _cuts(name: str) -> Iterator[tuple[str, str]]:
    """Each way to cut a name into a prefix that ends with a dot, or is empty, and the rest."""
    yield "", name
    for index, character in enumerate(name):
        if character == ".":
            yield name[: index + 1], name[index + 1 :]


def _plain(names: Iterable[str]) -> list[str]:
    """Names without what wrappers add to them."""
    plain = [".".join(part for part in name.split(".") if part not in WRAPPERS) for name in names]
    wrapped = all(name.startswith("module.") for name in plain)
    return [name.removeprefix("module.") for name in plain] if wrapped else plain


def _examples(tensors: Mapping[str, Tensor]) -> str:
    shown = ", ".join(f"{name!r} {tuple(tensor.shape)}" for name, tensor in islice(tensors.items(), SHOWN))
    return shown + (f" and {len(tensors) - SHOWN} more" if len(tensors) > SHOWN else "")


def _unusable(name: str, tensor: Tensor) -> str | None:
    """Why a tensor cannot be read as weights, or ``None``."""
    last = name.rpartition(".")[2]
    integers = not tensor.is_floating_point() and not tensor.is_complex() and tensor.dtype != torch.bool
    if is_lazy(tensor) or tensor.is_meta:
        return "has no data"
    if tensor.is_quantized or (integers and last in ("weight", "qweight") and tensor.dim() > 1):
        return f"is quantized ({tensor.dtype}): give dequantized weights"
    if type(tensor).__torch_dispatch__ is not Tensor.__torch_dispatch__:
        return f"is a {type(tensor).__name__}: give gathered, dequantized weights as plain tensors"
    return None if tensor.layout == torch.strided else f"has the layout {tensor.layout}: give dense weights"


def _read(path: Path) -> Any:
    """What a file holds."""
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    try:
        try:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError:  # files of torch's older format cannot be mapped
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"drift_from takes {TAKES}; {str(path)!r} could not be read with weights_only=True: it is of another kind, "
            "or holds Python objects. If you trust it, read it yourself and give its state dict"
        ) from error
    except Exception as error:
        what = str(error).partition("\n")[0]
        raise ValueError(
            f"drift_from takes {TAKES}; {str(path)!r} could not be read: {type(error).__name__} {what}"
        ) from error


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        from safetensors import safe_open
    except ImportError as error:
        raise ImportError(
            f"drift_from: reading {str(path)!r} needs the package safetensors (pip install safetensors)"
        ) from error
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # it is no dict
    except Exception as error:
        raise ValueError(f"drift_from takes {TAKES}; {str(path)!r} could not be read: {error}") from error
