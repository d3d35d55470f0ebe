"""What the recorded table means: names of its axes, and what is known about each layer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

PLUGIN_NAME = "lightning_sphere"
"""Marks our tensor summaries; TensorBoard hands them to the plugin of this name."""

TABLE_TAG = "sphere_table/"
"""Beginning of the tags that hold the table, before the name of a quantity: float32 ``[layers, stats]`` of one step."""

SCHEMA_TAG = "sphere_schema"
"""Tag of the string that says what the table's axes are: of all rows from its event on, until there is another."""

FORMAT = 2
"""Version of the format; readers refuse any other."""


@dataclass(frozen=True)
class TableSchema:
    """Axes of the table ``[layers, quantities, stats]`` and the description of the parameters."""

    layers: tuple[str, ...]
    quantities: tuple[str, ...]
    stats: tuple[str, ...]
    invariant: tuple[bool, ...]
    """Per layer: whether a normalization follows."""
    cuts: tuple[tuple[int, int], ...]
    """Per layer: axis along which its weight is cut into groups, and into how many equal blocks."""
    groups: tuple[Mapping[str, Any], ...] = ()
    """One mapping per parameter with two dimensions or more, then one per joint set; see ``RunRecord.groups``."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of the table of one step."""
        return len(self.layers), len(self.quantities), len(self.stats)

    def same_axes(self, other: TableSchema | None) -> bool:
        """Whether the same rows are possible under another schema, whatever it says of the layers."""
        mine = (self.layers, self.quantities, self.stats, self.invariant, self.cuts)
        return other is not None and mine == (other.layers, other.quantities, other.stats, other.invariant, other.cuts)

    def to_json(self) -> bytes:
        """Compact JSON."""
        content = {
            "format": FORMAT,
            "layers": self.layers,
            "quantities": self.quantities,
            "stats": self.stats,
            "invariant": self.invariant,
            "cuts": self.cuts,
            "groups": [dict(group) for group in self.groups],
        }
        return json.dumps(content, separators=(",", ":")).encode()

    @classmethod
    def from_json(cls, content: bytes) -> TableSchema:
        """Read what :meth:`to_json` wrote.

        Raises:
            ValueError: if it is no such JSON, or of another format.
        """
        try:
            raw = json.loads(content)
            if raw["format"] != FORMAT:
                age = "newer" if raw["format"] > FORMAT else "older"
                raise ValueError(
                    f"format {raw['format']} is {age} than what this version of lightning_sphere reads ({FORMAT})"
                )
            return cls(
                layers=tuple(raw["layers"]),
                quantities=tuple(raw["quantities"]),
                stats=tuple(raw["stats"]),
                invariant=tuple(raw["invariant"]),
                cuts=tuple((axis, blocks) for axis, blocks in raw["cuts"]),
                groups=tuple({key: _frozen(value) for key, value in group.items()} for group in raw["groups"]),
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not a lightning_sphere table: {error!r}") from error


def _frozen(value: Any) -> Any:
    """JSON knows no tuples; tables use them."""
    return tuple(value) if isinstance(value, list) else value
