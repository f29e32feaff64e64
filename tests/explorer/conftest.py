"""A browser and a service for the tests of this folder."""

import shutil

import pytest
from playwright.sync_api import sync_playwright
from serving import serving

from explorer.browsing import Tab
from explorer.material import make_runs

TOKEN = "a-token-of-the-tests"


@pytest.fixture(scope="session")
def root(tmp_path_factory):
    """Runs of every kind."""
    folder = tmp_path_factory.mktemp("explored")
    make_runs(folder)
    return folder


@pytest.fixture(scope="package")
def service(root):
    with serving(root, "--trust-code", "--no-access-log") as running:
        yield running


@pytest.fixture(scope="package")
def browser():
    """Debian's Chromium; the driver is stopped with the folder, since its event loop would disturb other tests."""
    program = shutil.which("chromium")
    if program is None:
        pytest.fail("the explorer is tested in a real browser, and there is no `chromium` here. Try: make browser")
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])
        yield started
        started.close()


@pytest.fixture
def open_tab(browser, service):
    """Open pages; at the end nothing may have gone wrong in them but what a test expects."""
    tabs = []

    def opened(address="", *, url=service.url, **options):
        tab = Tab(browser, url, **options)
        tabs.append(tab)
        tab.go(address)
        return tab

    yield opened
    for tab in tabs:
        tab.close()
    for tab in tabs:
        assert tab.troubles() == []
