"""The server side of the Sphere tab: real TensorBoard servers with both loaders over runs of known numbers."""

from __future__ import annotations

import json
import math
import statistics
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import entry_points
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from torch.utils.tensorboard import SummaryWriter
from werkzeug.test import Client

from dashboard_world import (
    CORE,
    ROUTES,
    START,
    Run,
    ask,
    decode,
    fetch,
    grow,
    numbers,
    runs_of,
    schema_of,
    serving,
    strict_json,
    until,
    values_of,
    write_run,
)
from lightning_sphere.quantities import QUANTITIES, STATS
from lightning_sphere.tensorboard.loader import SAMPLES, SphereLoader

BOTH = pytest.mark.parametrize("fast", [True, False], ids=["fast loader", "python loader"])

HOSTILE_RUN = "a <img src=x onerror=alert(1)> & \"q\" 'p' %2e%00 ü\u2028\n..x/..y"
HOSTILE_LAYERS = (
    "<script>alert(1)</script>",
    "a/../../etc/passwd",
    "100%25 \"quoted\" 'too' & more",
    "nul\x00 newline\n tab\t",
    "ümläut 漢字 \U0001f600 \u2028",
    "",
)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Run]]:
    """Many runs in one folder."""
    root = tmp_path_factory.mktemp("world")
    rows = {
        "stage5.conv0": {"verdict": "contradicted", "residual": 0.3, "equilibrium_state": "settled"},
        "stage4.conv1": {"verdict": "eps dominates", "members": [0, 2, 3], "equilibrium_state": "out of reach"},
        "stage3.conv2": {"verdict": "not yet seen", "equilibrium_state": None, "joint_with": ["x.bias"]},
    }
    further = [{"layer": "embedding", "parameter": "embedding.weight", "reason": "frozen", "kind": "none"}]
    schema = schema_of(5, CORE, rows=rows, further=further)
    runs = {
        "plain/version_0": write_run(
            root / "plain/version_0", steps=60, schema=schema, skipped=(0, 7, 58), scalars=True
        ),
        "short": write_run(root / "short", steps=3, layers=2),
        "none invariant": write_run(
            root / "none invariant", schema=schema_of(3, CORE, invariant=[False] * 3), steps=45, seed=3
        ),
        HOSTILE_RUN: write_run(root / HOSTILE_RUN, layers=HOSTILE_LAYERS, steps=30),
        "little": write_run(root / "little", quantities=["norm", "drift"], steps=30),
    }
    writer = SummaryWriter(str(root / "foreign"))
    writer.add_scalar("loss", 1.0, 0)
    writer.close()
    return root, runs


@pytest.fixture(scope="module", params=[True, False], ids=["fast loader", "python loader"])
def address(world: tuple[Path, dict[str, Run]], request: pytest.FixtureRequest) -> Iterator[str]:
    with serving(world[0], request.param, wait=len(world[1])) as address:
        until(lambda: all(run["problem"] is None for run in runs_of(address)))
        yield address


def failure(address: str, path: str, method: str = "GET") -> tuple[int, str]:
    """Status and sentence of an error."""
    try:
        with urllib.request.urlopen(urllib.request.Request(address + path, method=method)) as answer:
            raise AssertionError(f"answered: {answer.read()[:200]!r}")
    except urllib.error.HTTPError as error:
        refusal = error
    assert refusal.headers["X-Content-Type-Options"] == "nosniff"
    if "json" not in refusal.headers["Content-Type"]:
        return refusal.code, refusal.read().decode()
    return refusal.code, strict_json(refusal.read() or b'{"error": ""}')["error"]


def listing(address: str) -> dict[str, Any]:
    with urllib.request.urlopen(f"{address}/data/plugins_listing") as answer:
        return json.loads(answer.read())


# -- the loader ------------------------------------------------------------------------------------------------------


def test_tensorboard_finds_the_loader() -> None:
    (entry,) = [entry for entry in entry_points(group="tensorboard_plugins") if entry.name == "lightning_sphere"]
    assert entry.load() is SphereLoader


