"""The server side of the Sphere tab where runs are damaged, many or large; what it keeps, which files it serves."""

from __future__ import annotations

import gzip
import importlib.util
import json
import subprocess
import sys
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorboard import errors
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.data.provider import TensorDatum, TensorTimeSeries
from torch.utils.tensorboard import SummaryWriter
from werkzeug.test import Client
from werkzeug.wrappers import Request

import lightning_sphere.tensorboard.dashboard.series as series
from dashboard_world import CORE, START, ask, decode, numbers, runs_of, schema_of, serving, until, values_of, write_run
from lightning_sphere.quantities import STATS
from lightning_sphere.tensorboard.dashboard.about import KINDS, STATES, VERDICTS, about
from lightning_sphere.tensorboard.dashboard.answers import application
from lightning_sphere.tensorboard.dashboard.assets import STATIC, Plotly, static_views
from lightning_sphere.tensorboard.dashboard.cache import Cache
from lightning_sphere.tensorboard.dashboard.series import (
    Description,
    Table,
    Told,
    UnreadableError,
    describe,
    read_schema,
    tabulate,
    valid_rows,
)
from lightning_sphere.tensorboard.loader import SphereLoader
from lightning_sphere.tensorboard.schema import FORMAT, SCHEMA_TAG, TABLE_TAG, TableSchema
from lightning_sphere.tensorboard.values import schema_value, table_value

# -- damaged descriptions --------------------------------------------------------------------------------------------

GOOD = json.loads(schema_of(2, ["norm"]).to_json())


def altered(**changes: Any) -> bytes:
    return json.dumps(GOOD | changes).encode()


DAMAGED: dict[str, bytes] = {
    "not JSON": b"{nonsense",
    "not UTF-8": b"\xff\xfe\x00",
    "empty": b"",
    "a list": b"[1, 2]",
    "a number": b"3",
    "null": b"null",
    "the future's": altered(format=FORMAT + 1, layers="whatever"),
    "format of another type": altered(format="two"),
    "no layers": json.dumps({key: value for key, value in GOOD.items() if key != "layers"}).encode(),
    "layers that are numbers": altered(layers=[1, 2]),
    "layers that are one number": altered(layers=7),
    "layers alike": altered(layers=["a", "a"]),
    "too few flags": altered(invariant=[True]),
    "flags that are words": altered(invariant=["no", "no"]),
    "cuts that are words": altered(cuts=["ab", "cd"]),
    "cuts that are numbers": altered(cuts=[1, 2]),
    "groups that are numbers": altered(groups=[1]),
    "groups that are one number": altered(groups=1),
    "nested deeply": b'{"format": 2, "layers": ' + b"[" * 200_000 + b"]" * 200_000 + b"}",
    "an endless number": b'{"format": ' + b"9" * 10_000 + b"}",
}


def raw_run(folder: Path, *values: Any) -> None:
    """One event per list of values, a second apart."""
    writer = SummaryWriter(str(folder))
    for step, several in enumerate(values):
        writer.file_writer.add_event(Event(summary=Summary(value=several), step=step), walltime=START + step)
    writer.close()


def row(quantity: str = "norm", layers: int = 2, content: bytes | None = None) -> Any:
    value = table_value(quantity, schema_of(layers, [quantity]))
    value.tensor.tensor_content = np.ones((layers, 4), dtype="<f4").tobytes() if content is None else content
    return value


