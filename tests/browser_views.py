"""What several tests of the Sphere tab share: a tab over a server of their own, and what it saves."""

from __future__ import annotations

import csv
import io
import urllib.parse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from playwright.sync_api import Browser, Download

from browser_tab import FRAME, PREFIX, READY, Tab

SIZE = {"width": 1400, "height": 1000}


@contextmanager
def opened(browser: Browser, address: str, **options: object) -> Iterator[Tab]:
    """A tab in a context of its own; what the browser complains of is an error.

    Args:
        browser: a running one.
        address: of a server.
        options: of the browser's context.
    """
    context = browser.new_context(viewport=SIZE, **options)  # type: ignore[arg-type]
    context.set_default_timeout(15_000)
    tab = Tab(context.new_page(), address)
    yield tab
    assert not (complaints := tab.complaints()), "\n".join(complaints)
    context.close()


def visit(tab: Tab, url: str, ready: str = READY) -> None:
    """Open a URL as it stands, and wait for the first drawing."""
    tab.page.goto(url)
    tab.until(lambda: tab.page.frame(url=FRAME), seconds=30)
    tab.frame.wait_for_function(ready)


def state_of(url: str) -> dict[str, str]:
    """The page's part of a URL."""
    query = urllib.parse.parse_qsl(urllib.parse.urlsplit(url).query, keep_blank_values=True)
    return {key.removeprefix(PREFIX): value for key, value in query if key.startswith(PREFIX)}


def foreign(url: str) -> tuple[list[str], str]:
    """What is not the page's, letter by letter: parts of the query, and the hash."""
    parts = urllib.parse.urlsplit(url)
    return [part for part in parts.query.split("&") if part and not part.startswith(PREFIX)], parts.fragment


def downloads(tab: Tab, testid: str, count: int = 1) -> list[tuple[str, bytes]]:
    """What a button saves: names and contents."""
    found: list[Download] = []

    def keep(one: Download) -> None:
        found.append(one)

    tab.page.on("download", keep)
    try:
        tab.get(testid).click()
        tab.until(lambda: len(found) >= count, seconds=30)
    finally:
        tab.page.remove_listener("download", keep)
    assert len(found) == count
    return [(one.suggested_filename, Path(one.path()).read_bytes()) for one in found]


def table(content: bytes) -> tuple[list[str], list[dict[str, str]]]:
    """A CSV file: its heading, and its lines."""
    reader = csv.DictReader(io.StringIO(content.decode(), newline=""), strict=True)
    lines = list(reader)
    assert reader.fieldnames is not None
    return list(reader.fieldnames), lines


def singles(lines: Sequence[dict[str, str]], name: str) -> np.ndarray:
    """A column as the float32 that were recorded; empty: unknown."""
    return np.array([np.nan if line[name] == "" else float(line[name]) for line in lines]).astype(np.float32)