def test_the_loader_loads_nothing_heavy() -> None:
    program = (
        "import sys, tensorboard.plugins.base_plugin; before = set(sys.modules)\n"
        "import lightning_sphere.tensorboard.loader\nprint(*sorted(set(sys.modules) - before))"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    added = set(result.stdout.split())
    ours = {name for name in added if name.startswith("lightning_sphere")}
    assert ours == {
        "lightning_sphere",
        "lightning_sphere._version",
        "lightning_sphere.tensorboard",
        "lightning_sphere.tensorboard.loader",
        "lightning_sphere.tensorboard.schema",
    }
    heavy = {"torch", "numpy", "lightning", "pytorch_lightning", "plotly", "google", "werkzeug", "rich", "scipy"}
    assert heavy.isdisjoint(name.partition(".")[0] for name in added)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {"lightning_sphere": SAMPLES}),
        ({"images": 3}, {"images": 3, "lightning_sphere": SAMPLES}),
        ({"lightning_sphere": 7}, {"lightning_sphere": 7}),
        ({"lightning_sphere": 0}, {"lightning_sphere": 0}),
        (None, {"lightning_sphere": SAMPLES}),
    ],
)
def test_the_number_of_samples(given: Any, expected: dict[str, int]) -> None:
    flags = SimpleNamespace(samples_per_plugin=given)
    SphereLoader().fix_flags(flags)
    assert flags.samples_per_plugin == expected


@pytest.mark.parametrize(
    "flags", [None, SimpleNamespace(), SimpleNamespace(samples_per_plugin="lightning_sphere=3"), 5]
)
def test_odd_flags_do_no_harm(flags: Any) -> None:
    SphereLoader().fix_flags(flags)


def test_a_broken_dashboard_costs_its_tab_only(monkeypatch: Any, caplog: Any) -> None:
    monkeypatch.setitem(sys.modules, "lightning_sphere.tensorboard.dashboard.plugin", None)
    assert SphereLoader().load(SimpleNamespace(sampling_hints={}, data_provider=None)) is None
    assert "starts without its dashboard" in caplog.text
    assert "dashboard.plugin" in caplog.text


def test_a_context_that_is_none_of_tensorboards_does_no_harm(caplog: Any) -> None:
    assert SphereLoader().load(None) is None
    assert "starts without its dashboard" in caplog.text


@BOTH
def test_an_explicit_flag_wins(tmp_path: Path, fast: bool) -> None:
    write_run(tmp_path / "run", steps=50, layers=2)
    with serving(tmp_path, fast, flags=["--samples_per_plugin=lightning_sphere=12"]) as address:
        until(lambda: runs_of(address)[0]["last_step"] == 49)
        found = values_of(address, "run", "norm")
    assert len(found.steps) == 12
    assert found.steps[-1] == 49


@BOTH
def test_2000_samples_are_kept_by_default(tmp_path: Path, fast: bool) -> None:
    run = write_run(tmp_path / "run", steps=2300, layers=2, quantities=["norm", "drift"])
    with serving(tmp_path, fast) as address:
        until(lambda: runs_of(address)[0]["last_step"] == 2299)
        found = values_of(address, "run", "norm")
        drift = values_of(address, "run", "drift")
    assert len(found.steps) == 2000
    np.testing.assert_array_equal(found.values[..., 0], run.of("norm")[found.steps.astype(int)])
    np.testing.assert_array_equal(drift.steps, np.arange(0, 2300, 10))


# -- the tab ---------------------------------------------------------------------------------------------------------


def test_the_tab_is_there_with_our_data(address: str) -> None:
    ours = listing(address)["lightning_sphere"]
    assert ours["enabled"] is True
    assert ours["tab_name"] == "Sphere"
    assert ours["loading_mechanism"] == {"type": "IFRAME", "module_path": f"{ROUTES}/static/main.js"}


@BOTH
def test_the_tab_is_not_active_without_our_data(tmp_path: Path, fast: bool) -> None:
    writer = SummaryWriter(str(tmp_path / "foreign"))
    writer.add_scalar("loss", 1.0, 0)
    writer.close()
    with serving(tmp_path, fast, wait=0) as address:
        until(lambda: listing(address)["scalars"]["enabled"])
        assert listing(address)["lightning_sphere"]["enabled"] is False
        assert runs_of(address) == []


