"""What ``drift_from`` takes: which weights of which checkpoint are those of which parameter."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_sphere.checkpoints import check_reference, load_reference, match
from lit import LitNet, loader, quiet_trainer
from nets import conv_net

State = dict[str, Tensor]


def assert_same(found: State, expected: State) -> None:
    assert set(found) == set(expected)
    for name, tensor in found.items():
        assert tensor.dtype == expected[name].dtype
        assert torch.equal(tensor, expected[name].cpu())


def weights(model: nn.Module) -> State:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def floats(state: State) -> State:
    return {name: tensor.detach().clone() for name, tensor in state.items() if tensor.is_floating_point()}


def other_net() -> nn.Sequential:
    return conv_net(seed=7)


def prefixed(prefix: str, state: State) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}


# ------------------------------------------------------------------ reading


def test_a_checkpoint_that_a_trainer_wrote(tmp_path: Path) -> None:
    trainer = quiet_trainer(tmp_path, max_steps=3)
    lit = LitNet("adam")
    trainer.fit(lit, loader(count=64))
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    saved = floats(lit.state_dict())
    reference = load_reference(tmp_path / "a.ckpt")
    assert_same(reference, saved)
    fresh = LitNet()
    found, reasons = match(reference, fresh)
    assert_same(found, weights(lit))
    assert reasons == {}
    (tmp_path / "a.ckpt").write_bytes(b"overwritten")  # as the next checkpoint of the same name does
    assert_same(reference, saved)
    found, reasons = match(reference, fresh.net)  # the checkpoint calls them net.*, the model does not
    assert_same(found, weights(lit.net))
    assert reasons == {}


@pytest.mark.parametrize("zipped", [True, False], ids=["", "of torch's older format"])
@pytest.mark.parametrize("as_text", [True, False], ids=["str", "Path"])
def test_a_saved_state_dict(zipped: bool, as_text: bool, tmp_path: Path) -> None:
    state = other_net().bfloat16().state_dict()
    path = tmp_path / "weights.pt"
    torch.save(state, path, _use_new_zipfile_serialization=zipped)
    assert_same(load_reference(str(path) if as_text else path), floats(state))


def test_a_safetensors_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    state, path = other_net().state_dict(), tmp_path / "model.safetensors"
    safetensors.save_file(state, path)
    assert_same(load_reference(path), floats(state))
    path.write_bytes(b"no such thing at all")
    with pytest.raises(ValueError, match=r"drift_from takes .*model\.safetensors' could not be read"):
        load_reference(path)
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(ImportError, match=r"drift_from: reading .*model\.safetensors' needs the package safetensors"):
        load_reference(path)


def test_mappings_and_modules_are_copied() -> None:
    net = other_net()
    before, named = floats(net.state_dict()), weights(net)
    sources: list[Any] = [net, net.state_dict(), {"state_dict": net.state_dict(), "epoch": 3}]
    references = [load_reference(source) for source in sources]
    with torch.no_grad():
        for tensor in net.state_dict().values():
            tensor.zero_()
    assert_same(references[0], named)
    assert_same(references[1], before)
    assert_same(references[2], before)
    assert not any(tensor.requires_grad for reference in references for tensor in reference.values())


def no_file(folder: Path) -> Any:
    return folder / "nothing.ckpt"


def index(folder: Path) -> Any:
    path = folder / "model.safetensors.index.json"
    path.write_text("{}")
    return path


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        (lambda _: 3, TypeError, "drift_from takes the path of a Lightning checkpoint, .* or a module; got 3"),
        (lambda _: b"path", TypeError, "drift_from takes .*; got b'path'"),
        (lambda _: None, TypeError, "drift_from takes .*; got None"),
        (no_file, FileNotFoundError, r"drift_from takes .*; there is no file '.*nothing\.ckpt'"),
        (lambda folder: str(folder), ValueError, "drift_from takes one file; '.*' is a folder, as sharded checkpoints"),
        (index, ValueError, "drift_from takes one file; '.*' is an index, as sharded checkpoints have it"),
    ],
)
def test_a_wrong_source_is_named_at_once(source: Any, error: type[Exception], message: str, tmp_path: Path) -> None:
    for function in (check_reference, load_reference):
        with pytest.raises(error, match=message):
            function(source(tmp_path))


def test_checking_reads_nothing(tmp_path: Path) -> None:
    path = tmp_path / "large.ckpt"
    path.write_bytes(b"not yet looked at")
    check_reference(path)
    check_reference(str(path))
    check_reference({})
    check_reference(conv_net())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"hello", "a.ckpt' could not be read: KeyError"),
        (b"", "a.ckpt' could not be read: EOFError"),
        (conv_net(), "a.ckpt' could not be read with weights_only=True: .* holds Python objects. If you trust it"),
        ([torch.ones(2)], "a.ckpt' holds a list"),
        ({"model": {"w": torch.ones(2)}, "epoch": 3}, "holds no floating-point tensors by name, but 'model', 'epoch'$"),
        ({}, "holds no floating-point tensors by name, but nothing"),
        ({"a.weight": torch.ones(2, 2, dtype=torch.int8)}, r"'a\.weight' of .* is quantized \(torch\.int8\)"),
        ({"a.weight": torch.eye(2).to_sparse()}, r"'a\.weight' of .* has the layout torch\.sparse_coo"),
    ],
)
def test_what_a_file_lacks_is_said(content: Any, message: str, tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(ValueError, match=f"drift_from takes .*{message}"):
        load_reference(path)


class Sharded(Tensor):
    """As DTensor and ShardedTensor do, it stands for data that are elsewhere."""

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError("must not be touched")


@pytest.mark.filterwarnings("ignore:.*quantiz.*")
def test_weights_that_are_not_there_are_refused() -> None:
    with pytest.raises(ValueError, match=r"'w' of this mapping is quantized \(torch\.qint8\): give dequantized"):
        load_reference({"w": torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)})
    sharded = Tensor._make_subclass(Sharded, torch.ones(2, 2))
    with pytest.raises(ValueError, match="'w' of this mapping is a Sharded: give gathered"):
        load_reference({"w": sharded})
    with pytest.raises(ValueError, match=r"'0\.weight' of this Sequential has no data"):
        load_reference(conv_net().to("meta"))
    with pytest.raises(ValueError, match="'weight' of this LazyLinear has no data"):
        load_reference(nn.LazyLinear(3))


# ----------------------------------------------------------------- matching


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(5, 3)
        self.head = nn.Linear(3, 5, bias=False)
        self.head.weight = self.tokens.weight


@pytest.mark.parametrize("kept", ["tokens.weight", "head.weight"])
def test_any_name_of_a_tied_parameter_counts(kept: str) -> None:
    weight = torch.ones(5, 3)
    assert match({kept: weight}, Tied()) == ({"tokens.weight": weight}, {})
    assert set(load_reference(Tied())) == {"tokens.weight", "head.weight"}


class Holder(nn.Module):
    """Holds networks by name."""

    def __init__(self, **parts: nn.Module) -> None:
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)


@pytest.mark.parametrize(
    ("there", "here"),
    [
        ("", ""),
        ("_orig_mod.", ""),
        ("", "_orig_mod."),
        ("module.", ""),
        ("", "module."),
        ("module._orig_mod.", ""),
        ("model.", ""),
        ("model._orig_mod.", ""),
        ("", "backbone."),
        ("module.", "backbone."),
        ("model.net.", ""),
        ("net.", "net._orig_mod."),
    ],
)
def test_one_prefix_may_differ(there: str, here: str) -> None:
    model: nn.Module = conv_net()
    for part in reversed(here.split(".")[:-1]):
        model = Holder(**{part: model})
    state = floats(other_net().state_dict())
    found, reasons = match(prefixed(there, state), model)
    assert_same(found, prefixed(here, weights(other_net())))
    assert reasons == {}


def test_a_backbone_and_what_the_model_has_besides() -> None:
    model = Holder(backbone=conv_net(), head=nn.Linear(10, 3), **{"0": nn.Linear(2, 2)})
    state = floats(other_net().state_dict())
    state["9.weight"] = torch.ones(4, 5)
    del state["3.weight"]
    found, reasons = match(state, model)
    assert sorted(found) == [
        f"backbone.{name}" for name in sorted(set(weights(conv_net())) & set(state) - {"9.weight"})
    ]
    assert torch.equal(found["backbone.0.weight"], state["0.weight"])
    assert reasons == {
        "backbone.3.weight": "not in the checkpoint",
        "backbone.9.weight": "shape (4, 5) there, (10, 11) here",
        "head.weight": "not in the checkpoint",
        "head.bias": "not in the checkpoint",
        "0.weight": "not in the checkpoint",
        "0.bias": "not in the checkpoint",
    }


def test_the_same_names_come_first() -> None:
    model = Holder(ema=Holder(net=conv_net()), net=conv_net())
    state = prefixed("net.", weights(other_net()))
    found, reasons = match(state, model)
    assert_same(found, state)
    assert set(reasons) == set(prefixed("ema.", state))


def test_shapes_tell_which_of_two_networks_is_meant() -> None:
    state = weights(other_net())
    found, _ = match(state, Holder(wide=conv_net(16), narrow=conv_net()))
    assert_same(found, prefixed("narrow.", state))


def test_what_is_not_clear_is_not_guessed() -> None:
    state = weights(other_net())
    message = (
        "drift_from takes weights of this model; it is not clear which are meant, with 'student.' before the model's "
        "names or 'teacher.' before the model's names. Give a mapping"
    )
    with pytest.raises(ValueError, match=message):
        match(state, Holder(student=conv_net(), teacher=conv_net()))
    with pytest.raises(ValueError, match=r"with 'net\.' before the checkpoint's names or 'ema\.' before"):
        match(prefixed("net.", state) | prefixed("ema.", state), conv_net())


def test_a_checkpoint_of_another_model_shows_names_of_both_sides() -> None:
    state = {f"encoder.{number}": torch.ones(2, number) for number in range(1, 6)}
    message = (
        r"it holds none of the name and shape of a parameter: there 'encoder\.1' \(2, 1\), 'encoder\.2' \(2, 2\), "
        r"'encoder\.3' \(2, 3\) and 2 more; here '0\.weight' \(8, 1, 3, 3\), .* and 5 more"
    )
    with pytest.raises(ValueError, match=message):
        match(state, conv_net())
    with pytest.raises(ValueError, match=r"there '0\.weight' \(9, 1, 3, 3\); here '0\.weight' \(8, 1, 3, 3\)"):
        match({"0.weight": torch.ones(9, 1, 3, 3)}, conv_net())


def test_parameters_without_shape_yet_are_passed_over() -> None:
    model = nn.Sequential(nn.LazyLinear(3), nn.Linear(3, 2, bias=False))
    weight = torch.ones(2, 3)
    assert match({"1.weight": weight}, model) == ({"1.weight": weight}, {})
