"""Runs of known numbers for the dashboard, and TensorBoard servers over them."""

from __future__ import annotations

import json
import socket
import struct
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.tensorboard import SummaryWriter

from lightning_sphere.quantities import QUANTITIES, STATS
from lightning_sphere.recording import Recording, summary_scalars
from lightning_sphere.tensorboard.schema import TableSchema
from lightning_sphere.tensorboard.writer import TensorBoardSink

ROUTES = "/data/plugin/lightning_sphere"
START = 1_700_000_000.0
"""Time of step 0; one step takes a second."""

CORE = ("norm", "angular_step", "effective_lr", "radius_growth", "drift", "lost_update", "lr", "equilibrium_angle")


@dataclass
class Run:
    """What was written: ``table`` is float32 ``[steps, layers, quantities, stats]``."""

    folder: Path
    schema: TableSchema
    steps: np.ndarray
    wall_times: np.ndarray
    table: np.ndarray
    writer: Any = None
    sink: TensorBoardSink | None = field(default=None, repr=False)

    def of(self, quantity: str, stat: str = "median") -> np.ndarray:
        """One quantity, ``[steps, layers]``."""
        return self.table[..., self.schema.quantities.index(quantity), STATS.index(stat)]

    def close(self) -> None:
        """End the file."""
        if self.sink is not None:
            self.sink.close()
            self.writer.close()
            self.sink = None


def layer_names(count: int) -> tuple[str, ...]:
    """Names in an order that no sorting gives."""
    return tuple(f"stage{count - index}.conv{index}" for index in range(count))


def schema_of(
    layers: int | Sequence[str] = 4,
    quantities: Sequence[str] = CORE,
    *,
    invariant: Sequence[bool] | None = None,
    rows: Mapping[str, Mapping[str, Any]] | None = None,
    further: Sequence[Mapping[str, Any]] = (),
) -> TableSchema:
    """A schema as a run writes it: all layers invariant but the last, verified, on their way to equilibrium.

    Args:
        layers: names, or how many.
        quantities: recorded ones.
        invariant: per layer.
        rows: what is to be said differently, by layer.
        further: mappings of weights that are not in the table.
    """
    names = layer_names(layers) if isinstance(layers, int) else tuple(layers)
    flags = tuple(invariant) if invariant is not None else tuple(index < len(names) - 1 for index in range(len(names)))
    groups = []
    for index, (name, flag) in enumerate(zip(names, flags, strict=True)):
        row: dict[str, Any] = {
            "layer": name,
            "parameter": f"{name}.weight",
            "kind": "row" if flag else "none",
            "axis": 0 if flag else None,
            "blocks": 8 + index if flag else None,
            "members": None,
            "joint_with": (),
            "norm": f"{name}.norm" if flag else None,
            "reason": "followed by BatchNorm2d" if flag else "feeds the loss directly",
            "verdict": "verified" if flag else None,
            "verified_share": 1.0 if flag else None,
            "residual": 1e-7 * (index + 1) if flag else None,
            "equilibrium": "reaches equilibrium in about 500 steps" if flag else None,
            "equilibrium_state": "transient" if flag else None,
        }
        groups.append(row | dict((rows or {}).get(name, {})))
    cuts = tuple((0, 8 + index) for index in range(len(names)))
    return TableSchema(names, tuple(quantities), STATS, flags, cuts, (*groups, *further))