# -- runs ------------------------------------------------------------------------------------------------------------


def test_the_runs(address: str, world: tuple[Path, dict[str, Run]]) -> None:
    answer = ask(address, "/runs")
    assert [run["name"] for run in answer["runs"]] == sorted(world[1])
    for run in answer["runs"]:
        written = world[1][run["name"]]
        assert run["quantities"] == list(written.schema.quantities)
        assert run["last_step"] == written.steps[-1]
        assert run["last_wall_time"] == written.wall_times[-1]
        assert run["problem"] is None
    assert list(answer["quantities"]) == list(QUANTITIES)
    for name, quantity in QUANTITIES.items():
        told = answer["quantities"][name]
        assert {key: told[key] for key in told if key != "signed"} == {
            key: getattr(quantity, key) for key in told if key != "signed"
        }
        assert told["signed"] == quantity.range.startswith(("-", "any"))
    assert answer["install"] == "pip install 'lightning-sphere[dashboard]'"
    assert answer["plotly"].count(".") >= 2


def test_what_is_told_of_a_run(address: str, world: tuple[Path, dict[str, Run]]) -> None:
    run = world[1]["plain/version_0"]
    told = ask(address, "/run", run="plain/version_0")
    assert told["name"] == "plain/version_0"
    assert told["steps"] == {"shown": 60, "first": 0, "last": 59, "skipped": 3}
    assert (told["first_wall_time"], told["last_wall_time"]) == (START, START + 59)
    assert [layer["name"] for layer in told["layers"]] == list(run.schema.layers)
    assert told["unmeasured"] == [{"parameter": "embedding.weight", "reason": "frozen"}]
    for index, layer in enumerate(told["layers"]):
        row = run.schema.groups[index]
        same = ("kind", "parameter", "norm", "reason", "verdict", "verified_share", "residual", "equilibrium")
        assert {key: layer[key] for key in same} == {key: row[key] for key in same}
        assert layer["equilibrium_state"] == row["equilibrium_state"]
        assert layer["joint_with"] == list(row["joint_with"])
        assert layer["invariant"] == run.schema.invariant[index]
        assert layer["blocks"] == 8 + index
    assert [layer["invariant_blocks"] for layer in told["layers"]] == [8, 3, 10, 11, 0]
    assert {finding["name"] for finding in told["findings"]} == {"claim contradicted", "eps dominates", "steps skipped"}
    assert told["findings"][0]["layers"] == ["stage5.conv0"]


# -- cards -----------------------------------------------------------------------------------------------------------


def slow_median(run: Run, quantity: str, layer: int) -> float | None:
    """Of one layer over the last 20 known steps, in plain Python."""
    rows = [
        row for row in run.of(quantity).tolist()
        if any(not math.isnan(value) for value, flag in zip(row, counted(run), strict=True) if flag)
    ]  # fmt: skip
    values = [row[layer] for row in rows[-20:] if not math.isnan(row[layer])]
    return statistics.median(values) if values else None


def counted(run: Run) -> list[bool]:
    return list(run.schema.invariant) if any(run.schema.invariant) else [True] * len(run.schema.layers)


def slow_card(run: Run, quantity: str) -> float | None:
    if quantity not in run.schema.quantities:
        return None
    layers = [index for index, flag in enumerate(counted(run)) if flag]
    medians = [value for index in layers if (value := slow_median(run, quantity, index)) is not None]
    return statistics.median(medians) if medians else None


def slow_ratios(run: Run) -> dict[str, Any]:
    """Effective over nominal learning rate: medians over layers, step by step, in plain Python."""
    if not {"effective_lr", "lr"} <= set(run.schema.quantities):
        return dict.fromkeys(("lr_ratio_start", "lr_ratio_lowest", "lr_ratio_highest"))
    by_step: list[tuple[list[float], int]] = []
    for step, effective, nominal in zip(run.steps, run.of("effective_lr"), run.of("lr"), strict=True):
        rows = zip(effective.tolist(), nominal.tolist(), counted(run), strict=True)
        ratios = [one / other for one, other, flag in rows if flag and other and math.isfinite(one / other)]
        by_step.append((ratios, int(step)))
    most = max(len(ratios) for ratios, _ in by_step)
    if not most:
        return dict.fromkeys(("lr_ratio_start", "lr_ratio_lowest", "lr_ratio_highest"))
    found = [(statistics.median(ratios), step) for ratios, step in by_step if len(ratios) == most]
    return {
        "lr_ratio_start": statistics.median(ratio for ratio, _ in found[:20]),
        "lr_ratio_lowest": dict(zip(("ratio", "step"), min(found), strict=True)),
        "lr_ratio_highest": dict(zip(("ratio", "step"), max(found, key=lambda one: (one[0], -one[1])), strict=True)),
    }


