"""The sums that drift is computed from, against slow float64 recomputations; and what a reference is a copy of."""

from __future__ import annotations

import gc
import math
import weakref
from collections.abc import Mapping, Sequence
from contextlib import nullcontext

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lightning_sphere.groups import GroupPart, ScaleGroup
from lightning_sphere.measurement import reference as module
from lightning_sphere.measurement.plan import CHUNK_ELEMENTS, Plan
from lightning_sphere.measurement.reference import ReferenceWeights
from lightning_sphere.measurement.ring import COLUMNS
from lightning_sphere.measurement.sums import TorchSums
from nets import batches, conv_net
from test_no_synchronization import no_host_reads

GROUPS = (
    ScaleGroup("rows", (GroupPart("rows"),), blocks=6, kind="row"),
    ScaleGroup("blocks", (GroupPart("blocks"),), blocks=2, kind="group"),
    ScaleGroup("whole", (GroupPart("whole"), GroupPart("bias")), blocks=1, kind="whole"),
    ScaleGroup("columns", (GroupPart("columns", axis=1),), blocks=7, kind="row"),
    ScaleGroup("joint", (GroupPart("rows"), GroupPart("blocks"), GroupPart("columns")), blocks=1, kind="whole"),
)
SHAPES = {"rows": (6, 3, 2, 2), "blocks": (8, 5), "whole": (4, 9), "bias": (4,), "columns": (3, 7, 4)}
PLACES = pytest.mark.parametrize("streamed", [False, True], ids=["in place", "streamed"])


