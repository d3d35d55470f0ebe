"""Settings for all tests."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

import pytest
import torch

import lightning_sphere.discovery  # noqa: F401  # registers the rules
from lightning_sphere.background import Background
from lightning_sphere.discovery.registry import RULES, Context, Rule
from lightning_sphere.discovery.rules_pointwise import not_homogeneous, unknown

# The networks are tiny: one thread is faster than two, and results do not depend on how busy the machine is.
torch.set_num_threads(1)

FAILED: list[str] = []


def _watched(function: Rule) -> Rule:
    def watched(ctx: Context) -> object:
        try:
            return function(ctx)
        except Exception:
            FAILED.append(traceback.format_exc())
            raise

    return watched  # type: ignore[return-value]


for _name, _function in list(RULES.items()):
    if _function not in (not_homogeneous, unknown):  # which are known by their identity
        RULES[_name] = _watched(_function)


@pytest.fixture(autouse=True)
def _no_rule_fails() -> Iterator[None]:
    """Discovery takes an operation whose rule fails for an unknown one: here, that must not pass unnoticed."""
    FAILED.clear()
    yield
    assert not FAILED, FAILED[0]


@pytest.fixture
def copies(monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy of the weights is kept over every step: what happened is measured itself, without the formula's error."""
    monkeypatch.setattr("lightning_sphere.measurement.trust.FAITHFUL", -1.0)


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flushes are done before the next step: how long a thread takes would decide how many steps are recorded."""

    def start(background: Background[Any], job: Callable[[], Any]) -> None:
        background._job = Future()
        background._job.set_result(job())

    monkeypatch.setattr(Background, "start", start)