@pytest.mark.parametrize("name", ["plain/version_0", "short", "none invariant", HOSTILE_RUN, "little"])
def test_every_card_against_a_slow_computation(address: str, world: tuple[Path, dict[str, Run]], name: str) -> None:
    run = world[1][name]
    cards = ask(address, "/run", run=name)["cards"]

    def ratio(one: float | None, other: float | None) -> float | None:
        return one / other if one is not None and other else None

    effective, nominal = slow_card(run, "effective_lr"), slow_card(run, "lr")
    expected: dict[str, Any] = {
        "layers": len(run.schema.layers),
        "invariant_layers": sum(run.schema.invariant),
        "all_layers": not any(run.schema.invariant),
        "window": min(20, len(run.steps)),
        "effective_lr": effective,
        "nominal_lr": nominal,
        "lr_ratio": ratio(effective, nominal),
        **slow_ratios(run),
        "angular_step": slow_card(run, "angular_step"),
    }
    for key, value in expected.items():
        if isinstance(value, dict):
            assert cards[key] == {"ratio": pytest.approx(value["ratio"], rel=1e-12), "step": value["step"]}, key
        else:
            assert cards[key] == (pytest.approx(value, rel=1e-12) if isinstance(value, float) else value), key
    turned: list[tuple[float, str]] = []
    if "angular_step" in run.schema.quantities:
        enough = sum(run.schema.invariant) >= 2
        assert cards["speed_of_all"] is not enough
        flags = run.schema.invariant if enough else [True] * len(run.schema.layers)
        pairs = zip(run.schema.layers, flags, strict=True)
        turned = [
            (value, layer)
            for index, (layer, flag) in enumerate(pairs)
            if flag and (value := slow_median(run, "angular_step", index)) is not None
        ]
    for key, chosen in (("fastest", max), ("slowest", min)):
        if turned:
            value, layer = chosen(turned)
            assert cards[key] == {"layer": layer, "angular_step": pytest.approx(value, rel=1e-12)}
        else:
            assert cards[key] is None


def test_the_counts_on_the_cards(address: str) -> None:
    cards = ask(address, "/run", run="plain/version_0")["cards"]
    assert cards["groups"] == 8 + 3 + 10 + 11
    assert [cards[key] for key in ("verified", "contradicted", "eps_dominates", "unseen")] == [1, 1, 1, 1]
    assert cards["equilibrium"] == {"settled": 1, "transient": 1, "out of reach": 1, "unknown": 1, "total": 4}
    none = ask(address, "/run", run="none invariant")["cards"]
    assert (none["groups"], none["verified"], none["unseen"], none["equilibrium"]["total"]) == (0, 0, 0, 0)


# -- values ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["plain/version_0", "short", HOSTILE_RUN])
def test_every_number_is_the_one_that_was_written(address: str, world: tuple[Path, dict[str, Run]], name: str) -> None:
    run = world[1][name]
    for quantity in run.schema.quantities:
        everything = values_of(address, run=name, quantity=quantity, stat="all")
        assert (everything.layers, everything.stats) == (list(run.schema.layers), list(STATS))
        rows = everything.steps.astype(int)
        if not QUANTITIES[quantity].rare:
            np.testing.assert_array_equal(rows, run.steps)
        np.testing.assert_array_equal(everything.wall_times, run.wall_times[rows])
        written = run.table[:, :, run.schema.quantities.index(quantity)]
        np.testing.assert_array_equal(everything.values, written[rows])
        assert np.isnan(np.delete(written, rows, axis=0)).all()
        median = values_of(address, run=name, quantity=quantity)
        assert median.stats == ["median"]
        np.testing.assert_array_equal(median.values[..., 0], run.of(quantity)[rows])
        tenth = values_of(address, run=name, quantity=quantity, stat="p10")
        np.testing.assert_array_equal(tenth.values[..., 0], run.of(quantity, "p10")[rows])