def weights(dtype: torch.dtype = torch.float32, seed: int = 0) -> dict[str, nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return {name: nn.Parameter(torch.randn(s, generator=generator).to(dtype)) for name, s in SHAPES.items()}


def plan_of(parameters: Mapping[str, nn.Parameter], groups: Sequence[ScaleGroup] = GROUPS) -> Plan:
    return Plan(groups, parameters, dict.fromkeys(parameters, 0))


def prepare(reference: ReferenceWeights, plan: Plan) -> None:
    reference.prepare(plan)


def measured(reference: ReferenceWeights, plan: Plan) -> dict[str, npt.NDArray[np.float64]]:
    """The three sums per group, ``[3, groups]`` by name of the layer; what is around them must stay untouched."""
    row = torch.full((6, plan.segments), 77.0, dtype=torch.float64, device=plan.device)
    with no_host_reads() if plan.device.type == "cpu" else nullcontext():  # it takes streaming for reading
        reference.write(TorchSums(plan, COLUMNS), row[2:5])
    row = row.cpu()
    assert (row[[0, 1, 5]] == 77.0).all()
    segments, groups = plan.pairs
    sums = torch.zeros(3, plan.first_group[-1], dtype=torch.float64).index_add_(1, groups, row[2:5][:, segments])
    bounds = plan.first_group
    return {layer.name: sums[:, bounds[i] : bounds[i + 1]].numpy() for i, layer in enumerate(plan.layers)}


def expected(group: ScaleGroup, before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> npt.NDArray[np.float64]:
    """From the definition, element by element in float64."""
    rows = []
    for index in range(group.blocks):
        x0, x = [], []
        for part in group.parts:
            for tensor, found in ((before[part.parameter], x0), (after[part.parameter], x)):
                matrix = np.moveaxis(tensor.detach().double().cpu().numpy(), part.axis, 0)
                size = len(matrix) // group.blocks
                found.append((matrix if group.blocks == 1 else matrix[index * size : (index + 1) * size]).ravel())
        start, change = np.concatenate(x0), np.concatenate(x) - np.concatenate(x0)
        rows.append([start @ start, start @ change, change @ change])
    return np.array(rows).T


def angle(sums: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    xx, xe, ee = sums
    return np.arctan2(np.sqrt(np.maximum(ee - xe**2 / xx, 0.0)), np.sqrt(xx) * (1 + xe / xx))


def move(parameters: Mapping[str, nn.Parameter], by: float = 0.1, seed: int = 1) -> None:
    """In place, as optimizers do."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in parameters.values():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_(noise.to(parameter), alpha=by)


def copies(parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in parameters.items()}


def assert_sums(
    reference: ReferenceWeights, plan: Plan, before: Mapping[str, Tensor], after: Mapping[str, Tensor]
) -> None:
    found = measured(reference, plan)
    for group in plan.layers:
        np.testing.assert_allclose(found[group.name], expected(group, before, after), rtol=1e-12, atol=1e-13)


@PLACES
@pytest.mark.parametrize("limit", [1, 5, 16, 1 << 18])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_sums_equal_float64(dtype: torch.dtype, limit: int, streamed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows, blocks, whole tensors with their bias, rows along another axis, and a joint set that shares their sums."""
    monkeypatch.setitem(CHUNK_ELEMENTS, "cpu", limit)
    monkeypatch.setattr(module, "DEVICE_LIMIT_MB", 0 if streamed else 256)
    parameters = weights(dtype)
    plan, reference, before = plan_of(parameters), ReferenceWeights(), copies(parameters)
    assert len(plan.slots) == 5  # the joint set is not read again
    prepare(reference, plan)
    assert_sums(reference, plan, before, before)
    move(parameters)
    assert_sums(reference, plan, before, parameters)
    assert reference.missing == {}


def test_what_is_streamed_is_not_gathered_and_the_other_way_round(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the tests of streaming would test nothing."""
    calls: list[str] = []
    original = module._stream
    monkeypatch.setattr(module, "_stream", lambda *args: [calls.append("streamed"), original(*args)][1])
    parameters = weights()
    plan = plan_of(parameters)
    for limit, expected_calls in ((256, 0), (0, len(plan.buckets))):
        monkeypatch.setattr(module, "DEVICE_LIMIT_MB", limit)
        reference = ReferenceWeights()
        prepare(reference, plan)
        measured(reference, plan)
        assert len(calls) == expected_calls


def test_the_limit_is_for_all_copies_together(monkeypatch: pytest.MonkeyPatch) -> None:
    parameters = weights()
    size = sum(parameter.nbytes for parameter in parameters.values())
    for limit, near in ((size, True), (size - 1, False)):
        monkeypatch.setattr(module, "DEVICE_LIMIT_MB", limit / 2**20)
        reference = ReferenceWeights()
        assert (reference.placement, reference.nbytes) == ("nowhere", 0)
        prepare(reference, plan_of(parameters, GROUPS[:3]))
        prepare(reference, plan_of(parameters))
        assert {copy.near for copy in reference._copies.values()} == ({True} if near else {True, False})
        assert (reference.placement, reference.nbytes) == ("host", size)
        before = copies(parameters)
        move(parameters)
        assert_sums(reference, plan_of(parameters), before, parameters)


@PLACES
@pytest.mark.parametrize(("radians", "length"), [(1e-7, 1.0), (1e-5, 1.3), (1e-2, 0.5), (1.0, 1.3), (3.0, 2.0)])
def test_small_angles_are_right(radians: float, length: float, streamed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "DEVICE_LIMIT_MB", 0 if streamed else 256)
    generator = torch.Generator().manual_seed(3)
    start, other = torch.randn(2, 6, 500, generator=generator, dtype=torch.float64)
    other -= (other * start).sum(1, keepdim=True) / (start * start).sum(1, keepdim=True) * start
    other *= start.norm(dim=1, keepdim=True) / other.norm(dim=1, keepdim=True)
    for dtype in (torch.float64, torch.float32):
        parameter = nn.Parameter(start.to(dtype, copy=True))
        plan = plan_of({"w": parameter}, [ScaleGroup("w", (GroupPart("w"),), blocks=6, kind="row")])
        reference, x0 = ReferenceWeights(), start.to(dtype).double().numpy()
        prepare(reference, plan)
        with torch.no_grad():
            parameter.copy_(length * (math.cos(radians) * start + math.sin(radians) * other))
        found = angle(measured(reference, plan)["w"])
        if dtype == torch.float64:
            np.testing.assert_allclose(found, radians, rtol=1e-3)
        x = parameter.detach().double().numpy()  # in float32 rounding moves the weights more than the smallest angles
        u0, u = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (x0, x))
        by_chords = 2 * np.arctan2(np.linalg.norm(u - u0, axis=1), np.linalg.norm(u + u0, axis=1))
        np.testing.assert_allclose(found, by_chords, rtol=1e-3)


@PLACES
def test_the_reference_is_never_the_live_weights(streamed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """An optimizer updates in place; given weights may be the live ones; training must not change by a bit."""
    monkeypatch.setattr(module, "DEVICE_LIMIT_MB", 0 if streamed else 256)
    finals = []
    for given in (None, "live", "none at all"):
        model = conv_net()
        live = dict(model.named_parameters())
        names = ["0.weight", "3.weight", "9.weight"]
        layers = [ScaleGroup(name, (GroupPart(name),), blocks=len(live[name]), kind="row") for name in names]
        plan = plan_of(live, layers)
        reference = ReferenceWeights(model.state_dict() if given == "live" else None)
        before = copies(live)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, foreach=True)
        for images, classes in batches(3):
            if given != "none at all":
                prepare(reference, plan)
            optimizer.zero_grad()
            cross_entropy(model(images), classes).backward()
            optimizer.step()
        if given != "none at all":
            random = torch.get_rng_state()
            assert_sums(reference, plan, before, live)
            assert torch.equal(random, torch.get_rng_state())
            assert all(np.all(angle(sums) > 1e-3) for sums in measured(reference, plan).values())
        finals.append(copies(live))
    for name in finals[0]:
        assert torch.equal(finals[0][name], finals[2][name])
        assert torch.equal(finals[1][name], finals[2][name])


@PLACES
def test_a_new_plan_keeps_starts_and_a_layer_that_joins_starts_there(
    streamed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "DEVICE_LIMIT_MB", 0 if streamed else 256)
    parameters, reference = weights(), ReferenceWeights()
    first = plan_of(parameters, GROUPS[:2])
    prepare(reference, first)
    before = copies(parameters)
    move(parameters)
    joined = copies(parameters)
    everything = plan_of(parameters)
    prepare(reference, everything)
    before |= {name: joined[name] for name in ("whole", "bias", "columns")}
    move(parameters, seed=2)
    prepare(reference, plan_of(parameters, GROUPS[2:4]))  # the first ones leave for a while, frozen
    move(parameters, seed=3)
    prepare(reference, everything)
    assert_sums(reference, everything, before, parameters)


def test_another_object_of_the_same_name_starts_anew_unless_its_reference_is_given() -> None:
    for given in (None, copies(weights(seed=5))):
        parameters, reference = weights(), ReferenceWeights(given)
        prepare(reference, plan_of(parameters))
        move(parameters)
        parameters["rows"] = nn.Parameter(torch.randn(SHAPES["rows"], generator=torch.Generator().manual_seed(9)))
        start = copies(parameters)["rows"]
        plan = plan_of(parameters)
        prepare(reference, plan)
        assert reference.nbytes == sum(parameter.nbytes for parameter in parameters.values())  # the old one is gone
        move(parameters, seed=2)
        found = measured(reference, plan)["rows"]
        before = {"rows": start} if given is None else given
        np.testing.assert_allclose(found, expected(GROUPS[0], before, parameters), rtol=1e-12)


def test_parameters_can_still_be_swapped(monkeypatch: pytest.MonkeyPatch) -> None:
    """``torch.utils.swap_tensors``, a way of ``module.to``, refuses tensors that a weak reference points to."""
    layer = nn.Linear(3, 4)
    reference, group = ReferenceWeights(), ScaleGroup("w", (GroupPart("weight"),), blocks=4, kind="row")
    before = copies(dict(layer.named_parameters()))
    prepare(reference, plan_of(dict(layer.named_parameters()), [group]))
    monkeypatch.setattr("torch.__future__._swap_module_params_on_conversion", True)
    layer.double()
    parameters = dict(layer.named_parameters())
    plan = plan_of(parameters, [group])
    prepare(reference, plan)
    move(parameters)
    assert_sums(reference, plan, before, parameters)


def test_a_resized_parameter_starts_anew() -> None:
    parameters, reference = weights(), ReferenceWeights()
    prepare(reference, plan_of(parameters, GROUPS[1:2]))
    parameters["blocks"].data = torch.randn(10, 5, generator=torch.Generator().manual_seed(4))
    before = copies(parameters)
    plan = plan_of(parameters, GROUPS[1:2])
    prepare(reference, plan)
    move(parameters)
    assert_sums(reference, plan, before, parameters)


def test_a_tensor_in_two_cuts_is_copied_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows along both of its axes share no sums: two slots, of which one finds its reference in another order."""
    parameters = {"columns": weights()["columns"]}
    groups = [GROUPS[3], ScaleGroup("rows", (GroupPart("columns"),), blocks=3, kind="row")]
    for limit in (256, 0):
        monkeypatch.setattr(module, "DEVICE_LIMIT_MB", limit)
        plan, reference, before = plan_of(parameters, groups), ReferenceWeights(), copies(parameters)
        assert len(plan.slots) == 2
        prepare(reference, plan)
        assert reference.nbytes == parameters["columns"].nbytes
        move(parameters)
        assert_sums(reference, plan, before, parameters)


@PLACES
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_given_weights_and_what_is_not_given(
    dtype: torch.dtype, streamed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "DEVICE_LIMIT_MB", 0 if streamed else 256)
    given = {name: tensor.double() for name, tensor in copies(weights(torch.float32, seed=6)).items()}
    del given["rows"]
    given["bias"] = torch.ones(2, 2)
    before = {name: tensor.to(dtype) for name, tensor in given.items()}  # as loading it into the model would round it
    reference = ReferenceWeights(given)
    given["blocks"] = torch.zeros(8, 5)  # the caller's mapping is the caller's
    parameters = weights(dtype)
    plan = plan_of(parameters)
    prepare(reference, plan)
    assert reference.missing == {"rows": "not among the given weights", "bias": "shape (2, 2) there, (4,) here"}
    found = measured(reference, plan)
    for group in GROUPS:
        if group.name in ("blocks", "columns"):
            np.testing.assert_allclose(found[group.name], expected(group, before, parameters), rtol=1e-12)
        else:
            assert np.isnan(found[group.name]).all()


def test_given_weights_are_let_go_once_they_are_copied() -> None:
    parameters, given = weights(), copies(weights(seed=6))
    watched = {name: weakref.ref(tensor) for name, tensor in given.items()}
    reference = ReferenceWeights(given)
    del given
    prepare(reference, plan_of(parameters, GROUPS[:2]))
    gc.collect()
    assert {name for name, tensor in watched.items() if tensor() is not None} == {"whole", "bias", "columns"}


def test_memory_of_the_host_is_pinned_where_it_can_be() -> None:
    memory, pinned = module._on_host(torch.Size((2, 3)), torch.bfloat16)
    assert (memory.shape, memory.dtype, memory.device.type) == ((2, 3), torch.bfloat16, "cpu")
    assert pinned == memory.is_pinned()
    assert pinned or not torch.cuda.is_available()


def test_weights_without_data_are_measured_without_reading() -> None:
    parameters = {name: nn.Parameter(p.detach().to("meta")) for name, p in weights().items()}
    plan, reference = plan_of(parameters), ReferenceWeights()
    row = torch.empty(3, plan.segments, dtype=torch.float64, device="meta")
    with no_host_reads():
        prepare(reference, plan)
        reference.write(TorchSums(plan, COLUMNS), row)
    assert reference.placement == "device"


def test_bfloat16_copies_would_put_the_documented_floor_under_the_drift() -> None:
    start = torch.randn(100, 4096, generator=torch.Generator().manual_seed(0)).double()
    rounded = start.bfloat16().double()
    change = rounded - start
    sums = torch.stack([(start * start).sum(1), (start * change).sum(1), (change * change).sum(1)]).numpy()
    assert angle(sums).mean() == pytest.approx(1.66e-3, rel=1e-2)
    assert "1.66e-3 rad" in (module.__doc__ or "")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("limit", [5, 1 << 22])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("given", [False, True])
@PLACES
def test_on_a_gpu_nothing_waits(
    streamed: bool, given: bool, dtype: torch.dtype, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lightning_sphere.measurement.plan.CHUNK_ELEMENTS_ELSEWHERE", limit)
    monkeypatch.setattr(module, "DEVICE_LIMIT_MB", 0 if streamed else 256)
    parameters = {name: nn.Parameter(p.detach().cuda()) for name, p in weights(dtype).items()}
    before = copies(weights(dtype, seed=7)) if given else copies(parameters)
    plan, reference = plan_of(parameters), ReferenceWeights(before if given else None)
    row = torch.empty(3, plan.segments, dtype=torch.float64, device="cuda")
    sums = TorchSums(plan, COLUMNS)
    try:
        torch.cuda.set_sync_debug_mode("error")
        prepare(reference, plan)
        move_on_device(parameters)
        reference.write(sums, row)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert reference.placement == ("pinned host memory" if streamed else "device")
    assert_sums(reference, plan, before, parameters)


def move_on_device(parameters: Mapping[str, nn.Parameter]) -> None:
    with torch.no_grad():
        for parameter in parameters.values():
            parameter.mul_(1.1).add_(0.05)
