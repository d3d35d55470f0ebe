"""Propose sets of parameters that are invariant only together."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from lightning_sphere.discovery.system import Balance

MAX_MEMBERS = 4096


def propose_sets(balances: list[Balance], seeds: Iterable[int], allowed: frozenset[int]) -> tuple[tuple[int, ...], ...]:
    """Close each seed under the sums that it takes part in.

    A parameter that scales one side of a sum forces the other side to scale: of that side, the parameter multiplied
    last is taken along, the one that writes into the sum. It is repeated until all sums balance, or until something
    must scale that can not. These are proposals: they are checked afterwards with the rules for rows.

    Args:
        balances: Sums of exponents that must be equal.
        seeds: Parameters to start from; each must itself be the last one multiplied into its sums.
        allowed: Parameters that may be members.

    Returns:
        The sets, each sorted, of two parameters or more.
    """
    touching: dict[int, list[int]] = defaultdict(list)
    for number, balance in enumerate(balances):
        for parameter in balance.left.keys() | balance.right.keys():
            touching[parameter].append(number)
    found: dict[tuple[int, ...], None] = {}
    covered: set[int] = set()
    failed: set[int] = set()
    for seed in seeds:
        if seed in covered or not all(_writes(balances[number], seed) for number in touching[seed]):
            continue
        members = _close(balances, touching, seed, allowed - failed)
        if members is None:
            failed.add(seed)  # what needs it fails as well
        elif len(members) > 1:
            found[tuple(sorted(members))] = None
            covered |= members
    return tuple(found)


def _writes(balance: Balance, seed: int) -> bool:
    """Whether a parameter is the last one multiplied into its side of a sum."""
    return next(reversed(balance.left if seed in balance.left else balance.right)) == seed


def _close(
    balances: list[Balance], touching: dict[int, list[int]], seed: int, allowed: frozenset[int]
) -> set[int] | None:
    members, pending = {seed}, dict.fromkeys(touching[seed])
    while pending:
        balance = balances[pending.popitem()[0]]
        left, right = (
            sum([power for parameter, power in side.items() if parameter in members])
            for side in (balance.left, balance.right)
        )
        if left == right:
            continue
        lighter = balance.left if left < right else balance.right
        partner = next((p for p in reversed(lighter) if p not in members), None)
        if partner is None or partner not in allowed or lighter[partner] != abs(left - right):
            return None
        members.add(partner)
        if len(members) > MAX_MEMBERS:
            return None
        pending.update(dict.fromkeys(touching[partner]))
    return members