def test_one_layer(address: str, world: tuple[Path, dict[str, Run]]) -> None:
    for name in ("plain/version_0", HOSTILE_RUN):
        run = world[1][name]
        for index, layer in enumerate(run.schema.layers):
            found = values_of(address, run=name, quantity="norm", stat="all", layer=layer)
            assert found.layers == [layer]
            np.testing.assert_array_equal(found.values[:, 0], run.table[:, index, run.schema.quantities.index("norm")])


def test_hostile_names_come_through(address: str, world: tuple[Path, dict[str, Run]]) -> None:
    told = ask(address, "/run", run=HOSTILE_RUN)
    assert told["name"] == HOSTILE_RUN
    assert [layer["name"] for layer in told["layers"]] == list(HOSTILE_LAYERS)


def test_parameters_are_decoded_once(address: str) -> None:
    twice = urllib.parse.quote(urllib.parse.quote("plain/version_0", safe=""), safe="")
    status, sentence = failure(address, f"{ROUTES}/run?run={twice}")
    assert status == 404
    assert "plain%2Fversion_0" in sentence


# -- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "status", "words"),
    [
        ("/run", 400, "'run' is missing"),
        ("/run?run=nothing", 404, "no run 'nothing'"),
        ("/run?run=foreign", 404, "no run 'foreign'"),
        ("/run?run=", 404, "no run ''"),
        ("/values?run=short", 400, "'quantity' is missing"),
        ("/values?quantity=norm", 400, "'run' is missing"),
        ("/values?run=nothing&quantity=norm", 404, "no run"),
        ("/values?run=short&quantity=loss", 404, "has not recorded 'loss'"),
        ("/values?run=little&quantity=lr", 404, "has not recorded 'lr'"),
        ("/values?run=short&quantity=norm&stat=mean", 400, "'mean' is not one of p10"),
        ("/values?run=short&quantity=norm&layer=x", 404, "no layer 'x'"),
        ("/values?run=short&quantity=norm&layer=", 404, "no layer ''"),
        ("/values?run=short&quantity=../sphere_schema", 404, "has not recorded"),
    ],
)
def test_requests_that_cannot_be_answered(address: str, path: str, status: int, words: str) -> None:
    found = failure(address, ROUTES + path)
    assert found[0] == status
    assert words in found[1]


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "HEAD", "OPTIONS"])
@pytest.mark.parametrize("route", ["/runs", "/run?run=short", "/values?run=short&quantity=norm", "/plotly.js"])
def test_only_get_is_answered(address: str, route: str, method: str) -> None:
    assert failure(address, ROUTES + route, method)[0] == 405


@pytest.mark.parametrize(
    "path",
    [
        "/static/../plugin.py",
        "/static/%2e%2e/plugin.py",
        "/static/..%2fplugin.py",
        "/static/..%252fplugin.py",
        "/static//etc/passwd",
        "/static/%2fetc%2fpasswd",
        "/static/",
        "/static",
        "/static/plugin.py",
        "/static/main.js/../../plugin.py",
        "/static/..\\plugin.py",
        "/../loader.py",
        "/plugin.py",
    ],
)
def test_nothing_else_is_served(address: str, path: str) -> None:
    assert failure(address, ROUTES + path)[0] == 404


# -- a run is written while it is looked at --------------------------------------------------------------------------


@BOTH
def test_a_run_that_is_being_written(tmp_path: Path, fast: bool) -> None:
    run = write_run(tmp_path / "run", steps=10, layers=3, close=False)
    with serving(tmp_path, fast) as address:
        until(lambda: runs_of(address)[0]["last_step"] == 9)
        assert ask(address, "/run", run="run")["steps"]["shown"] == 10
        grow(run, 25)
        until(lambda: runs_of(address)[0]["last_step"] == 34)
        assert ask(address, "/run", run="run")["steps"]["last"] == 34
        found = values_of(address, "run", "norm")
        np.testing.assert_array_equal(found.steps, np.arange(35))
        np.testing.assert_array_equal(found.values[..., 0], run.of("norm"))
    run.close()


