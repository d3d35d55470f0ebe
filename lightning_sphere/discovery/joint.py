"""Propose sets of parameters that are invariant only together."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from heapq import heapify, heappop, heappush

from lightning_sphere.discovery.system import Balance

MAX_MEMBERS = 4096


def propose_sets(balances: list[Balance], seeds: Iterable[int], allowed: frozenset[int]) -> tuple[tuple[int, ...], ...]:
    """Close each seed under the sums that it takes part in.

    A parameter that scales one side of a sum forces the other side to scale: of that side, the parameter multiplied
    last is taken along, the one that writes into the sum. It is repeated until all sums balance, or until something
    must scale that can not. These are proposals: they are checked afterwards with the rules for rows.

    Args:
        balances: Sums of exponents that must be equal.
        seeds: Parameters to start from. Those that are the last ones multiplied into their sums come first; of the
            others, which further layers follow, sets count that share no member with what was found before.
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
    ordered = list(seeds)
    for last in (True, False):
        for seed in ordered:
            if seed in covered | failed or all(_writes(balances[number], seed) for number in touching[seed]) != last:
                continue
            members = _close(balances, touching, seed, allowed - failed if last else allowed - failed - covered)
            if members is None and last:
                failed.add(seed)  # what needs it fails as well
            elif members is not None and len(members) > 1:
                found[tuple(sorted(members))] = None
                covered |= members
    return tuple(found)


def _writes(balance: Balance, seed: int) -> bool:
    """Whether a parameter is the last one multiplied into its side of a sum."""
    return next(reversed(balance.left if seed in balance.left else balance.right)) == seed


def _close(
    balances: list[Balance], touching: dict[int, list[int]], seed: int, allowed: frozenset[int]
) -> set[int] | None:
    members = {seed}
    # Short sums come first: they leave no choice of who is scaled.
    pending = [(len(balances[n].left) + len(balances[n].right), n) for n in touching[seed]]
    heapify(pending)
    waiting = set(touching[seed])
    while pending:
        number = heappop(pending)[1]
        waiting.discard(number)
        balance = balances[number]
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
        for number in set(touching[partner]) - waiting:
            waiting.add(number)
            heappush(pending, (len(balances[number].left) + len(balances[number].right), number))
    return members
