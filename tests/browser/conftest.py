"""Fixtures of the tests that look at the Sphere tab: one logdir, one browser, a server for each loader."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from browser_runs import World, make_world
from browser_tab import Tab
from dashboard_world import serving

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync", "--no-first-run"]
SIZE = {"width": 1400, "height": 1000}
MISSING = pytest.mark.skip(reason="no Chromium on this machine (Debian: apt-get install chromium)")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All tests of this folder need the browser."""
    for item in items:
        if item.path.parent.name == "browser":
            item.add_marker(pytest.mark.browser)
            if CHROMIUM is None:
                item.add_marker(MISSING)


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """The runs that all tests look at; nothing is written to them later."""
    return make_world(tmp_path_factory.mktemp("logdir"))


@pytest.fixture(scope="package", params=[True, False], ids=["fast", "python"])
def server(world: World, request: pytest.FixtureRequest) -> Iterator[str]:
    """Address of a TensorBoard server over the world, once for each loader."""
    with serving(world.logdir, request.param) as address:
        yield address


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    """Ends with the tests of this folder: others start a browser of their own, and two cannot be had at a time."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture(scope="package")
def shared_page(browser: Browser, server: str) -> Iterator[Page]:
    """TensorBoard's front page, kept open from test to test."""
    context = browser.new_context(viewport=SIZE)  # type: ignore[arg-type]
    yield context.new_page()
    context.close()


@pytest.fixture(scope="package")
def shared_tab(shared_page: Page, server: str) -> Tab:
    return Tab(shared_page, server)


@pytest.fixture
def tab(shared_tab: Tab) -> Iterator[Tab]:
    """The tab; ``tab.show(run="first")`` opens it anew. Whatever the browser complains of fails the test."""
    shared_tab.complaints()
    yield shared_tab
    assert not (complaints := shared_tab.complaints()), "\n".join(complaints)


@pytest.fixture
def dashboard(tab: Tab) -> Tab:
    """The tab, opened at the first run, without smoothing; it draws only what a person's doing asks for."""
    return tab.show(run="first", smooth=0, follow=0)


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A page of its own, for tests that would leave traces in the shared one; wrap it by ``Tab(page, server)``."""
    context = browser.new_context(viewport=SIZE)  # type: ignore[arg-type]
    yield context.new_page()
    context.close()


@pytest.fixture
def own_tab(page: Page, server: str) -> Iterator[Tab]:
    """A tab of its own."""
    own = Tab(page, server)
    yield own
    assert not (complaints := own.complaints()), "\n".join(complaints)