@BOTH
def test_a_resumed_run(tmp_path: Path, fast: bool) -> None:
    first = write_run(tmp_path / "run", steps=40, layers=3, seed=1)
    second = write_run(tmp_path / "run", steps=range(25, 60), layers=3, seed=2, start=START + 1000)
    with serving(tmp_path, fast) as address:
        until(lambda: runs_of(address)[0]["last_step"] == 59)
        found = values_of(address, "run", "norm")
        told = ask(address, "/run", run="run")
    assert told["steps"] == {"shown": 60, "first": 0, "last": 59, "skipped": 0}
    np.testing.assert_array_equal(found.steps, np.arange(60))
    np.testing.assert_array_equal(found.values[..., 0], np.concatenate([first.of("norm")[:25], second.of("norm")]))
    assert found.wall_times[24] == START + 24
    assert found.wall_times[25] == START + 1000


@BOTH
def test_layers_that_join_later(tmp_path: Path, fast: bool) -> None:
    few, many = schema_of(["b", "d"], CORE), schema_of(["a", "b", "c", "d"], CORE, invariant=[True, False, True, True])
    run = write_run(tmp_path / "run", steps=20, schema=few, close=False)
    before, old = run.table, run.of("norm")
    run.schema, run.table = many, np.empty((0, 4, *before.shape[2:]), dtype=np.float32)
    grow(run, 20)
    run.close()
    with serving(tmp_path, fast) as address:
        until(lambda: runs_of(address)[0]["last_step"] == 39)
        found = values_of(address, "run", "norm")
        told = ask(address, "/run", run="run")
    assert found.layers == ["a", "b", "c", "d"]
    assert [layer["invariant"] for layer in told["layers"]] == [True, False, True, True]
    np.testing.assert_array_equal(found.values[:20, [1, 3], 0], old)
    assert np.isnan(found.values[:20, [0, 2]]).all()
    np.testing.assert_array_equal(found.values[20:, :, 0], run.of("norm"))


def test_where_nothing_is_invariant_all_layers_count(address: str) -> None:
    told = ask(address, "/run", run="none invariant")
    assert told["cards"]["all_layers"] is True
    assert [finding["name"] for finding in told["findings"]] == ["nothing invariant"]


def test_a_long_answer_is_whole(address: str) -> None:
    raw = fetch(address, "/values", run="plain/version_0", quantity="norm", stat="all")
    assert decode(raw).values.shape == (60, 5, 4)


# -- without a server ------------------------------------------------------------------------------------------------


def client(provider: Any, **hints: int) -> Client:
    """All routes of a plugin over a data provider."""
    plugin = SphereLoader().load(SimpleNamespace(sampling_hints=hints, data_provider=provider))
    assert plugin.is_active() is False
    apps = plugin.get_plugin_apps()

    def serve(environ: Any, start_response: Any) -> Any:
        return apps[environ["PATH_INFO"]](environ, start_response)

    return Client(serve)


def test_a_tensorboard_that_gives_no_data() -> None:
    answer = client(None).get("/runs")
    assert answer.status_code == 404
    assert "generic_data" in answer.json["error"]


def test_infinite_numbers_are_null(tmp_path: Path) -> None:
    schema = schema_of(3, CORE)
    table = numbers(range(30), schema)
    table[..., schema.quantities.index("effective_lr"), :] = np.inf
    table[..., schema.quantities.index("lr"), :] = 0.0
    write_run(tmp_path / "run", steps=30, schema=replace(schema), table=table)
    with serving(tmp_path, False) as address:
        until(lambda: runs_of(address)[0]["last_step"] == 29)
        cards = ask(address, "/run", run="run")["cards"]
        assert np.isinf(values_of(address, "run", "effective_lr").values).all()
    assert cards["effective_lr"] is None
    assert cards["nominal_lr"] == 0.0
    assert cards["lr_ratio"] is None
    assert cards["lr_ratio_start"] is cards["lr_ratio_lowest"] is cards["lr_ratio_highest"] is None
