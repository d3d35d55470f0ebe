"""The TensorBoard plugin: its routes, and nothing else. See the modules beside it for what they answer."""

from __future__ import annotations

import json
import struct
from typing import Any

import numpy as np
from tensorboard import plugin_util
from tensorboard.plugins import base_plugin
from werkzeug.wrappers import Request, Response

from lightning_sphere._version import __version__
from lightning_sphere.quantities import QUANTITIES, STATS, Quantity
from lightning_sphere.tensorboard.dashboard.about import about
from lightning_sphere.tensorboard.dashboard.answers import RefusedError, View, application, json_answer, respond
from lightning_sphere.tensorboard.dashboard.assets import INSTALL, Plotly, static_views
from lightning_sphere.tensorboard.dashboard.runs import Asked, Runs, RunState, recorded
from lightning_sphere.tensorboard.dashboard.series import Table, UnreadableError
from lightning_sphere.tensorboard.loader import SAMPLES
from lightning_sphere.tensorboard.schema import PLUGIN_NAME


class SpherePlugin(base_plugin.TBPlugin):  # type: ignore[misc]
    """The Sphere tab.

    Args:
        context: TensorBoard's ``TBContext``.
    """

    plugin_name = PLUGIN_NAME

    def __init__(self, context: Any) -> None:
        samples = (context.sampling_hints or {}).get(PLUGIN_NAME, SAMPLES)
        self._runs = None if context.data_provider is None else Runs(context.data_provider, samples)
        self._plotly = Plotly()

    def get_plugin_apps(self) -> dict[str, Any]:
        """WSGI applications by route."""
        views: dict[str, View] = {
            **static_views(),
            "/plotly.js": self._plotly.view,
            "/runs": self._all_runs,
            "/run": self._run,
            "/values": self._values,
        }
        return {route: application(view) for route, view in views.items()}

    def is_active(self) -> bool:
        """TensorBoard itself shows the tab where there are summaries of our name."""
        return False

    def frontend_metadata(self) -> Any:
        """The tab's name, and where its page starts."""
        return base_plugin.FrontendMetadata(es_module_path="/static/main.js", tab_name="Sphere")

    @property
    def _available(self) -> Runs:
        if self._runs is None:
            raise RefusedError(404, "this TensorBoard gives plugins no data: start it without --generic_data=false")
        return self._runs

    def _all_runs(self, request: Request) -> Response:
        """All runs that have our data, and the table of quantities."""
        return json_answer(
            {
                "version": __version__,
                "plotly": self._plotly.version,
                "install": INSTALL,
                "quantities": {name: _quantity(quantity) for name, quantity in QUANTITIES.items()},
                "runs": [_run_state(state) for state in self._available.states(_asked(request))],
            }
        )

    def _run(self, request: Request) -> Response:
        """Layers, cards and findings of one run."""
        run, asked = _parameter(request, "run"), _asked(request)
        try:
            description, tags = self._available.describe(asked, run)
            quantities = recorded(description.last, tags)
            if not quantities:
                raise UnreadableError("no step is recorded yet")
            return json_answer(
                about(
                    run,
                    description,
                    quantities,
                    lambda name: self._available.table(asked, run, name, description, tags),
                )
            )
        except KeyError:
            raise RefusedError(404, f"there is no run {run!r} with data of lightning_sphere") from None
        except UnreadableError as error:
            raise RefusedError(404, f"run {run!r} cannot be shown: {error}") from None

    def _values(self, request: Request) -> Response:
        """One quantity over steps and layers, as numbers that the page takes as they are."""
        run, quantity, asked = _parameter(request, "run"), _parameter(request, "quantity"), _asked(request)
        stat, layer = request.args.get("stat", "median"), request.args.get("layer")
        if stat not in (*STATS, "all"):
            raise RefusedError(400, f"stat {stat!r} is not one of {', '.join(STATS)}, all")
        try:
            description, tags = self._available.describe(asked, run)
        except KeyError:
            raise RefusedError(404, f"there is no run {run!r} with data of lightning_sphere") from None
        except UnreadableError as error:
            raise RefusedError(404, f"run {run!r} cannot be shown: {error}") from None
        if quantity not in recorded(description.last, tags):
            raise RefusedError(404, f"run {run!r} has not recorded {quantity!r}")
        if layer is not None and layer not in description.layers:
            raise RefusedError(404, f"run {run!r} has no layer {layer!r}")
        try:
            table = self._available.table(asked, run, quantity, description, tags)
        except UnreadableError as error:
            raise RefusedError(404, f"{quantity} of run {run!r} cannot be shown: {error}") from None
        stats = STATS if stat == "all" else (stat,)
        layers = description.layers if layer is None else (layer,)
        first = 0 if layer is None else description.layers.index(layer)
        return respond(_binary(table, layers, first, stats), "application/octet-stream")


def _binary(table: Table, layers: tuple[str, ...], first: int, stats: tuple[str, ...]) -> bytes:
    """Size of the header, header, steps, times, values; numbers little-endian and aligned to 8 bytes.

    Args:
        table: of one quantity.
        layers: neighbouring layers of the table,
        first: the index of the first of them.
        stats: neighbouring statistics.
    """
    start = STATS.index(stats[0])
    values = table.values[:, first : first + len(layers), start : start + len(stats)]
    header = json.dumps({"steps": len(table.steps), "layers": layers, "stats": stats}).encode("ascii")
    header += b" " * (-(4 + len(header)) % 8)
    return b"".join(
        (
            struct.pack("<I", len(header)),
            header,
            table.steps.astype("<f8").tobytes(),
            table.wall_times.astype("<f8").tobytes(),
            np.ascontiguousarray(values, dtype="<f4").tobytes(),
        )
    )


def _asked(request: Request) -> Asked:
    return Asked(plugin_util.context(request.environ), plugin_util.experiment_id(request.environ))


def _parameter(request: Request, name: str) -> str:
    value = request.args.get(name)
    if value is None:
        raise RefusedError(400, f"the parameter {name!r} is missing")
    return value


def _quantity(quantity: Quantity) -> dict[str, Any]:
    return {
        "title": quantity.title,
        "symbol": quantity.symbol,
        "unit": quantity.unit,
        "range": quantity.range,
        "equation": quantity.equation,
        "meaning": quantity.meaning,
        "rare": quantity.rare,
        "context": quantity.context,
        "prediction": quantity.prediction,
        "reference": quantity.reference,
        "signed": quantity.range in SIGNED,
        "of_invariant": quantity.of_invariant,
    }


SIGNED = ("any", "-1 to 1")
"""Ranges that have a middle: colours diverge from 0."""


def _run_state(state: RunState) -> dict[str, Any]:
    return {
        "name": state.name,
        "last_step": state.last_step,
        "last_wall_time": state.last_wall_time if np.isfinite(state.last_wall_time) else 0.0,
        "quantities": state.quantities,
        "problem": state.problem,
    }
