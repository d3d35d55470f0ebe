"""Settings for all tests."""

from __future__ import annotations

import traceback
from collections.abc import Iterator

import pytest
import torch

import lightning_sphere.discovery  # noqa: F401  # registers the rules
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