def numbers(
    steps: Sequence[int], schema: TableSchema, *, rare_every: int = 10, skipped: Sequence[int] = (), seed: int = 0
) -> np.ndarray:
    """Plausible numbers of a healthy run, float32 ``[steps, layers, quantities, stats]``."""
    random = np.random.default_rng(seed)
    at = np.asarray(steps, dtype=np.float64)[:, None]
    place = np.arange(len(schema.layers))[None, :] % 7
    decay = np.exp(-at / 500.0)
    curves = {
        "norm": 1.0 + 0.1 * place + 0.3 * (1 - decay),
        "angular_step": (0.01 + 0.02 * decay) * (1 + 0.1 * place),
        "effective_lr": (0.05 + 0.1 * decay) / (1.0 + 0.1 * place),
        "radius_growth": 0.001 * np.sin(at / 30.0 + place),
        "drift": 0.5 * (1 - decay) * (1 + 0.05 * place),
        "lost_update": 0.001 + 0.0 * at * place,
        "lr": 0.1 * (1.0 - 0.5 * (1 - decay)) + 0.0 * place,
        "equilibrium_angle": 0.01 + 0.0 * at * place,
        "equilibrium_norm": 1.3 + 0.1 * place + 0.0 * at,
    }
    table = np.empty((len(steps), len(schema.layers), len(schema.quantities), len(schema.stats)), dtype=np.float32)
    for index, name in enumerate(schema.quantities):
        middle = curves.get(name, 0.5 + 0.1 * place + 0.0 * at) * (1 + 0.05 * random.standard_normal(at.shape))
        spread = (0.8, 1.0, 1.25, 1.02) if name != "lr" else (1.0, 1.0, 1.0, 1.0)
        if name == "lr":
            middle = curves["lr"] + 0.0 * place
        table[:, :, index] = middle[..., None] * np.array(spread)
        if name in QUANTITIES and QUANTITIES[name].rare:
            table[[row for row, step in enumerate(steps) if step % rare_every], :, index] = np.nan
    table[[row for row, step in enumerate(steps) if step in set(skipped)]] = np.nan
    return table


def write_run(
    folder: Path | str,
    *,
    steps: int | Sequence[int] = 60,
    layers: int | Sequence[str] = 4,
    quantities: Sequence[str] = CORE,
    schema: TableSchema | None = None,
    table: np.ndarray | None = None,
    skipped: Sequence[int] = (),
    start: float = START,
    seconds: float = 1.0,
    seed: int = 0,
    scalars: bool = False,
    close: bool = True,
    budget_mb: float = 64.0,
) -> Run:
    """Write a run through the real sink.

    Args:
        folder: of the run; its name below the logdir is the run's name.
        steps: how many, from 0 on, or which.
        layers: how many, or their names; see :func:`schema_of`.
        quantities: recorded ones.
        schema: in place of the one that layers and quantities make.
        table: the numbers, in place of those of :func:`numbers`.
        skipped: steps that were not taken.
        start: time of the first step.
        seconds: from one step to the next.
        seed: of the numbers.
        scalars: write the summary curves too.
        close: end the file; otherwise :func:`grow` writes on, and ``Run.close`` ends it.
        budget_mb: of the sink.
    """
    which = np.arange(steps) if isinstance(steps, int) else np.asarray(steps)
    schema = schema or schema_of(layers, quantities)
    writer = SummaryWriter(str(folder))
    run = Run(
        folder=Path(folder),
        schema=schema,
        steps=np.empty(0, dtype=np.int64),
        wall_times=np.empty(0),
        table=np.empty((0, len(schema.layers), len(schema.quantities), len(schema.stats)), dtype=np.float32),
        writer=writer,
        sink=TensorBoardSink(writer.file_writer, budget_mb=budget_mb),
    )
    if table is None:
        table = numbers(which.tolist(), schema, skipped=skipped, seed=seed)
    _write(run, which, start + seconds * np.arange(len(which)), table, scalars)
    if close:
        run.close()
    return run


def grow(run: Run, count: int, *, seed: int = 1, scalars: bool = False) -> None:
    """Let a run that was not closed take further steps, and write them to disk."""
    first, time_of = (int(run.steps[-1]) + 1, float(run.wall_times[-1]) + 1.0) if len(run.steps) else (0, START)
    steps = np.arange(first, first + count)
    _write(run, steps, time_of + np.arange(count), numbers(steps.tolist(), run.schema, seed=seed), scalars)


