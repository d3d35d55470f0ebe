"""The constraints on the exponents, collected while the graph is read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from lightning_sphere.discovery.degrees import ZERO, Degree, Offset, Term
from lightning_sphere.discovery.partition import IntArray, Partition


@dataclass(frozen=True)
class Symbol:
    """Rows that are scaled alone: an axis of one parameter, or several parameters together.

    ``axes`` maps each parameter's number to the axis along which its rows are counted, or to ``None`` when the whole
    parameter is row 1.
    """

    rows: int
    axes: tuple[tuple[int, int | None], ...]
    sibling: int | None = None
    """Number of the symbol for the same parameter's other axis."""


@dataclass(frozen=True)
class Cause:
    """Why rows may not be scaled."""

    kind: str
    """``operation``, ``unknown``, ``added``, ``constant``, ``statistic``, ``mixed`` or ``loss``."""
    node: int
    """Position of the node in the graph."""
    name: str
    """The operation's name."""
    sides: tuple[dict[int, float], ...] = ()
    """Exponents of the parameters on the two sides of a sum, the last multiplied at the end."""


@dataclass(frozen=True)
class Balance:
    """Two sums of exponents of whole parameters that must be equal; all powers are positive."""

    left: dict[int, float]
    right: dict[int, float]


@dataclass
class System:
    """All constraints of one reading of the graph."""

    symbols: list[Symbol]
    record: bool
    """Whether exponents of whole parameters are recorded as well."""
    free: bool = False
    """Whether a single number made of rows that scale differently may scale by anything: see :meth:`single`."""
    partitions: list[Partition] = field(default_factory=list)
    causes: dict[int, Cause] = field(default_factory=dict)
    """The first thing that forbade scaling rows of a symbol."""
    norms: dict[int, dict[tuple[str, tuple[str, ...]], None]] = field(default_factory=dict)
    """What normalized a symbol, and the operations passed before."""
    shares: dict[int, float] = field(default_factory=dict)
    """Largest share of an ``eps`` in what normalizes a symbol, where it is known."""
    balances: list[Balance] = field(default_factory=list)
    pruned: set[int] = field(default_factory=set)
    """Symbols given up because their rows are one class, which the sibling describes as well."""
    singles: list[tuple[int, int, tuple[Term, ...]]] = field(default_factory=list)
    """Single numbers: the symbol that stands for each, and the symbol whose terms it was made of."""
    gathered: set[int] = field(default_factory=set)
    """Symbols whose rows met in a single number."""

    def __post_init__(self) -> None:
        self.partitions = [Partition(symbol.rows) for symbol in self.symbols]

    # -- constraints ---------------------------------------------------------------------------------------------

    def uniform(self, degree: Degree, axes: Sequence[int], cause: Cause) -> Degree:
        """Demand that a tensor scales equally along ``axes``: an operation mixes its elements there."""
        if not degree.fields:
            return degree
        fields: dict[int, tuple[Term, ...]] = {}
        for symbol, terms in degree.fields.items():
            if all(rows.shape[axis] == 1 for _, rows in terms for axis in axes):
                fields[symbol] = terms
                continue
            partition = self.partitions[symbol]
            collapsed = []
            for coefficient, rows in terms:
                if not rows.all():
                    self.causes.setdefault(symbol, cause)
                collapsed.append((coefficient, partition.join_along(rows, axes)))
            if self._prune(symbol):
                continue
            if simple := self.simplify(symbol, tuple(collapsed)):
                fields[symbol] = simple
        return Degree(fields, degree.powers)

    def single(self, degree: Degree, axes: Sequence[int], cause: Cause) -> Degree:
        """What :meth:`uniform` does, where the result is a single number for the whole tensor.

        Rows that scale differently are still allowed if all that the number is multiplied with is normalized later,
        such as a weight divided by its spectral norm before a BatchNorm. A :attr:`free` reading therefore gives each
        such number a scale of its own, and forbids its rows only if that must not change, see :meth:`close`.
        """
        mixed = {
            symbol: terms
            for symbol, terms in degree.fields.items()
            if any((rows != rows.flat[0]).any() for _, rows in self.simplify(symbol, terms))
        }
        self.gathered.update(mixed)
        if not self.free:
            return self.uniform(degree, axes, cause)
        rest = {symbol: terms for symbol, terms in degree.fields.items() if symbol not in mixed}
        fields = dict(self.uniform(Degree(rest, degree.powers), axes, cause).fields)
        for symbol, terms in mixed.items():
            number = len(self.symbols)
            self.symbols = [*self.symbols, Symbol(1, ())]
            self.partitions.append(Partition(1))
            self.singles.append((number, symbol, terms))
            fields[number] = ((1.0, np.ones((1,) * terms[0][1].ndim, dtype=np.intp)),)
        return Degree(fields, degree.powers)

    def close(self) -> None:
        """Forbid the rows of which single numbers are made that must not scale."""
        for number, symbol, terms in self.singles:
            if not self.partitions[number].alive:
                for _, rows in terms:
                    self._kill(symbol, rows, self.causes[number])

    def zero(self, degree: Degree, cause: Cause) -> None:
        """Demand that a tensor does not scale."""
        for symbol, terms in degree.fields.items():
            for _, rows in self.simplify(symbol, terms):
                self._kill(symbol, rows, cause)
        if self.record and degree.powers:
            self._balance(degree.powers, {})

    def equal(self, first: Degree, second: Degree, cause: Cause) -> Degree:
        """Demand that two tensors scale equally, as the terms of a sum must."""
        if self.record and first.powers != second.powers:
            self._balance(first.powers, second.powers)
        if not first.fields and not second.fields:
            return first if first.powers or not second.powers else second
        fields: dict[int, tuple[Term, ...]] = {}
        for symbol in first.fields.keys() | second.fields.keys():
            left = self.simplify(symbol, first.fields.get(symbol, ()))
            right = self.simplify(symbol, second.fields.get(symbol, ()))
            if len(left) == len(right) == 1 and left[0][0] == right[0][0]:
                (coefficient, a), (_, b) = left[0], right[0]
                if a is not b:
                    x, y = np.broadcast_arrays(a, b)
                    if not x.all() or not y.all():
                        self.causes.setdefault(symbol, cause)
                    self.partitions[symbol].join_pairs(x, y)
                terms = self.simplify(symbol, ((coefficient, a if a.size <= b.size else b),))
                if terms:
                    fields[symbol] = terms
            elif not _identical(left, right):
                for _, rows in (*left, *right):
                    self._kill(symbol, rows, cause)
            elif left:
                fields[symbol] = left
        return Degree(fields, first.powers if first.powers else second.powers)

    # -- arithmetic ----------------------------------------------------------------------------------------------

    def product(self, first: Degree, second: Degree, sign: float = 1) -> Degree:
        """The degree of a product, or of a quotient for ``sign=-1``; both of the same number of dimensions."""
        second = second.scaled(sign)
        if not second:
            return first
        if not first:
            return second
        fields = dict(first.fields)
        for symbol, terms in second.fields.items():
            if symbol in fields:
                joined = self.simplify(symbol, fields.pop(symbol) + terms)
                if joined:
                    fields[symbol] = joined
            else:
                fields[symbol] = terms
        powers = dict(first.powers)
        for parameter, power in second.powers.items():
            total = powers.pop(parameter, 0.0) + power
            if total:
                powers[parameter] = total
        return Degree(fields, powers)

    def simplify(self, symbol: int, terms: tuple[Term, ...]) -> tuple[Term, ...]:
        """Write terms with the labels of today's classes, merge equal ones and drop those that vanish."""
        partition = self.partitions[symbol]
        if len(terms) == 1:
            rows = partition.canonical(terms[0][1])
            return ((terms[0][0], rows),) if rows.any() else ()
        result: list[Term] = []
        for coefficient, rows in terms:
            rows = partition.canonical(rows)
            if not rows.any():
                continue
            for position, (other, existing) in enumerate(result):
                if (existing == rows).all():
                    result[position] = (other + coefficient, existing if existing.size <= rows.size else rows)
                    break
            else:
                result.append((coefficient, rows))
        return tuple(term for term in result if term[0])

    def same(self, first: Degree, second: Degree) -> bool:
        """Whether two degrees are known to be equal already."""
        if first.powers != second.powers:
            return False
        # A symbol that was given up may be left in one of the two; a dead one counts as none.
        left, right = first.fields, second.fields
        return all(
            _identical(self.simplify(symbol, left.get(symbol, ())), self.simplify(symbol, right.get(symbol, ())))
            for symbol in left.keys() | right.keys()
            if symbol not in self.pruned
        )

    def reset(self, degree: Degree, norm: str, via: tuple[str, ...]) -> Degree:
        """Note that a norm makes a tensor independent of its scale."""
        for symbol, terms in degree.fields.items():
            if self.simplify(symbol, terms):
                self.note_norm(symbol, terms, norm, via)
        return ZERO

    def note_norm(self, symbol: int, terms: Sequence[Term], norm: str, via: tuple[str, ...]) -> None:
        """Note what normalizes rows of a symbol."""
        self.norms.setdefault(symbol, {})[norm, via] = None
        for _, rows in terms:
            self.partitions[symbol].normalized[rows] = True

    def note_share(self, degree: Degree, share: float | None) -> None:
        """Note how much of what a norm divides a tensor by is its ``eps``."""
        if share is None:
            return
        for symbol, terms in degree.fields.items():
            if self.simplify(symbol, terms):
                self.shares[symbol] = max(share, self.shares.get(symbol, 0.0))

    # -- inner steps ---------------------------------------------------------------------------------------------

    def _balance(self, first: dict[int, float], second: dict[int, float]) -> None:
        left: dict[int, float] = {}
        right: dict[int, float] = {}
        for powers, other, sides in ((first, second, (left, right)), (second, first, (right, left))):
            for parameter, power in powers.items():
                difference = power - other.get(parameter, 0.0)
                if difference and (parameter not in other or powers is first):
                    sides[difference < 0][parameter] = abs(difference)
        self.balances.append(Balance(left, right))

    def _kill(self, symbol: int, rows: IntArray, cause: Cause) -> None:
        rows = self.partitions[symbol].labels[rows]
        if rows.any():
            self.causes.setdefault(symbol, cause)
            self.partitions[symbol].join_all(np.append(rows.ravel(), 0))

    def _prune(self, symbol: int) -> bool:
        sibling = self.symbols[symbol].sibling
        if symbol in self.pruned:
            return True
        if sibling is None or sibling in self.pruned or not self.partitions[symbol].whole:
            return False
        self.pruned.add(symbol)
        return True


def _identical(first: tuple[Term, ...], second: tuple[Term, ...]) -> bool:
    """Whether two simplified sums are the same, term by term."""
    return len(first) == len(second) and all(
        a == b and (x is y or bool((x == y).all())) for (a, x), (b, y) in zip(first, second, strict=True)
    )


def constant_offset(varies: tuple[bool, ...], source: str) -> Offset:
    """A number or data that was added."""
    return Offset(ZERO, varies, constant=True, source=source)
