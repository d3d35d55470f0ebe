"""Each verdict on a claim of invariance, reached by construction; and that they cost the files nothing."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lightning_sphere import GroupPart, ScaleGroup, SphereMonitor, SphereTracker, read_run
from lightning_sphere.epsilon import Norms, NormStatistics, rescaled_share
from lightning_sphere.geometry import InnerProducts
from lightning_sphere.measurement.transfer import Transfer
from lightning_sphere.recording import Recording
from lightning_sphere.verdict import judge, outcome_of
from lightning_sphere.verification import FIRST_STEPS, RECENT_STEPS, Ledger, Verification
from lit import LitNet, loader, quiet_trainer
from nets import FIRST, LAST, batches, conv_net
from test_summary import rendered


def train(
    model: nn.Module,
    steps: int = 30,
    *,
    folder: Path | None = None,
    lr: float = 0.05,
    at: dict[int, Callable[[], object]] | None = None,
    dtype: torch.dtype | None = None,
    **options: Any,
) -> SphereTracker:
    optimizer = torch.optim.SGD(model.parameters(), lr, momentum=0.9)
    options = {"strict": True, "flush_every_n_steps": 10, **options}
    with SphereTracker(model, optimizer, folder, **options) as tracker:
        for step, (images, classes) in enumerate(batches(steps)):
            (at or {}).get(step, lambda: None)()
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=dtype is not None):
                loss = cross_entropy(model(images), classes)
            loss.backward()
            optimizer.step()
    return tracker


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_a_true_claim_is_verified(dtype: torch.dtype | None) -> None:
    verdicts = train(conv_net(), dtype=dtype).verdicts
    assert set(verdicts) == {"0", "3"}  # nothing is claimed of the last layer
    for verdict, groups in zip(verdicts.values(), (8, 11), strict=True):
        assert (verdict.outcome, verdict.groups, verdict.seen, verdict.verified) == ("verified", groups, groups, groups)
        assert verdict.share == verdict.verified_share == 1.0
        for residual in (verdict.first, verdict.residual, verdict.overall):
            assert 0 < residual <= verdict.worst < (1e-4 if dtype is None else 1e-2)


def claim(parameter: str, blocks: int, kind: Any = "row") -> ScaleGroup:
    return ScaleGroup(f"claim on {parameter}", (GroupPart(parameter),), blocks, kind)


@pytest.mark.parametrize("group", [claim(LAST, 10), claim(LAST, 1, "whole")], ids=["rows", "whole"])
def test_a_wrong_claim_of_the_user_is_contradicted_and_told_once(
    group: ScaleGroup, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "lightning_sphere"):
        tracker = train(conv_net(), groups=[claim(FIRST, 8), group])
    verdicts = tracker.verdicts
    assert [verdict.outcome for verdict in verdicts.values()] == ["verified", "contradicted"]
    verdict = verdicts[group.name]
    assert verdict.contradicted == verdict.seen == group.blocks
    assert verdict.residual > 1e-2
    (message,) = (record.getMessage() for record in caplog.records)
    assert message.startswith(f"claim on {LAST} was taken to be scale-invariant, and its gradients contradict it in ")
    assert message.endswith("discovery says: not invariant: no normalization follows before the loss")


def test_a_claim_that_becomes_wrong_is_contradicted_and_is_verified_again_when_it_is_true_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """In evaluation mode a BatchNorm is an affine map. The most recent steps decide."""
    model = conv_net()
    outcomes: list[str] = []

    class Look:
        def write(self, recording: Recording) -> None:
            outcomes.append(tracker.verdicts["3"].outcome)

        def close(self) -> None: ...

    steps = {60: model[4].eval, 100: model[4].train}
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    with SphereTracker(model, optimizer, sinks=[Look()], flush_every_n_steps=10, strict=True) as tracker:
        for step, (images, classes) in enumerate(batches(200)):
            steps.get(step, lambda: None)()
            optimizer.zero_grad()
            cross_entropy(model(images), classes).backward()
            optimizer.step()
    assert outcomes[:6] == ["verified"] * 6
    assert outcomes[6:10] == ["contradicted"] * 4
    assert outcomes[-1] == "verified"
    verdict = tracker.verdicts["3"]
    assert verdict.first < 1e-4
    assert verdict.residual < 1e-4 < verdict.overall
    (message,) = (record.getMessage() for record in caplog.records)
    assert message.startswith("3 was taken to be scale-invariant, and its gradients contradict it in ")
    assert message.endswith("It was taken for this reason: invariant per filter: BatchNorm `4` follows")


@pytest.mark.parametrize("tiny", [1, 3, 5])
def test_filters_whose_variance_drowns_in_eps_are_told_with_their_share(tiny: int, tmp_path: Path) -> None:
    model = conv_net()
    with torch.no_grad():
        model[0].weight[:tiny] *= 1e-4
    tracker = train(model, 10, lr=1e-12, folder=tmp_path)  # the filters stay as they are
    first, second = tracker.verdicts["0"], tracker.verdicts["3"]
    assert (first.outcome, first.eps_dominated, first.verified) == ("eps dominates", tiny, 8 - tiny)
    assert first.share == tiny / 8
    assert first.verified_share == 1 - tiny / 8
    assert first.worst > 1e-2
    assert second.outcome == "verified"
    rows = {row["layer"]: row for row in read_run(tmp_path).groups}
    assert rows["0"]["verdict"] == "eps dominates"
    assert rows["0"]["verified_share"] == 1 - tiny / 8
    assert rows["0"]["residual"] == pytest.approx(first.residual)
    assert rows["9"]["verdict"] is rows["9"]["verified_share"] is rows["9"]["residual"] is None


class Normed(nn.Module):
    """A linear layer before a LayerNorm, which has no running variance."""

    def __init__(self, scale: float, eps: float = 1e-5) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear, self.norm, self.head = nn.Linear(64, 16), nn.LayerNorm(16, eps=eps), nn.Linear(16, 10)
        with torch.no_grad():
            self.linear.weight *= scale
            self.linear.bias *= scale

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.norm(self.linear(images.flatten(1))))
        return logits


@pytest.mark.parametrize(("scale", "outcome"), [(1.0, "verified"), (1e-3, "eps dominates")])
def test_eps_is_known_of_norms_without_running_variance(scale: float, outcome: str) -> None:
    verdict = train(Normed(scale), 10, lr=1e-12).verdicts["linear"]
    assert (verdict.outcome, verdict.groups) == (outcome, 1)


def test_eps_does_not_excuse_a_wrong_claim() -> None:
    """Some filters drown in eps, but all of them lie before a BatchNorm in evaluation mode."""
    model = conv_net()
    with torch.no_grad():
        model[0].weight[:2] *= 1e-4
    verdict = train(model, 70, lr=1e-12, at={10: model[1].eval}).verdicts["0"]
    assert verdict.outcome == "contradicted"
    assert verdict.contradicted >= 5


class Branches(nn.Module):
    """A branch that is not used, one behind a gain of zero, and one that is used."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.used, self.zero, self.late = (nn.Conv2d(1, 4, 3, bias=False) for _ in range(3))
        self.norms = nn.ModuleList(nn.BatchNorm2d(4) for _ in range(3))
        nn.init.zeros_(self.norms[1].weight)
        self.norms[1].weight.requires_grad_(False)
        self.head, self.weight = nn.Linear(4, 10), 0.0

    def forward(self, images: Tensor) -> Tensor:
        x = self.norms[0](self.used(images)) + self.norms[1](self.zero(images))
        x = x + self.weight * self.norms[2](self.late(images))
        logits: Tensor = self.head(x.relu().mean((2, 3)))
        return logits


