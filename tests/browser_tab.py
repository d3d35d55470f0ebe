"""The Sphere tab as a person has it before the eyes: opened in TensorBoard's front page, and read back as numbers."""

from __future__ import annotations

import io
import re
import time
import urllib.parse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from PIL import Image
from playwright.sync_api import ConsoleMessage, Frame, Locator, Page

PREFIX = "p.lightning_sphere."
FRAME = re.compile(r"/data/plugin_entry\.html\?name=lightning_sphere")
READY = """() => {
    const map = document.querySelector("[data-testid=heatmap]:not(.busy):not([hidden])");
    return map?.querySelector("#heatmap-plot")._fullData && !document.querySelector(".cards.loading, .spinner");
}"""
"""The first drawing is done: no part of the page waits for an answer."""

T = TypeVar("T")


@dataclass(frozen=True)
class Heatmap:
    """One heatmap as plotly has it.

    Attributes:
        layers: names of the rows, from top to bottom.
        z: what is coloured, ``[rows, columns]``.
        edges: of the columns, one more than columns.
        range: of the x axis.
        low, high: ends of the colour scale.
        log: whether ``z`` are logarithms.
        colours: the colour scale, from 0 to 1.
        title: what the colours mean.
    """

    layers: list[str]
    z: np.ndarray
    edges: np.ndarray
    range: tuple[float, float]
    low: float
    high: float
    log: bool
    colours: list[tuple[float, str]]
    title: str


@dataclass(frozen=True)
class Curve:
    """One line or band of the opened layer as plotly has it; NaN are gaps."""

    x: np.ndarray
    y: np.ndarray
    name: str
    colour: str
    axis: str
    dash: str


