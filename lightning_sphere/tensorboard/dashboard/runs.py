"""Reading runs through TensorBoard's data provider, which alone knows where they are; nothing is read twice."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from tensorboard import errors
from tensorboard.data.provider import RunTagFilter

from lightning_sphere.quantities import QUANTITIES
from lightning_sphere.tensorboard.dashboard.cache import Cache
from lightning_sphere.tensorboard.dashboard.series import (
    Datum,
    Description,
    Table,
    UnreadableError,
    describe,
    tabulate,
)
from lightning_sphere.tensorboard.schema import PLUGIN_NAME, SCHEMA_TAG, TABLE_TAG, TableSchema

MOST_SAMPLES = 10_000
"""Steps that the page shows of a run where the user lets TensorBoard keep them all (``--samples_per_plugin=...=0``)."""

SCHEMA_SHARE = 8
"""Bytes of a parsed schema per byte of its JSON, about."""

Listing: TypeAlias = Mapping[str, Any]
"""By tag: TensorBoard's ``TensorTimeSeries``."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Asked:
    """Whom a request asks, as the data provider wants to know it."""

    context: Any
    experiment: str


@dataclass(frozen=True)
class RunState:
    """What is known of a run without reading its numbers."""

    name: str
    quantities: tuple[str, ...]
    last_step: int
    last_wall_time: float
    problem: str | None


def recorded(schema: TableSchema, tags: Collection[str]) -> tuple[str, ...]:
    """The quantities that are there and known to this version, in recorded order."""
    return tuple(name for name in schema.quantities if name in QUANTITIES and TABLE_TAG + name in tags)


