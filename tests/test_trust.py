"""What is not the optimizer's formula is never recorded as if it were, once no copy of the weights is kept."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from lightning_sphere import GroupPart, ScaleGroup, SphereTracker, read_run
from lightning_sphere.background import Background
from lightning_sphere.measurement import host_kernel
from lightning_sphere.measurement.step import ASKED_EVERY
from lightning_sphere.measurement.trust import FAITHFUL, WRONG, Trust
from nets import FIRST, LAST, SECOND, batches, conv_net
from oracle import Watch, assert_recorded, layer_index

needs_kernel = pytest.mark.skipif(host_kernel.load() is None, reason=f"no kernel: {host_kernel.reason()}")


def test_trust_is_given_by_comparison_and_lost_for_good() -> None:
    trust = Trust(possible=True)
    assert not trust.now
    trust.judge(FAITHFUL)
    assert trust.now
    trust.judge(2 * FAITHFUL)
    assert not trust.now
    trust.judge(0.0)
    assert trust.now
    trust.judge(2 * WRONG)
    trust.judge(0.0)
    assert not trust.now
    impossible = Trust(possible=False)
    impossible.judge(0.0)
    assert not impossible.now


def test_a_lower_rate_wants_another_comparison() -> None:
    trust = Trust(possible=True)
    assert not trust.due([0.1], [True])
    trust.compared_at([0.1, 0.2], [True])
    trust.judge(0.0)
    assert not trust.due([0.06, 0.3], [True])
    assert trust.now
    assert trust.due([0.1, 0.09], [True])
    assert not trust.now
    trust.compared_at([0.1, 0.09], [True])
    assert not trust.due([0.1, 0.09], [True])


def test_another_part_of_the_formula_wants_another_comparison() -> None:
    trust = Trust(possible=True)
    trust.compared_at([0.1], [True, False])
    trust.learn([1], [True])
    trust.judge(0.0)
    assert trust.due([0.1], [True, True]), "decay begins"
    assert not trust.now
    trust.compared_at([0.1], [True, True])
    assert trust.usual([2], [True]), "decay writes once more"


def test_writes_are_compared_where_they_are_known() -> None:
    trust = Trust(possible=True)
    assert trust.usual([3, 3], [True, True]), "nothing is known yet"
    trust.learn([1, 0], [True, False])
    assert trust.usual([1, 5], [True, True])
    assert not trust.usual([2, 5], [True, True])
    assert trust.usual([0, 5], [False, True])
    trust.learn([1, 2], [True, True])
    assert not trust.usual([1, 3], [True, True])


# --------------------------------------------------------------- whole runs


class Lookahead(AdamW):
    """Each fifth step it goes halfway back."""

    count = 0

    def step(self, closure: Any = None) -> Any:
        if self.count % 5 == 0:
            self.slow = [p.detach().clone() for p in self.param_groups[0]["params"]]
        result = super().step(closure)
        self.count += 1
        if self.count % 5 == 0:
            with torch.no_grad():
                for p, slow in zip(self.param_groups[0]["params"], self.slow, strict=True):
                    p.lerp_(slow, 0.5)
        return result


class EachSecond(AdamW):
    """Steps at each second call only."""

    count = 0

    def step(self, closure: Any = None) -> Any:
        self.count += 1
        return super().step(closure) if self.count % 2 else None


def projecting(parameters: Any) -> Optimizer:
    optimizer = AdamW(parameters, 1e-2)
    calls: list[int] = []

    def project(*_: Any) -> None:
        calls.append(1)
        if len(calls) % 10 == 0:
            with torch.no_grad():
                for p in optimizer.param_groups[0]["params"]:
                    p.mul_(0.9)

    optimizer.register_step_post_hook(project)
    return optimizer


def decaying(parameters: Any) -> Optimizer:
    optimizer = AdamW(parameters, 1e-2, weight_decay=0.0)
    calls: list[int] = []

    def begin(*_: Any) -> None:
        calls.append(1)
        optimizer.param_groups[0]["weight_decay"] = 0.3 if len(calls) > 60 else 0.0

    optimizer.register_step_pre_hook(begin)
    return optimizer


def thrice(parameters: Any) -> Optimizer:
    """Moves three times as far, after a warm-up from 0."""

    class Thrice(AdamW):
        def step(self, closure: Any = None) -> Any:
            before = [p.detach().clone() for p in self.param_groups[0]["params"]]
            result = super().step(closure)
            with torch.no_grad():
                for p, x in zip(self.param_groups[0]["params"], before, strict=True):
                    p.add_(p - x, alpha=2.0)
            return result

    return Thrice(parameters, 1e-2)


CASES: dict[str, tuple[Callable[[Any], Optimizer], Callable[[int], float]]] = {
    "interpolates each fifth step": (lambda p: Lookahead(p, 1e-2), lambda s: 1.0),
    "steps each second call": (lambda p: EachSecond(p, 1e-2), lambda s: 1.0),
    "is projected each tenth step": (projecting, lambda s: 1.0),
    "moves three times as far": (thrice, lambda s: min(1.0, s / 20)),
    "lr falls to a millionth": (lambda p: AdamW(p, 1e-2), lambda s: 1.0 if s < 55 else 1e-6),
    "decay begins": (decaying, lambda s: 1.0),
    "lr falls slowly": (lambda p: SGD(p, 0.1), lambda s: 0.8**s),
}


@needs_kernel
@pytest.mark.usefixtures("at_once")
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("case", CASES)
def test_what_is_recorded_is_what_happened(case: str, tmp_path: Path) -> None:
    make, schedule = CASES[case]
    torch.manual_seed(0)
    model = conv_net()
    optimizer = make(model.parameters())
    scheduler = LambdaLR(optimizer, schedule)
    watch = Watch(model, optimizer)
    with SphereTracker(model, optimizer, tmp_path, flush_every_n_steps=10, quantities=["norm", "angular_step"]):
        for images, classes in batches(110):
            optimizer.zero_grad()
            cross_entropy(model(images), classes).backward()
            watch.before()
            optimizer.step()
            watch.after()
            scheduler.step()
    record = read_run(tmp_path)
    places = [layer_index(record, name) for name in (FIRST, SECOND, LAST)]
    known = ~np.isnan(record["angular_step"][:, places]).any(1)
    assert known.sum() >= 105, "steps that cannot be told are left out, and then all are copied"
    watch.steps = [seen for seen, is_known in zip(watch.steps, known, strict=True) if is_known]

    class Known:
        quantities, stats, layers, groups = record.quantities, record.stats, record.layers, record.groups
        steps, values = np.arange(known.sum()), record.values[known]

    # Where the rate falls, a flush's steps may be smaller than those compared: they are rounded more.
    assert_recorded(Known, watch, [FIRST, SECOND, LAST], adam=False, relative=1e-3 if "lr" in case else 2e-4)


@needs_kernel
@pytest.mark.usefixtures("at_once")
def test_a_rate_that_changes_within_the_step_is_not_taken_for_the_one_before(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = conv_net()
    optimizer = AdamW(model.parameters(), 1e-2)
    watch, calls = Watch(model, optimizer), []

    def change(*_: Any) -> None:
        calls.append(1)
        optimizer.param_groups[0]["lr"] = 3e-2 if len(calls) % 10 == 0 else 1e-2

    with SphereTracker(model, optimizer, tmp_path, flush_every_n_steps=5, strict=True):
        optimizer.register_step_pre_hook(change)  # after the tracker's
        for images, classes in batches(60):
            optimizer.zero_grad()
            cross_entropy(model(images), classes).backward()
            watch.before()
            optimizer.step()
            watch.after()
    record = read_run(tmp_path)
    angle = record["angular_step"][:, layer_index(record, FIRST)]
    true = []
    for seen in (step[FIRST] for step in watch.steps):
        x, after = seen.before.flatten(1).double(), seen.after.flatten(1).double()
        unit = x / x.norm(dim=1, keepdim=True)
        along = (unit * after).sum(1)
        across = (after - unit * along.unsqueeze(1)).norm(dim=1)
        true.append(float(np.median(torch.atan2(across, along).numpy())))
    known = ~np.isnan(angle)
    assert known.sum() >= 58
    np.testing.assert_allclose(angle[known], np.array(true)[known], rtol=2e-4)


def test_comparisons_do_not_fall_on_what_happens_at_each_fifth_step() -> None:
    assert all(ASKED_EVERY % number for number in range(2, ASKED_EVERY))


@needs_kernel
def test_numbers_of_other_memory_at_the_same_address_are_not_read(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = conv_net()
    optimizer = SGD(model.parameters(), 0.1)
    with SphereTracker(model, optimizer, tmp_path, strict=True):
        for number, (images, classes) in enumerate(batches(6)):
            optimizer.zero_grad()
            cross_entropy(model(images.to(model[0].weight.dtype)).float(), classes).backward()
            optimizer.step()
            if number == 2:
                for p in model.parameters():
                    p.data = p.data.bfloat16()
                    p.data = p.data.clone()
                for buffer in model.buffers():
                    buffer.data = buffer.data.bfloat16() if buffer.is_floating_point() else buffer.data
    record = read_run(tmp_path)
    norm = record["norm"][:, layer_index(record, FIRST)]
    assert np.isfinite(norm).all()
    assert abs(np.diff(norm)).max() < 0.2, "no jump where the dtype changed"


@needs_kernel
def test_gradients_with_odd_bits_are_read_as_they_are(tmp_path: Path) -> None:
    groups = [ScaleGroup("weight", (GroupPart("weight"),), blocks=4, kind="row")]

    def run(odd: bool) -> Any:
        torch.manual_seed(0)
        parameter = nn.Parameter(torch.randn(4, 8))
        model = nn.Module()
        model.weight = parameter
        optimizer = SGD([parameter], 0.1)
        with SphereTracker(model, optimizer, tmp_path / str(odd), strict=True, groups=groups):
            for _ in range(3):
                gradient = torch.randn(4, 8)
                if odd:
                    gradient = torch.complex(gradient, -gradient).conj().imag  # the same numbers, stored negated
                    assert gradient.is_neg()
                    with torch.inference_mode():
                        gradient = gradient + 0.0
                parameter.grad = gradient
                optimizer.step()
        return read_run(tmp_path / str(odd)).values

    np.testing.assert_array_equal(run(odd=True), run(odd=False))


# --------------------------------------------------------------- the thread


def test_ctrl_c_in_a_wait_loses_nothing() -> None:
    background: Background[int] = Background()
    go = threading.Event()
    background.start(lambda: 7 if go.wait(20) else 0)
    timer = threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        background.take()
    timer.join()
    assert not background.idle
    go.set()
    assert background.take() == 7
    background.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_forked_process_does_not_wait_for_a_thread_that_it_has_not() -> None:
    background: Background[int] = Background()
    go = threading.Event()
    background.start(lambda: int(go.wait(20)))
    child = os.fork()
    if child == 0:
        ok = background.idle and not background.done and background.take() is None
        background.close()
        os._exit(0 if ok else 1)
    deadline = threading.Timer(15.0, lambda: os.kill(child, signal.SIGKILL))
    deadline.start()
    _, status = os.waitpid(child, 0)
    deadline.cancel()
    go.set()
    assert background.take() == 1
    background.close()
    assert status == 0


def test_a_failing_sink_leaves_no_thread_behind(tmp_path: Path) -> None:
    class Broken:
        def write(self, _: Any) -> None:
            raise ZeroDivisionError

        def close(self) -> None: ...

    before = threading.active_count()
    torch.manual_seed(0)
    model = conv_net()
    optimizer = SGD(model.parameters(), 0.1)
    with (
        pytest.raises(ZeroDivisionError),
        SphereTracker(model, optimizer, tmp_path, sinks=[Broken()], strict=True),
    ):
        for images, classes in batches(3):
            cross_entropy(model(images), classes).backward()
            optimizer.step()
    assert threading.active_count() == before