@pytest.mark.parametrize("fast", [True, False], ids=["fast loader", "python loader"])
def test_damaged_runs_say_so_and_leave_others_alone(tmp_path: Path, fast: bool) -> None:
    for name, content in DAMAGED.items():
        raw_run(tmp_path / name, [schema_value(content), row()])
    raw_run(tmp_path / "no schema", [row()])
    raw_run(tmp_path / "no row", [schema_value(altered())])
    raw_run(tmp_path / "rows of another size", [schema_value(altered()), row(layers=3)])
    raw_run(tmp_path / "a row that is no tensor", [schema_value(altered()), row(content=b"123")])
    raw_run(tmp_path / "two in one", [schema_value(altered()), row()], [schema_value(DAMAGED["not JSON"])])
    good = write_run(tmp_path / "good", steps=20)
    with serving(tmp_path, fast, wait=1) as address:
        count = len(DAMAGED) + 6
        until(lambda: len(runs_of(address)) == count and {run["name"]: run for run in runs_of(address)}["good"])
        until(lambda: {run["name"]: run for run in runs_of(address)}["good"]["last_step"] == 19)
        listed = {run["name"]: run for run in runs_of(address)}
        unlisted = {"good", "rows of another size", "a row that is no tensor"}  # seen only when the numbers are read
        for name, run in listed.items():
            assert (run["problem"] is None) == (name in unlisted), name
            if name == "good":
                continue
            assert_refused(address, name)
        assert "newer" in listed["the future's"]["problem"]
        assert listed["no row"]["problem"] == "no step is recorded yet"
        np.testing.assert_array_equal(values_of(address, "good", "norm").values[..., 0], good.of("norm"))
        assert ask(address, "/run", run="good")["steps"]["shown"] == 20