class Runs:
    """The runs of a logdir that hold our data.

    Args:
        provider: TensorBoard's data provider.
        samples: how many steps to ask for.
        cache: shared by all requests.
    """

    def __init__(self, provider: Any, samples: int, cache: Cache | None = None) -> None:
        self._provider = provider
        self._samples = samples or MOST_SAMPLES
        self._cache = Cache() if cache is None else cache

    def states(self, asked: Asked) -> list[RunState]:
        """All runs with our data, sorted by name."""
        listing = self._listed(asked)
        schemas = self._last_schemas(asked, listing)
        return [_state(name, tags, schemas[name]) for name, tags in sorted(listing.items())]

    def describe(self, asked: Asked, run: str) -> tuple[Description, Listing]:
        """What a run says of its layers, and its tags.

        Raises:
            KeyError: if there is no such run.
            UnreadableError: if it cannot be shown.
        """
        tags = self._listed(asked, run)[run]
        if SCHEMA_TAG not in tags:
            raise UnreadableError(_undescribed(tags))
        key, version = (asked.experiment, run, SCHEMA_TAG), _version(tags[SCHEMA_TAG])
        found: Description | None = self._cache.get(key, version)
        if found is None:
            data = self._read(asked, run, SCHEMA_TAG)
            found = describe(data)
            size = SCHEMA_SHARE * sum(len(content) for content in {datum.numpy.item() for datum in data})
            self._cache.put(key, version, found, size)
        return found, tags

    def table(self, asked: Asked, run: str, quantity: str, description: Description, tags: Listing) -> Table:
        """One quantity of all layers.

        Args:
            asked: who asks.
            run: its name.
            quantity: one that is recorded there.
            description: as :meth:`describe` gave it,
            tags: and its tags.

        Raises:
            UnreadableError: if it cannot be shown.
        """
        tag = TABLE_TAG + quantity
        key = (asked.experiment, run, tag)
        version = (_version(tags[tag]), _version(tags[SCHEMA_TAG]))
        found: Table | None = self._cache.get(key, version)
        if found is None:
            found = tabulate(self._read(asked, run, tag), description)
            self._cache.put(key, version, found, found.values.nbytes)
        return found

    def _listed(self, asked: Asked, run: str | None = None) -> dict[str, Listing]:
        wanted = None if run is None else RunTagFilter(runs=[run])
        found: dict[str, Listing] = self._provider.list_tensors(
            asked.context, experiment_id=asked.experiment, plugin_name=PLUGIN_NAME, run_tag_filter=wanted
        )
        return {name: tags for name, tags in found.items() if tags}

    def _read(self, asked: Asked, run: str, tag: str) -> Sequence[Datum]:
        """All that TensorBoard kept of one tag.

        Raises:
            UnreadableError: if TensorBoard cannot read it.
        """
        try:
            return self._read_all(asked, [run], tag, self._samples)[run]
        except errors.PublicError:
            raise
        except KeyError:
            return []
        except Exception as error:
            _log.warning("lightning_sphere: cannot read %r of run %r: %r", tag, run, error)
            raise UnreadableError(f"TensorBoard cannot read {tag}: {error}"[:300]) from error

    def _read_all(self, asked: Asked, runs: Collection[str], tag: str, samples: int) -> dict[str, Sequence[Datum]]:
        found: Mapping[str, Mapping[str, Sequence[Datum]]] = self._provider.read_tensors(
            asked.context,
            experiment_id=asked.experiment,
            plugin_name=PLUGIN_NAME,
            downsample=samples,
            run_tag_filter=RunTagFilter(runs=runs, tags=[tag]),
        )
        return {run: tags[tag] for run, tags in found.items() if tag in tags}

    def _last_schemas(self, asked: Asked, listing: Mapping[str, Listing]) -> dict[str, TableSchema | UnreadableError]:
        """The last schema of each run, those of all runs that have grown with one question."""
        found: dict[str, TableSchema | UnreadableError] = {}
        for run, tags in listing.items():
            if SCHEMA_TAG not in tags:
                found[run] = UnreadableError(_undescribed(tags))
                continue
            known = self._cache.get((asked.experiment, run), _version(tags[SCHEMA_TAG]))
            if known is not None:
                found[run] = known
        missing = [run for run in listing if run not in found]
        data: dict[str, Sequence[Datum]] = {}
        if missing:
            try:
                data = self._read_all(asked, missing, SCHEMA_TAG, 1)
            except errors.PublicError:
                raise
            except Exception:  # one damaged run: ask for each by itself
                _log.debug("lightning_sphere: reading runs one by one", exc_info=True)
        for run in missing:
            try:
                own = data[run] if run in data else self._read(asked, run, SCHEMA_TAG)
            except UnreadableError as error:
                found[run] = error  # it may be readable the next time
                continue
            try:
                last = max(own, key=lambda datum: datum.wall_time, default=None)
                found[run] = describe([] if last is None else [last]).last
            except UnreadableError as error:
                found[run] = error
            size = 2**12 * len(getattr(found[run], "layers", ()))
            self._cache.put((asked.experiment, run), _version(listing[run][SCHEMA_TAG]), found[run], size)
        return found


def _state(name: str, tags: Listing, schema: TableSchema | UnreadableError) -> RunState:
    quantities = recorded(schema, tags) if isinstance(schema, TableSchema) else ()
    problem = str(schema) if isinstance(schema, UnreadableError) else None
    begun = problem is not None or bool(quantities)
    if not begun:
        problem = "no step is recorded yet"
    series = [tags[TABLE_TAG + quantity] for quantity in quantities] or list(tags.values())
    return RunState(
        name=name,
        quantities=quantities,
        last_step=max(int(one.max_step or 0) for one in series) if begun else -1,
        last_wall_time=max(float(one.max_wall_time or 0.0) for one in series),
        problem=problem,
    )


def _undescribed(tags: Collection[str]) -> str:
    if TABLE_TAG.rstrip("/") in tags:
        return "it was recorded by an older version of lightning_sphere"
    return "it has no description of its layers (yet)"


def _version(series: Any) -> tuple[Any, Any]:
    """What changes when a time series grows."""
    return series.max_step, series.max_wall_time
