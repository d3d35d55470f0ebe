"""Rows about repeated blocks, told as one: ``encoder.layer.{0-11}.attention.query``."""

from __future__ import annotations

import re
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace

QUOTED = re.compile(r"`[^`]*`")
NUMBER = re.compile(r"(?<![^.`])\d+(?![^.`])")
"""A whole component of a dotted name."""

PIECES = 4
"""So many ranges are spelled out."""


@dataclass(frozen=True)
class Row:
    """A row of a table: a name, and text that mentions names in backquotes."""

    name: str
    text: str = ""
    same: Hashable = None
    """What rows must have in common, besides text and name, to be told as one."""
    count: int = 1


def collapse(rows: Sequence[Row]) -> list[Row]:
    """Tell as one the rows that differ in one number of their names, and in the numbers that follow it in their texts.

    Args:
        rows: Rows in the model's order.

    Returns:
        Fewer rows, each at the place of its first one.
    """
    result = list(rows)
    depth = max((row.name.count(".") + 1 for row in rows), default=0)
    for position in reversed(range(depth)):
        groups: dict[Hashable, list[int]] = {}
        for place, row in enumerate(result):
            parts = row.name.split(".")
            if position < len(parts) and parts[position].isdigit():
                pattern = (*parts[:position], "#", *parts[position + 1 :])
                groups.setdefault((pattern, _pattern(row.text), row.same, row.count), []).append(place)
        dropped: set[int] = set()
        for places in groups.values():
            for run in _runs([(int(result[place].name.split(".")[position]), place) for place in places], result):
                if len(run) > 1:
                    result[run[0][1]] = _merge(run, result, position)
                    dropped.update(place for _, place in run[1:])
        result = [row for place, row in enumerate(result) if place not in dropped]
    return result


def _numbers(text: str) -> list[int]:
    """Numbers in quoted names."""
    return [int(number) for name in QUOTED.findall(text) for number in NUMBER.findall(name)]


def _pattern(text: str) -> str:
    """A text without the numbers in quoted names."""
    return QUOTED.sub(lambda name: NUMBER.sub("#", name[0]), text)


def _runs(members: list[tuple[int, int]], rows: Sequence[Row]) -> list[list[tuple[int, int]]]:
    """Cut rows, given by number and place, where the numbers in their texts neither stay nor move along."""
    runs: list[list[tuple[int, int]]] = []
    stays: list[bool] = []
    moves: list[bool] = []
    for index, place in sorted(members):
        numbers = _numbers(rows[place].text)
        if runs:
            first, start = runs[-1][0][0], _numbers(rows[runs[-1][0][1]].text)
            stay = [old and a == b for old, a, b in zip(stays, start, numbers, strict=True)]
            move = [old and b - a == index - first for old, a, b in zip(moves, start, numbers, strict=True)]
            if all(a or b for a, b in zip(stay, move, strict=True)):
                runs[-1].append((index, place))
                stays, moves = stay, move
                continue
        runs.append([(index, place)])
        stays, moves = [True] * len(numbers), [True] * len(numbers)
    return runs


def _merge(run: list[tuple[int, int]], rows: Sequence[Row], position: int) -> Row:
    """One row for all."""
    parts = rows[run[0][1]].name.split(".")
    parts[position] = _braces([index for index, _ in run])
    columns = iter(zip(*(_numbers(rows[place].text) for _, place in run), strict=True))
    text = QUOTED.sub(lambda name: NUMBER.sub(lambda _: _braces(next(columns)), name[0]), rows[run[0][1]].text)
    return replace(rows[run[0][1]], name=".".join(parts), text=text, count=sum(rows[place].count for _, place in run))


def _braces(numbers: Sequence[int]) -> str:
    """Numbers in short: ``{0-11}``, ``{0,2}``, or the number itself if it is always the same."""
    if len(set(numbers)) == 1:
        return str(numbers[0])
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    pieces = [str(a) if a == b else f"{a}-{b}" for a, b in runs]
    if len(pieces) > PIECES:
        pieces = [*pieces[:2], "...", pieces[-1]]
    return "{" + ",".join(pieces) + "}"