def test_without_a_gradient_nothing_is_said_until_there_is_one() -> None:
    model = Branches()
    tracker = train(model, 20)
    assert {name: verdict.outcome for name, verdict in tracker.verdicts.items()} == {
        "used": "verified",
        "zero": "not yet seen",
        "late": "not yet seen",
    }
    unseen = tracker.verdicts["zero"]
    assert (unseen.groups, unseen.seen) == (4, 0)
    assert all(math.isnan(x) for x in (unseen.share, unseen.verified_share, unseen.residual, unseen.worst))
    model = Branches()
    later = train(model, 20, at={12: lambda: setattr(model, "weight", 1.0)}).verdicts
    assert [later[name].outcome for name in ("zero", "late")] == ["not yet seen", "verified"]


def test_a_group_of_one_entry_says_nothing() -> None:
    """The cosine of two numbers is 1, whatever they are: an invariant one has no gradient but rounding."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, bias=False),
        nn.BatchNorm2d(4),
        nn.Conv2d(4, 4, 1, groups=4, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 10),
    )
    assert [verdict.outcome for verdict in train(model).verdicts.values()] == ["verified", "not yet seen"]


def test_the_table_names_what_is_not_verified_within_80_columns(tmp_path: Path) -> None:
    model = Branches()
    with torch.no_grad():
        model.used.weight[:1] *= 1e-4
    tracker = train(model, 20, lr=1e-12, folder=tmp_path)
    lines = rendered(tracker.summary(), 80)
    assert max(map(len, lines)) <= 80
    worst = tracker.verdicts["used"].worst
    assert f"  used: 1 of 4 groups, residual up to {worst:.0e}" in lines
    assert "eps dominates: invariant but for the norm's eps, not small against the variance" in lines
    start = lines.index("not yet seen: no gradient tells yet whether it is invariant")
    assert lines[start + 1 : start + 4] == ["  zero", "  late", ""]
    assert "contradicted" not in "\n".join(lines)
    rows = {row["layer"]: row for row in read_run(tmp_path).groups}
    assert (rows["zero"]["verdict"], rows["zero"]["residual"]) == ("not yet seen", None)


def test_many_layers_of_one_verdict_are_counted() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10), *(nn.Linear(10, 10) for _ in range(6)))
    given = [claim(f"{i}.weight", 10) for i in range(1, 8)]
    lines = rendered(train(model, groups=given).summary(), 80)
    start = lines.index("contradicted: its gradients say that it is not invariant, against the claim")
    assert [line.split(":")[0].strip() for line in lines[start + 1 : start + 6]] == [g.name for g in given[:5]]
    assert lines[start + 6 : start + 8] == ["  and 2 more", ""]


def test_the_callback_has_the_verdicts(tmp_path: Path) -> None:
    monitor = SphereMonitor(strict=True)
    assert monitor.verdicts == {}
    quiet_trainer(tmp_path, callbacks=[monitor]).fit(LitNet(), loader(count=64))
    assert {name: verdict.outcome for name, verdict in monitor.verdicts.items()} == {
        "net.0": "verified",
        "net.3": "verified",
    }


# ------------------------------------------------------------------ pure parts


Array = npt.NDArray[np.float64]


def double(*values: float) -> Array:
    return np.array(values, dtype=np.float64)


UNKNOWN = double(math.nan)
"""No norm tells its share of eps."""


def test_groups_are_sorted_by_their_residual() -> None:
    cases = [  # residual, first, size, share of eps -> verified, dominated, contradicted
        ((0.009, 0.009, 100, 0.0), (True, False, False)),
        ((0.011, 0.011, 100, 0.0), (False, False, True)),
        ((0.029, 0.009, 100, 0.0), (True, False, False)),  # the first steps bore it out
        ((0.031, 0.009, 100, 0.0), (False, False, True)),
        ((0.05, 0.05, 100, 0.006), (False, True, False)),
        ((0.05, 0.05, 100, 0.004), (False, False, True)),
        ((0.009, 0.009, 1e6, 0.001), (True, False, False)),  # eps explains it, and it is small in practice
        ((0.02, 0.02, 4, 0.5), (False, True, False)),
        ((1.0, 1.0, 1, 0.0), (False, False, False)),
        ((math.nan, math.nan, 100, 1.0), (False, False, False)),
        ((0.02, math.nan, 100, 0.0), (False, False, True)),
    ]
    columns = [double(*column) for column in zip(*(numbers for numbers, _ in cases), strict=True)]
    sorts = judge(*columns)
    assert list(zip(*(mask.tolist() for mask in sorts), strict=True)) == [expected for _, expected in cases]


def test_one_group_in_a_hundred_decides_nothing() -> None:
    assert outcome_of(0, 0, 0) == "not yet seen"
    assert outcome_of(99, 0, 1) == outcome_of(99, 1, 0) == "verified"
    assert outcome_of(98, 0, 1) == "contradicted"
    assert outcome_of(98, 1, 0) == "eps dominates"
    assert outcome_of(0, 50, 50) == "contradicted"


@settings(deadline=None, max_examples=60, derandomize=True)
@given(st.lists(st.sampled_from([1, 2, 3, 7, 30, 49, 50, 51, 130]), min_size=1, max_size=8), st.integers(0, 2**31))
def test_running_sums_equal_those_over_the_steps(flushes: list[int], seed: int) -> None:
    """Whatever the sizes of the flushes; the recent window is that of whole flushes, or the end of a long one."""
    generator = torch.Generator().manual_seed(seed)
    layer = ScaleGroup("layer", (GroupPart("w"),), 3, "row", members=(0, 2))
    ledger = Ledger([layer])
    steps = sum(flushes)
    gx, gg, xx = (torch.randn(steps, 3, generator=generator, dtype=torch.float64) for _ in range(3))
    gg, xx = gg.square() + 1.0, xx.square() + 1.0
    gg[torch.rand(steps, 3, generator=generator) < 0.3] = torch.nan  # no gradient
    for part in zip(*(torch.split(sums, flushes) for sums in (gx, gg, xx)), strict=True):
        ledger.add(*(sums.numpy() for sums in part), UNKNOWN.repeat(3))
    (verdict,) = ledger.verdicts(np.full(3, 4.0))

    def expected(window: slice) -> Tensor:
        radial = (gx.square() + 0.0 * gg)[window].nansum(0)
        return (radial / (gg * xx)[window].nansum(0)).sqrt()[[0, 2]]

    chunks: list[int] = []
    for flush in flushes:
        if chunks and chunks[-1] + min(flush, RECENT_STEPS) <= 10:
            chunks[-1] += flush
        else:
            chunks.append(min(flush, RECENT_STEPS))
    recent = next((n for k in range(1, 9) if (n := sum(chunks[-k:])) >= RECENT_STEPS), sum(chunks))
    if recent == sum(flushes) or recent <= sum(flush for flush in flushes[-1:]) or max(flushes) <= RECENT_STEPS:
        window = expected(slice(steps - recent, None))
        if not window.isnan().any():
            np.testing.assert_allclose(ledger.residual[[0, 2]], window)
    for value, window in ((verdict.first, slice(FIRST_STEPS)), (verdict.overall, slice(None))):
        assert value == pytest.approx(float(expected(window).nanmedian()), nan_ok=True)


def test_skipped_steps_do_not_count() -> None:
    verification, steps = Verification(), torch.full((40, 1), torch.nan, dtype=torch.float64)
    layer = ScaleGroup("layer", (GroupPart("w"),), 1, "whole")
    products = InnerProducts(*[steps] * 7, size=torch.tensor([9.0]).double())
    verification.take(products, [layer])
    assert verification.verdicts["layer"].outcome == "not yet seen"
    steps[35:] = 1.0  # the last five are taken: all of these numbers are 1
    for flushes in range(1, 12):
        verification.take(products, [layer])
        (ledger, _), *others = verification._arranged[0].ledgers
        assert not others
        assert (ledger.first.steps, ledger.overall.steps) == (min(5 * flushes, 20), 5 * flushes)
    assert verification.verdicts["layer"].overall == 1.0


def test_a_claim_that_is_another_one_is_judged_anew() -> None:
    verification, ones = Verification(), torch.ones(30, 2, dtype=torch.float64)
    unknown = {"xd": ones, "dd": ones, "bb": ones, "lr": ones}

    def after(residual: float, layer: ScaleGroup) -> Any:
        steps = {"xx": ones, "gg": ones, "gx": residual * ones}
        products = {name: value[:, : layer.blocks] for name, value in {**unknown, **steps}.items()}
        verification.take(InnerProducts(**products, size=torch.full((layer.blocks,), 4.0).double()), [layer])
        return verification.verdicts.get(layer.name)

    layer = ScaleGroup("layer", (GroupPart("w"),), 2, "row")
    for other in (replace(layer, kind="none"), replace(layer, blocks=1), replace(layer, members=(1,))):
        assert after(0.5, layer).outcome == "contradicted"
        verdict = after(1e-9, other)
        assert verdict is None if other.kind == "none" else verdict.overall == pytest.approx(1e-9)
        assert after(1e-9, layer).overall == pytest.approx(1e-9)  # what was known of the first claim is forgotten


def test_of_the_first_steps_the_larger_share_of_eps_counts() -> None:
    """A running variance follows slowly."""
    share, one = np.zeros(1), np.ones((5, 1))
    ledger = Ledger([ScaleGroup("layer", (GroupPart("w"),), 1, "whole", eps_share=0.5)])
    ledger.add(0.5 * one, one, one, share)
    assert ledger.verdicts(double(9))[0].outcome == "eps dominates"
    later = Ledger([ScaleGroup("layer", (GroupPart("w"),), 1, "whole", eps_share=0.5)])
    for _ in range(30):
        later.add(1e-9 * one, one, one, share)
    for _ in range(30):
        later.add(0.5 * one, one, one, share)
    assert later.verdicts(double(9))[0].outcome == "contradicted"


def test_the_running_variance_tells_the_share_of_eps_at_any_time() -> None:
    """It is born 1; what remains of that after a few batches must not hide a small variance."""
    norm = nn.BatchNorm2d(3, eps=1e-5)
    layer = ScaleGroup("conv", (GroupPart("conv.weight"),), 3, "row", norm="BatchNorm `bn`")
    scale = torch.tensor([1.0, 1e-3, 1e-5]).view(1, 3, 1, 1)
    torch.manual_seed(0)
    for _ in range(5):
        norm(torch.randn(64, 3, 8, 8) * scale)

    def running_share(modules: dict[str, nn.Module]) -> Array | None:
        return NormStatistics.take(Norms([layer], modules), Transfer).shares().get(0)

    share = running_share({"bn": norm})
    assert share is not None
    np.testing.assert_allclose(share, double(1e-5, 1 / 1.1, 1.0), rtol=0.05, atol=0.0)
    norm.num_batches_tracked.fill_(3)  # a variance that was loaded, smaller than what would remain of 1
    norm.running_var.fill_(0.1)
    loaded = running_share({"bn": norm})
    np.testing.assert_allclose(loaded, double(1e-4, 1e-4, 1e-4), rtol=1e-3, atol=0.0)
    for other in ({}, {"bn": nn.LayerNorm(3)}, {"bn": nn.BatchNorm2d(4)}, {"bn": nn.BatchNorm2d(3, affine=False)}):
        known = running_share(other)
        assert (known is not None) == (other.get("bn") is not None and getattr(other["bn"], "num_features", 0) == 3)


def test_the_share_of_eps_follows_the_norm() -> None:
    share = rescaled_share(double(0.5), double(4.0, 1.0, 0.25, 1.0), double(1.0, 1.0, 1.0, 0.0))
    np.testing.assert_allclose(share, double(0.2, 0.5, 0.8, 0.5))
    assert rescaled_share(double(0.0), double(1.0), double(4.0)).tolist() == [0.0]
    assert rescaled_share(double(1.0), double(1.0), double(4.0)).tolist() == [1.0]


@settings(deadline=None, max_examples=60, derandomize=True)
@given(st.integers(0, 2**31))
def test_layers_are_judged_together_as_they_are_one_by_one(seed: int) -> None:
    """Whichever come, go, or leave out steps, and whatever optimizer steps them."""
    random = np.random.default_rng(seed)
    kinds: Any = random.choice(["row", "none"], 5, p=[0.8, 0.2])
    layers = [
        ScaleGroup(f"layer {i}", (GroupPart(f"w{i}"),), blocks, kind, members=(0,) if i == 3 else None, eps_share=share)
        for i, (kind, blocks, share) in enumerate(
            zip(kinds, random.integers(1, 5, 5).tolist(), [None, 0.0, 1e-3, 0.02, 0.5], strict=True)
        )
    ]
    together, apart = Verification(), [Verification() for _ in layers]
    for _ in range(6):
        chosen: Any = sorted(random.choice(5, random.integers(1, 6), replace=False).tolist())
        some = [layers[index] for index in chosen]
        steps, groups = int(random.integers(1, 70)), sum(layer.blocks for layer in some)
        xx, gg = random.random((2, steps, groups)) + 0.1
        gx = random.normal(size=(steps, groups)) * np.sqrt(xx * gg) * 10.0 ** random.integers(-4, 0)
        gg[random.random((steps, groups)) < 0.2] = np.nan
        skipped = random.random((steps, len(some))) < random.choice([0.0, 0.3])
        xx[np.repeat(skipped, [layer.blocks for layer in some], axis=1)] = np.nan
        numbers = {"xx": xx, "gg": gg, "gx": gx, "xd": xx, "dd": xx, "bb": xx, "lr": xx}

        def products(own: slice, numbers: dict[str, Any] = numbers) -> InnerProducts:
            cut = {name: torch.from_numpy(values[:, own]) for name, values in numbers.items()}
            return InnerProducts(**cut, size=torch.full((cut["xx"].shape[1],), 30.0).double())

        together.take(products(slice(None)), some)
        start = 0
        for index, layer in zip(chosen, some, strict=True):
            apart[index].take(products(slice(start, start + layer.blocks)), [layer])
            start += layer.blocks
    alone = {name: verdict for one in apart for name, verdict in one.verdicts.items()}
    assert together.verdicts.keys() == alone.keys()
    for name, verdict in alone.items():
        for field in fields(verdict):
            one, other = getattr(verdict, field.name), getattr(together.verdicts[name], field.name)
            assert one == (pytest.approx(other, nan_ok=True) if isinstance(one, float) else other)


def test_all_norms_are_read_at_once_as_they_are_at_that_moment() -> None:
    random = np.random.default_rng(0)
    norms: dict[str, nn.Module] = {
        "a": nn.BatchNorm1d(3),
        "b": nn.BatchNorm1d(2, momentum=None, dtype=torch.float64),
        "c": nn.BatchNorm1d(4, eps=0.5, momentum=0.01),
        "d": nn.LayerNorm(3),
    }
    layers = [
        ScaleGroup(f"layer {i}", (GroupPart("w"),), blocks, "row", norm=norm)
        for i, (blocks, norm) in enumerate(
            [
                (4, "BatchNorm `c`"),
                (3, "LayerNorm `d`"),
                (3, "BatchNorm `a`"),
                (2, "BatchNorm `b`"),
                (2, "BatchNorm `b` and 2 more"),
                (5, "BatchNorm `c`"),
                (1, None),
            ]
        )
    ]
    for norm in norms.values():
        if isinstance(norm, nn.BatchNorm1d):
            for _ in range(3):
                norm(torch.from_numpy(random.normal(size=(50, norm.num_features)) * 0.1).to(norm.weight.dtype))
    sent: list[Tensor] = []

    def to_host(tensors: Any) -> Transfer:
        sent.extend(tensors)
        return Transfer(tensors)

    found, expected = NormStatistics.take(Norms(layers, norms), to_host), {}
    for index, name, born in ((0, "c", 0.99**3), (2, "a", 0.9**3), (3, "b", 0.0)):
        norm: Any = norms[name]
        variance = (norm.running_var.double().numpy() - born) / (1.0 - born)
        expected[index] = norm.eps / (variance + norm.eps)
        norm.running_var.fill_(7.0)  # the training goes on
        norm.num_batches_tracked.fill_(1)
    shares = found.shares()
    assert shares.keys() == expected.keys()
    for index, share in expected.items():
        np.testing.assert_allclose(shares[index], share, rtol=1e-12)
    assert len(sent) == 4  # of two dtypes, variances and counts: not one or two per layer


def test_groups_of_one_entry_have_no_residual() -> None:
    ones = np.ones((3, 2))
    ledger = Ledger([ScaleGroup("layer", (GroupPart("w"),), 2, "row")])
    ledger.add(0.5 * ones, ones, ones, UNKNOWN.repeat(2))
    (verdict,) = ledger.verdicts(double(1.0, 9.0))
    assert (verdict.seen, verdict.residual, verdict.worst) == (1, 0.5, 0.5)
    (verdict,) = ledger.verdicts(double(1.0, 1.0))
    assert (verdict.seen, verdict.outcome) == (0, "not yet seen")
    assert math.isnan(verdict.residual)
    assert math.isnan(verdict.worst)