class Tab:
    """A page of the browser with TensorBoard's front page in it, the Sphere tab chosen."""

    def __init__(self, page: Page, address: str) -> None:
        self.page, self.address = page, address
        self.problems: list[str] = []
        self.allowed: list[str] = []
        page.on("pageerror", lambda error: self.problems.append(f"page error: {error}\n{error.stack}"))
        page.on("console", self._hear)
        page.on("request", lambda request: self._follow(request.url))
        page.on("dialog", lambda dialog: (self.problems.append(f"dialog: {dialog.message}"), dialog.dismiss()))

    def _hear(self, message: ConsoleMessage) -> None:
        if message.type == "error":
            self.problems.append(f"console: {message.text} ({message.location.get('url')})")

    def _follow(self, url: str) -> None:
        if url.startswith(("http:", "https:")) and not url.startswith(self.address):
            self.problems.append(f"asked elsewhere: {url}")

    def allow(self, text: str) -> None:
        """Complaints that contain this text are expected in this test."""
        self.allowed.append(text)

    def complaints(self) -> list[str]:
        """What went wrong since this was asked last, expected complaints left out."""
        found = [one for one in self.problems if not any(text in one for text in self.allowed)]
        self.problems.clear()
        self.allowed.clear()
        return found

    @property
    def frame(self) -> Frame:
        """The plugin's frame."""
        found = self.page.frame(url=FRAME)
        assert found is not None, "the Sphere tab has no frame"
        return found

    def url(self, **state: str | float) -> str:
        """A link as the page writes it."""
        query = urllib.parse.urlencode(
            {PREFIX + key: value for key, value in state.items()}, quote_via=urllib.parse.quote
        )
        return f"{self.address}/{'?' if query else ''}{query}#lightning_sphere"

    def visit(self, *, ready: str | None = READY, **state: str | float) -> Tab:
        """Open TensorBoard's front page by a link.

        Args:
            ready: what to wait for in the frame; None: for nothing.
            state: keys of the link, as ``state.js`` lists them.
        """
        self.page.goto("about:blank")
        self.page.goto(self.url(**state), wait_until="commit")
        self.page.wait_for_selector("iframe[src*='name=lightning_sphere'], .plugins iframe")
        self.until(lambda: self.page.frame(url=FRAME) is not None)
        return self._wait(ready)

    def show(self, *, ready: str | None = READY, **state: str | float) -> Tab:
        """The same, but where TensorBoard is there already, only the plugin's frame is loaded again: much faster."""
        if not self.page.url.startswith(self.address) or self.page.frame(url=FRAME) is None:
            return self.visit(ready=ready, **state)
        frame, url = self.frame, self.frame.url
        self.page.mouse.move(0, 0)
        frame.goto("about:blank")  # lest the old page writes its own link once more
        self.page.evaluate("url => history.replaceState(history.state, '', url)", self.url(**state))
        frame.goto(url)
        return self._wait(ready)

    def _wait(self, ready: str | None) -> Tab:
        if ready is not None:
            self.frame.wait_for_function(ready, timeout=30_000)
        return self

    def get(self, testid: str) -> Locator:
        """An element by its ``data-testid``."""
        return self.frame.get_by_test_id(testid)

    def until(self, read: Callable[[], T], accept: Callable[[T], Any] = bool, seconds: float = 10) -> T:
        """Read again and again until it is as it should be; the last one is given back for the test to look at.

        The page draws a little after a person has done something. A value that is never accepted is returned too, so
        that the assertion which follows can show it.
        """
        deadline = time.monotonic() + seconds
        while True:
            value = read()
            if accept(value) or time.monotonic() > deadline:
                return value
            self.page.wait_for_timeout(20)

    def rows(self) -> list[str]:
        """Names in the list of layers, from top to bottom."""
        return self.frame.eval_on_selector_all(
            "[data-testid=layers] [role=option]", "all => all.map(e => e.dataset.layer)"
        )

    def layer(self, name: str) -> Locator:
        """A row of the list of layers."""
        return self.frame.locator(f"[data-testid=layers] [data-layer={quoted(name)}]")

    def heatmaps(self) -> dict[str, Heatmap]:
        """By key: ``a``, and when two runs are compared ``b`` and ``difference``."""
        raw = self.frame.evaluate(
            """() => {
                const gd = document.getElementById("heatmap-plot");
                // Plotly takes in nothing but the axes of a heatmap without cells.
                return (gd._fullData ?? []).map((full, n) => [gd.data[n], full]).map(([given, full]) => ({
                    key: given.meta.pane, layers: given.meta.layers, log: given.meta.log,
                    title: given.colorbar.title.text, z: Array.from(full.z ?? given.z, (row) => Array.from(row)),
                    edges: Array.from(full.x ?? given.x), colours: full.colorscale ?? given.colorscale,
                    range: gd._fullLayout[full.xaxis.replace("x", "xaxis")].range,
                    low: full.zmin ?? given.zmin, high: full.zmax ?? given.zmax,
                }));
            }"""
        )
        return {one.pop("key"): _heatmap(one) for one in raw}

    def heatmap(self) -> Heatmap:
        """That of the run, or of the first of two."""
        return self.heatmaps()["a"]

    def curves(self) -> dict[str, Curve]:
        """Lines of the opened layer, by their key: ``raw-a``, ``smooth-a``, ``band-a``, ``predicted-a``, ``rate-a``."""
        raw = self.frame.evaluate(
            """() => (document.getElementById("detail-plot")._fullData ?? []).map((full) => ({
                key: full.meta, x: Array.from(full.x), y: Array.from(full.y), name: full.name, axis: full.yaxis,
                colour: full.fill === "toself" ? full.fillcolor : full.line.color, dash: full.line.dash ?? "solid",
            }))"""
        )
        return {one.pop("key"): Curve(**{**one, "x": floats(one["x"]), "y": floats(one["y"])}) for one in raw}

    def layout(self, plot: str = "detail-plot") -> dict[str, Any]:
        """Plotly's layout of ``heatmap-plot`` or ``detail-plot``, as it was given."""
        return self.frame.evaluate("plot => JSON.parse(JSON.stringify(document.getElementById(plot).layout))", plot)

    def range(self, plot: str = "heatmap-plot") -> tuple[float, float]:
        """Of the x axis that is drawn."""
        low, high = self.frame.evaluate("plot => document.getElementById(plot)._fullLayout.xaxis.range", plot)
        return float(low), float(high)

    def place(self, row: int, x: float, plot: str = "heatmap-plot") -> tuple[float, float]:
        """Pixels within the heatmap of a run at which a row and an x value are drawn (of the first heatmap)."""
        left, top, low, high, width, height, count = self.frame.evaluate(
            """plot => {
                const { xaxis, yaxis, _size } = document.getElementById(plot)._fullLayout;
                const rows = Math.abs(yaxis.range[1] - yaxis.range[0]);
                return [_size.l, _size.t, ...xaxis.range, xaxis._length, yaxis._length, rows];
            }""",
            plot,
        )
        return left + (x - low) / (high - low) * width, top + (row + 0.5) / count * height

    def drag(self, start: float, end: float, row: int = 0, plot: str = "heatmap-plot") -> None:
        """Drag with the mouse over a plot from one x value to another."""
        self.frame.locator(f"#{plot}").scroll_into_view_if_needed()
        box = self.frame.locator(f"#{plot}").bounding_box()
        assert box is not None
        (from_x, y), (to_x, _) = self.place(row, start, plot), self.place(row, end, plot)
        mouse = self.page.mouse
        mouse.move(box["x"] + from_x, box["y"] + y)
        mouse.down()
        mouse.move(box["x"] + (from_x + to_x) / 2, box["y"] + y + 2, steps=4)
        mouse.move(box["x"] + to_x, box["y"] + y + 2, steps=4)
        mouse.up()

    def click(self, row: int, x: float) -> None:
        """Click a cell of the first heatmap."""
        left, top = self.place(row, x)
        self.frame.locator("#heatmap-plot").click(position={"x": left, "y": top}, force=True)

    def pixels(self, target: Locator | str) -> np.ndarray:
        """A screenshot, uint8 ``[height, width, 3]``."""
        locator = self.frame.locator(target) if isinstance(target, str) else target
        return image(locator.screenshot(animations="disabled"))

    def style(self, selector: str, name: str) -> str:
        """A computed style."""
        return self.frame.eval_on_selector(selector, "(element, name) => getComputedStyle(element)[name]", name)


def image(content: bytes) -> np.ndarray:
    """A PNG as uint8 ``[height, width, 3]``."""
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


def floats(values: Sequence[float | None]) -> np.ndarray:
    """Float64; null is NaN."""
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)


def quoted(text: str) -> str:
    """A string of a CSS selector."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def hex_colour(text: str) -> np.ndarray:
    """``#rrggbb`` or ``rgb(r, g, b)`` as float64 ``[3]``."""
    if text.startswith("#"):
        return np.array([int(text[at : at + 2], 16) for at in (1, 3, 5)], dtype=np.float64)
    return np.array([float(part) for part in re.findall(r"[\d.]+", text)[:3]])


def _heatmap(raw: dict[str, Any]) -> Heatmap:
    low, high = raw["range"]
    rows = [floats(row) for row in raw["z"]]
    return Heatmap(
        **{**raw, "z": np.array(rows), "edges": floats(raw["edges"]), "range": (float(low), float(high))}
        | {"colours": [(at, colour) for at, colour in raw["colours"]]}
    )