def _write(run: Run, steps: np.ndarray, wall_times: np.ndarray, table: np.ndarray, scalars: bool) -> None:
    assert run.sink is not None
    for first in range(0, len(steps), 50):
        part = slice(first, first + 50)
        recording = Recording(run.schema, steps[part], wall_times[part], table[part])
        if scalars:
            recording = replace(recording, scalars=summary_scalars(recording))
        run.sink.write(recording)
    run.writer.flush()
    run.steps = np.concatenate([run.steps, steps])
    run.wall_times = np.concatenate([run.wall_times, wall_times])
    run.table = np.concatenate([run.table, table])


@contextmanager
def serving(
    logdir: Path | str,
    fast: bool = True,
    *,
    wait: int | None = None,
    reload_interval: float = 1,
    flags: Sequence[str] = (),
) -> Iterator[str]:
    """A TensorBoard server; gives its address once it has read the runs.

    Args:
        logdir: folder of the runs.
        fast: which loader.
        wait: how many runs with our data to wait for; by default, as many folders as there are with event files.
        reload_interval: seconds after which it looks for more data.
        flags: further ones.
    """
    with closing(socket.socket()) as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(logdir), "--port", str(port)]
    command += [f"--load_fast={'true' if fast else 'false'}", f"--reload_interval={reload_interval}", *flags]
    server = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    address = f"http://localhost:{port}"
    expected = len({file.parent for file in Path(logdir).rglob("*tfevents*")}) if wait is None else wait
    try:
        until(lambda: len(runs_of(address)) >= expected)
        yield address
    finally:
        server.terminate()
        server.wait(timeout=30)


def until(condition: Any, seconds: float = 60) -> None:
    """Ask again and again, until it holds; a server that does not answer (yet) is no failure."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if condition():
                return
        except (urllib.error.URLError, ConnectionError):
            pass
        time.sleep(0.1)
    raise TimeoutError(f"nothing after {seconds} s")


def runs_of(address: str) -> list[dict[str, Any]]:
    """The runs that the plugin lists."""
    return ask(address, "/runs")["runs"]


def fetch(address: str, route: str, **query: str) -> bytes:
    """What a route of the plugin answers."""
    url = f"{address}{ROUTES}{route}" + (f"?{urllib.parse.urlencode(query)}" if query else "")
    with urllib.request.urlopen(url, timeout=60) as answer:
        return answer.read()


def ask(address: str, route: str, **query: str) -> Any:
    """The same, JSON decoded; NaN is an error."""
    return strict_json(fetch(address, route, **query))


def strict_json(content: bytes) -> Any:
    """Decode as a browser does."""

    def refuse(name: str) -> None:
        raise ValueError(f"{name} is no JSON")

    return json.loads(content, parse_constant=refuse)


@dataclass
class Values:
    """An answer of ``/values``."""

    layers: list[str]
    stats: list[str]
    steps: np.ndarray
    wall_times: np.ndarray
    values: np.ndarray


def decode(content: bytes) -> Values:
    """Take an answer of ``/values`` apart."""
    (size,) = struct.unpack_from("<I", content)
    assert (4 + size) % 8 == 0
    header = strict_json(content[4 : 4 + size])
    count, at = header["steps"], 4 + size
    shape = count, len(header["layers"]), len(header["stats"])
    assert len(content) == at + 16 * count + 4 * int(np.prod(shape))
    return Values(
        header["layers"],
        header["stats"],
        np.frombuffer(content, "<f8", count, at),
        np.frombuffer(content, "<f8", count, at + 8 * count),
        np.frombuffer(content, "<f4", offset=at + 16 * count).reshape(shape),
    )


def values_of(address: str, run: str, quantity: str, **query: str) -> Values:
    """One quantity of a run, through HTTP."""
    return decode(fetch(address, "/values", run=run, quantity=quantity, **query))