def assert_refused(address: str, name: str) -> None:
    """Nothing but a sentence is told of a damaged run."""
    for route in ("/run?", "/values?quantity=norm&"):
        url = f"{address}/data/plugin/lightning_sphere{route}run={urllib.parse.quote(name)}"
        if name == "rows of another size" and route.startswith("/values"):
            with urllib.request.urlopen(url) as answer:
                assert decode(answer.read()).values.shape == (0, 2, 1)
            continue
        with pytest.raises(urllib.error.HTTPError) as raised:
            urllib.request.urlopen(url)
        assert raised.value.code == 404, (name, route)
        assert repr(name) in json.loads(raised.value.read())["error"] or '"' in name or "'" in name


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["row", "verified"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
group_rows = st.dictionaries(
    st.sampled_from([*GOOD["groups"][0], "shape"]), json_values | st.sampled_from(GOOD["layers"]), max_size=14
)


@settings(deadline=None, max_examples=400, derandomize=True)
@given(
    st.dictionaries(st.sampled_from(list(GOOD)), json_values, max_size=2), st.none() | st.lists(group_rows, max_size=4)
)
def test_no_description_breaks_anything(changes: dict[str, Any], groups: list[Any] | None) -> None:
    content = altered(**changes, **({} if groups is None or "groups" in changes else {"groups": groups}))
    try:
        description = describe([datum(0, content)])
    except UnreadableError as error:
        sentence = str(error)
    else:
        sentence = ""
    if sentence:
        assert len(sentence) < 400
        return
    count = len(description.layers)
    table = Table(np.arange(3), START + np.arange(3.0), np.ones((3, count, 4), dtype=np.float32))
    told = about("run", description, ("norm", "angular_step"), lambda _: table)
    json.dumps(told, allow_nan=False)
    assert [layer["name"] for layer in told["layers"]] == list(description.layers)
    for layer in told["layers"]:
        assert layer["kind"] in KINDS
        assert layer["verdict"] in (None, *VERDICTS)
        assert layer["equilibrium_state"] in (None, *STATES)
        texts = [layer[key] for key in ("parameter", "reason", "norm", "equilibrium") if layer[key] is not None]
        assert all(isinstance(text, str) for text in (*texts, *layer["joint_with"]))
        assert type(layer["blocks"]) is int


@pytest.mark.parametrize("content", [1.5, [1.0, 2.0], np.zeros((0,)), np.array(["text"])])
def test_a_description_that_is_no_text(content: Any) -> None:
    with pytest.raises(UnreadableError, match="is no text"):
        describe([datum(0, content)])


def test_a_huge_description_is_not_even_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(series, "MOST_SCHEMA_BYTES", 100)
    with pytest.raises(UnreadableError, match="too large"):
        read_schema(altered())


def test_a_huge_table_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    schema = schema_of(2, ["norm"])
    data = [TensorDatum(step, START + step, np.ones((2, 4), dtype=np.float32)) for step in range(4)]
    description = Description((Told(0, START, schema),))
    assert tabulate(data, description).values.shape == (4, 2, 4)
    monkeypatch.setattr(series, "MOST_BYTES", 127)
    with pytest.raises(UnreadableError, match="4 steps of 2 layers are too much"):
        tabulate(data, description)


# -- which rows count ------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=300, derandomize=True)
@given(st.lists(st.integers(min_value=0, max_value=8), max_size=14))
def test_rows_that_a_resumed_run_took_again(steps: list[int]) -> None:
    kept: list[int] = []
    for index, step in enumerate(steps):
        if index and step < steps[index - 1]:
            kept = [other for other in kept if steps[other] < step]
        kept.append(index)
    assert np.flatnonzero(valid_rows(np.array(steps, dtype=np.int64))).tolist() == kept


def datum(step: int, content: Any, wall_time: float | None = None) -> TensorDatum:
    values = np.array(content, dtype=object) if isinstance(content, bytes) else np.asarray(content)
    return TensorDatum(step, START + step if wall_time is None else wall_time, values)


def filled(layers: int, value: float) -> np.ndarray:
    return np.full((layers, 4), value, dtype=np.float32)


def test_repeated_steps_stay_and_the_order_is_that_of_time() -> None:
    description = Description((Told(0, START, schema_of(1, ["norm"])),))
    data = [datum(step, filled(1, index), START + index) for index, step in enumerate([0, 0, 1, 1, 2])]
    table = tabulate(data[::-1], description)
    assert table.steps.tolist() == [0, 0, 1, 1, 2]
    assert table.values[:, 0, 0].tolist() == [0, 1, 2, 3, 4]


def test_a_schema_marks_where_a_run_was_resumed() -> None:
    """TensorBoard may have dropped the rows there: 7, 8, 9 were taken again, though 10 is the first row left."""
    schema = schema_of(1, ["norm"])
    description = Description((Told(0, START, schema), Told(5, START + 100, schema)))
    old = [datum(step, filled(1, 1)) for step in (0, 3, 7, 8, 9)]
    new = [datum(step, filled(1, 2), START + 95 + step) for step in (10, 12)]
    table = tabulate([*old, *new], description)
    assert table.steps.tolist() == [0, 3, 10, 12]
    assert table.values[:, 0, 0].tolist() == [1, 1, 2, 2]


def test_rows_go_by_the_schema_of_their_time_or_one_that_fits() -> None:
    told = (
        Told(0, START, schema_of(["b", "a"], ["norm"])),
        Told(10, START + 10, schema_of(["a", "b", "c"], ["norm"])),
        Told(30, START + 30, schema_of(["c", "a"], ["norm"])),
    )
    description = Description(told)
    assert description.layers == ("c", "a", "b")
    numbered = {
        count: np.arange(count, dtype=np.float32)[:, None] + np.zeros((1, 4), dtype=np.float32) for count in (2, 3)
    }
    data = [
        datum(0, numbered[2]),  # b, a
        datum(9, numbered[2]),  # b, a
        datum(10, numbered[3]),  # a, b, c
        datum(11, numbered[2]),  # not that of its time; b, a is nearer
        datum(16, numbered[2]),  # c, a is nearer
        datum(31, numbered[2]),  # c, a
        datum(32, np.zeros((4, 4), dtype=np.float32)),  # fits nothing
        datum(33, np.zeros((2, 4), dtype=np.int32)),  # no number of ours
        datum(34, b"text"),
        datum(35, numbered[2], float("nan")),
    ]
    table = tabulate(data, description)
    assert table.steps.tolist() == [0, 9, 10, 11, 16, 31]
    nan = float("nan")
    expected = [[nan, 1, 0], [nan, 1, 0], [2, 0, 1], [nan, 1, 0], [0, 1, nan], [0, 1, nan]]
    np.testing.assert_array_equal(table.values[..., 1], expected)


def test_a_schema_holds_from_its_own_row_on() -> None:
    told = (Told(0, START, schema_of(["a", "b"], ["norm"])), Told(5, START + 5, schema_of(["b", "a"], ["norm"])))
    numbered = np.arange(2, dtype=np.float32)[:, None] + np.zeros((1, 4), dtype=np.float32)
    table = tabulate([datum(step, numbered) for step in (4, 5, 6)], Description(told))
    assert table.values[..., 1].tolist() == [[1, 0], [0, 1], [0, 1]]  # b, a


def test_statistics_go_by_their_names() -> None:
    schema = TableSchema(("a",), ("norm",), ("rms", "other", "p10"), (True,), ((0, 2),))
    table = tabulate([datum(0, np.array([[1, 2, 3]], dtype=np.float64))], Description((Told(0, START, schema),)))
    np.testing.assert_array_equal(table.values[0, 0], [3, np.nan, np.nan, 1])
    assert STATS == ("p10", "median", "p90", "rms")


# -- a data provider in memory, that counts --------------------------------------------------------------------------


class Provider:
    """What TensorBoard's data providers do, over ``runs[run][tag]``; remembers what was read."""

    def __init__(self, runs: dict[str, dict[str, list[TensorDatum]]]) -> None:
        self.runs = runs
        self.read: list[tuple[tuple[str, ...], str, int]] = []
        self.listed = 0
        self.fail: Callable[[Iterable[str]], None] = lambda runs: None

    def list_tensors(self, ctx: Any, *, experiment_id: str, plugin_name: str, run_tag_filter: Any = None) -> Any:
        assert plugin_name == "lightning_sphere"
        self.listed += 1
        wanted = None if run_tag_filter is None else run_tag_filter.runs
        return {
            run: {
                tag: TensorTimeSeries(
                    max_step=max((one.step for one in data), default=None),
                    max_wall_time=max((one.wall_time for one in data), default=None),
                    plugin_content=b"",
                    description="",
                    display_name="",
                )
                for tag, data in tags.items()
            }
            for run, tags in self.runs.items()
            if wanted is None or run in wanted
        }

    def read_tensors(
        self, ctx: Any, *, experiment_id: str, plugin_name: str, downsample: int, run_tag_filter: Any
    ) -> Any:
        runs, (tag,) = run_tag_filter.runs, run_tag_filter.tags
        self.read.append((tuple(runs), tag, downsample))
        self.fail(runs)
        return {run: {tag: self.runs[run][tag][-downsample:]} for run in runs if tag in self.runs.get(run, {})}


def in_memory(steps: int = 30, layers: int = 3) -> dict[str, list[TensorDatum]]:
    schema = schema_of(layers, CORE)
    table = numbers(range(steps), schema)
    tags = {
        TABLE_TAG + name: [datum(step, table[step, :, index]) for step in range(steps)]
        for index, name in enumerate(CORE)
    }
    return {SCHEMA_TAG: [datum(0, schema.to_json())], **tags}


def client(provider: Any, **hints: int) -> Client:
    plugin = SphereLoader().load(SimpleNamespace(sampling_hints=hints, data_provider=provider))
    apps = plugin.get_plugin_apps()
    return Client(lambda environ, start_response: apps[environ["PATH_INFO"]](environ, start_response))


def test_what_has_not_changed_is_not_read_again() -> None:
    provider = Provider({"run": in_memory()})
    page = client(provider)
    for _ in range(3):
        assert page.get("/runs").json["runs"][0]["problem"] is None
        assert page.get("/run?run=run").status_code == 200
        for quantity in CORE:
            assert page.get(f"/values?run=run&quantity={quantity}").status_code == 200
            assert page.get(f"/values?run=run&quantity={quantity}&stat=all&layer=stage1.conv2").status_code == 200
    assert sorted(tag for _, tag, _ in provider.read) == sorted(
        [SCHEMA_TAG, SCHEMA_TAG, *(TABLE_TAG + name for name in CORE)]
    )
    provider.runs["run"][TABLE_TAG + "norm"].append(datum(30, filled(3, 5.0)))
    provider.read.clear()
    assert decode(page.get("/values?run=run&quantity=norm").data).values[-1, 0, 0] == 5.0
    assert page.get("/values?run=run&quantity=lr").status_code == 200
    assert [tag for _, tag, _ in provider.read] == [TABLE_TAG + "norm"]


def test_a_new_description_is_heeded() -> None:
    provider = Provider({"run": in_memory()})
    page = client(provider)
    assert page.get("/run?run=run").json["cards"]["contradicted"] == 0
    schema = schema_of(3, CORE, rows={"stage3.conv0": {"verdict": "contradicted"}})
    provider.runs["run"][SCHEMA_TAG].append(datum(29, schema.to_json()))
    assert page.get("/run?run=run").json["cards"]["contradicted"] == 1
    assert page.get("/values?run=run&quantity=norm").status_code == 200


def test_only_what_the_cards_need_is_read() -> None:
    provider = Provider({"run": in_memory()})
    client(provider).get("/run?run=run")
    assert {tag.removeprefix(TABLE_TAG) for _, tag, _ in provider.read} == {
        SCHEMA_TAG, "angular_step", "effective_lr", "lr", "lost_update"
    }  # fmt: skip


def test_200_runs_are_listed_with_two_questions() -> None:
    provider = Provider({f"run {index}": in_memory(3) for index in range(200)})
    page = client(provider)
    assert len(page.get("/runs").json["runs"]) == 200
    assert (provider.listed, len(provider.read)) == (1, 1)
    page.get("/runs")
    assert (provider.listed, len(provider.read)) == (2, 1)


@pytest.mark.parametrize(
    ("hints", "expected"), [({}, 2000), ({"lightning_sphere": 50}, 50), ({"lightning_sphere": 0}, 10_000)]
)
def test_as_many_samples_are_asked_for_as_are_kept(hints: dict[str, int], expected: int) -> None:
    provider = Provider({"run": in_memory()})
    client(provider, **hints).get("/values?run=run&quantity=norm")
    assert {downsample for _, _, downsample in provider.read} == {expected}


def test_a_run_that_cannot_be_read_leaves_the_others_readable() -> None:
    provider = Provider({"bad": in_memory(), "good": in_memory()})

    def fail(runs: Iterable[str]) -> None:
        if "bad" in runs:
            raise ValueError("cannot reshape array")

    provider.fail = fail
    page = client(provider)
    listed = {run["name"]: run["problem"] for run in page.get("/runs").json["runs"]}
    assert listed["good"] is None
    assert "cannot reshape array" in listed["bad"]
    for route in ("/run?run=bad", "/values?run=bad&quantity=norm"):
        answer = page.get(route)
        assert answer.status_code == 404
        assert "cannot reshape array" in answer.json["error"]
    assert page.get("/run?run=good").status_code == 200
    provider.fail = lambda runs: None
    assert {run["problem"] for run in page.get("/runs").json["runs"]} == {None}


def test_a_quantity_that_cannot_be_read_leaves_the_run_readable() -> None:
    provider = Provider({"run": in_memory()})
    provider.runs["run"][TABLE_TAG + "lr"] = [datum(0, b"text")]
    told = client(provider).get("/run?run=run").json
    assert told["cards"]["nominal_lr"] is None
    assert told["cards"]["effective_lr"] > 0
    assert told["steps"]["shown"] == 30


@pytest.mark.parametrize(
    ("error", "status"), [(errors.PermissionDeniedError("not yours"), 403), (errors.NotFoundError("gone"), 404)]
)
def test_tensorboards_own_errors_stay_what_they_are(error: errors.PublicError, status: int) -> None:
    provider = Provider({"run": in_memory()})

    def fail(_: Iterable[str]) -> None:
        raise error

    provider.fail = fail
    for route in ("/runs", "/run?run=run", "/values?run=run&quantity=norm"):
        answer = client(provider).get(route)
        assert (answer.status_code, answer.json["error"]) == (status, str(error))


def test_a_fault_of_ours_is_an_answer_too(caplog: Any) -> None:
    def view(_: Request) -> Any:
        raise ZeroDivisionError("secret")

    answer = Client(application(view)).get("/")
    assert answer.status_code == 500
    assert answer.json == {"error": "lightning_sphere failed: ZeroDivisionError"}
    assert "secret" in caplog.text


def test_many_ask_at_once() -> None:
    provider = Provider({f"run {index}": in_memory() for index in range(4)})
    page = client(provider)
    expected = {
        (run, name): page.get("/values", query_string={"run": run, "quantity": name}).data
        for run in provider.runs
        for name in CORE
    }
    page = client(provider)
    wrong: list[Any] = []

    def work() -> None:
        for (run, name), content in expected.items():
            if page.get("/values", query_string={"run": run, "quantity": name}).data != content:
                wrong.append((run, name))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


# -- the cache -------------------------------------------------------------------------------------------------------


def test_the_cache_forgets_what_was_not_asked_for_the_longest() -> None:
    cache = Cache(limit=10)
    for key in "abc":
        cache.put(key, 1, key.upper(), 3)
    assert cache.get("a", 1) == "A"
    cache.put("d", 1, "D", 4)
    assert [cache.get(key, 1) for key in "abcd"] == ["A", None, "C", "D"]
    assert cache.size == 10


def test_the_cache_keeps_one_version() -> None:
    cache = Cache(limit=10)
    cache.put("a", 1, "old", 6)
    cache.put("a", 2, "new", 7)
    assert cache.get("a", 1) is None
    assert cache.get("a", 2) == "new"
    assert cache.size == 7
    cache.put("a", 3, "too large", 11)
    assert cache.get("a", 3) is None
    assert cache.get("a", 2) is None
    assert cache.size == 0


# -- files -----------------------------------------------------------------------------------------------------------


def test_only_files_of_the_page_are_served(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    for name in ("main.js", "style.css", "notes.txt", "plugin.py", ".hidden", "below/deep.js", "page.html"):
        (tmp_path / name).write_text(f"content of {name}: ü")
    views = static_views(tmp_path)
    assert set(views) == {"/static/main.js", "/static/style.css"}
    for name, content_type in (("main.js", "text/javascript; charset=utf-8"), ("style.css", "text/css; charset=utf-8")):
        answer = Client(application(views[f"/static/{name}"])).get("/")
        assert answer.text == f"content of {name}: ü"
        assert answer.headers["Content-Type"] == content_type
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Cache-Control"] == "no-cache, must-revalidate"
    (tmp_path / "main.js").unlink()
    assert Client(application(views["/static/main.js"])).get("/").status_code == 404
    assert static_views(tmp_path / "nowhere") == {}


def test_the_package_brings_its_page() -> None:
    assert set(static_views()) == {
        f"/static/{file.name}" for file in STATIC.iterdir() if file.suffix in (".js", ".css")
    }
    assert {file.suffix for file in STATIC.iterdir() if file.is_file()} <= {".js", ".css"}


def test_plotly_is_compressed_once_and_kept() -> None:
    (folder,) = importlib.util.find_spec("plotly").submodule_search_locations  # type: ignore[union-attr]
    original = (Path(folder) / "package_data" / "plotly.min.js").read_bytes()
    plotly = Plotly()
    page = Client(application(plotly.view))
    plain = page.get("/")
    assert plain.data == original
    assert "Content-Encoding" not in plain.headers
    assert plain.headers["Cache-Control"] == "no-cache, must-revalidate"
    packed = page.get(f"/?v={plotly.version}", headers={"Accept-Encoding": "gzip, br"})
    assert gzip.decompress(packed.data) == original
    assert packed.headers["Content-Encoding"] == "gzip"
    assert packed.headers["Cache-Control"] == "private, max-age=31536000, immutable"
    for answer in (plain, packed):
        assert answer.headers["Content-Type"] == "text/javascript; charset=utf-8"
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Vary"] == "Accept-Encoding"
    assert plotly._gzipped(plotly._file()) is plotly._gzipped(plotly._file())  # type: ignore[arg-type]


def test_without_plotly_the_page_is_told_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "plotly" else found(name, *rest)
    )
    page = client(Provider({"run": in_memory()}))
    assert page.get("/runs").json["plotly"] is None
    answer = page.get("/plotly.js")
    assert answer.status_code == 404
    assert "pip install 'lightning-sphere[dashboard]'" in answer.json["error"]


def test_plotly_itself_is_never_imported() -> None:
    program = (
        "import sys\nfrom types import SimpleNamespace\n"
        "from lightning_sphere.tensorboard.loader import SphereLoader\n"
        "plugin = SphereLoader().load(SimpleNamespace(sampling_hints={}, data_provider=None))\n"
        "assert plugin._plotly.version and plugin.get_plugin_apps()\n"
        "assert not {'plotly', 'torch', 'lightning', 'pytorch_lightning', 'rich'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
