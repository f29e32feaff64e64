"""Two kernels side by side: which ones, where they come from, and what is read from both."""

import re

import numpy as np
import pytest
from playwright.sync_api import expect

import ntkpipe
from explorer.browsing import ACCESSIBLE, CONTRAST
from explorer.reading import close, read_at, read_from

pytestmark = pytest.mark.slow

LISTED = re.compile(r"/v1/runs\?")


@pytest.fixture(scope="module")
def run(root):
    return ntkpipe.open_run(root / "stripes")


def listings(tab):
    """Return a list that gets the questions for a list of runs."""
    asked = []
    tab.page.on("request", lambda request: asked.append(request.url) if LISTED.search(request.url) else None)
    return asked


def options(control):
    return control.locator("option")


def test_two_kernels_are_compared_entry_by_entry(open_tab, run):
    tab = open_tab("compare?run=stripes&one=trntk&other=ck&order=class")
    page = tab.page
    tab.drawn()
    tab.settled()
    one, other = (run.kernel(name)[:, :].astype(float) for name in ("trntk", "ck"))
    correlation = np.corrcoef(one.ravel(), other.ravel())[0, 1]
    shown = page.locator(".tile").filter(has_text="Correlation").locator("b").inner_text().replace("\u2212", "-")
    assert abs(float(shown) - correlation) < 1e-3
    page.locator("canvas.map").first.hover(position={"x": 300, "y": 200})
    page.mouse.wheel(0, -240)
    value, _, row, column = read_at(tab, 320, 220)
    assert close(value, run.kernel("trntk")[row, column])
    lives = page.locator(".live")
    expect(lives.nth(1)).to_have_attribute("data-entry", lives.nth(0).get_attribute("data-entry"))
    value, _, *ids = read_from(lives.nth(1))
    assert ids == [row, column]
    assert close(value, run.kernel("ck")[row, column])


def test_until_something_is_pointed_at_the_ranges_of_both_kernels_are_told_and_how_to_read_an_entry(open_tab, run):
    for dark in (False, True):
        tab = open_tab("compare?run=stripes&one=trntk&other=ck", dark=dark)
        tab.drawn()
        tab.settled()
        lives = tab.page.locator(".live")
        expect(lives).to_have_count(2)
        for live, name in zip(lives.all(), ("trntk", "ck"), strict=True):
            expect(live).to_contain_text("Point at either map, or go to one with the Tab key")
            kernel = run.kernel(name)[:, :]
            shown = live.locator("dd").first.inner_text().replace("\u2212", "-").split(" to ")
            for number, exact in zip(shown, (kernel.min(), kernel.max()), strict=True):
                assert close(float(number), exact)
        assert tab.page.evaluate(ACCESSIBLE) == []
        assert tab.page.evaluate(CONTRAST) == []


def test_whoever_comes_to_a_map_by_keyboard_reads_the_entry_in_its_middle_of_both_kernels(open_tab, run):
    tab = open_tab("compare?run=stripes&one=trntk&other=ck")
    page = tab.page
    tab.drawn()
    tab.settled()
    page.get_by_label("the same range").focus()
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    maps, lives = page.locator("canvas.map"), page.locator(".live")
    expect(maps.first).to_be_focused()
    spoken = page.locator("[aria-live=polite].unseen")
    expect(spoken).to_have_text(re.compile(r"^trntk: .*: .*\. ck: .*: .*\.$"))
    middle = lives.first.get_attribute("data-entry")
    expect(lives.nth(1)).to_have_attribute("data-entry", middle)
    for live, name in zip(lives.all(), ("trntk", "ck"), strict=True):
        value, _, row, column = read_from(live)
        assert close(value, run.kernel(name)[row, column])
    page.keyboard.press("Shift+ArrowRight")
    for live in lives.all():
        expect(live).not_to_have_attribute("data-entry", middle)
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    expect(maps.nth(1)).to_be_focused()
    expect(lives.first).to_have_attribute("data-entry", middle)
    expect(maps.first).to_have_attribute("data-entry", middle)


@pytest.mark.parametrize(
    ("query", "told", "status"),
    [
        ("run=nothing&one=trntk", "no run 'nothing'", [404]),
        ("run=stripes&one=trntk&with=nothing", "no run 'nothing'", [404]),
        ("run=stripes&one=unknown", "Run stripes has no kernel unknown.", []),
        ("run=stripes&one=ck&other=unknown", "Run stripes has no kernel unknown.", []),
        ("run=values&one=full@late", "Kernel full@late of run values cannot be compared", []),
        ("run=kept", "Run kept has no kernel that can be compared", []),
    ],
)
def test_what_is_not_there_or_cannot_be_compared_is_said_and_nothing_else_is_shown(open_tab, query, told, status):
    tab = open_tab("no/such/page")
    asked = listings(tab)
    tab.go(f"compare?{query}")
    expect(tab.page.get_by_role("alert")).to_contain_text(told)
    tab.settled()
    expect(tab.page).to_have_url(re.compile(re.escape(f"#/compare?{query}") + "$"))
    expect(tab.page.locator("canvas.map")).to_have_count(0)
    assert asked == []
    assert [status for status, _ in tab.refused] == status
    tab.refused.clear()


def test_named_runs_are_opened_without_a_list_and_others_are_listed_when_they_are_asked_for(open_tab):
    tab = open_tab("no/such/page")
    asked = listings(tab)
    tab.go("compare?run=stripes&one=pntk&with=damaged&other=trntk")
    page = tab.page
    tab.drawn()
    tab.settled()
    first, second = page.get_by_label("First run"), page.get_by_label("Second run")
    expect(first).to_have_value("stripes")
    expect(options(second)).to_have_text(["stripes", "damaged"])
    assert asked == []
    more = page.get_by_role("button", name="Show more runs")
    page.route(LISTED, lambda route: route.abort())
    more.focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("The service does not answer")
    expect(more).to_be_focused()
    page.unroute(LISTED)
    page.keyboard.press("Enter")
    expect(more).to_have_count(0)
    expect(first).to_be_focused()
    expect(page.get_by_role("alert")).to_have_count(0)
    expect(options(second)).to_have_text(["stripes", "damaged", "half", "kept", "many", "values"])
    address = page.url
    second.select_option("kept")
    expect(page.get_by_role("alert")).to_contain_text("Run kept has no kernel that can be compared")
    expect(second).to_have_value("damaged")
    expect(options(second)).to_have_text(["stripes", "damaged", "half", "many", "values"])
    assert page.url == address
    page.get_by_label("First kernel").select_option("ck")
    expect(page.get_by_role("alert")).to_have_count(0)
    second.select_option("values")
    kernels = ["signgd_asym@early", "signgd_asym@late"]
    expect(options(page.get_by_label("Second kernel"))).to_have_text(kernels)
    expect(page.get_by_role("alert")).to_have_count(0)
    expect(page).to_have_url(re.compile("with=values&other=signgd_asym%40early"))
    tab.drawn()
    tab.settled()


def test_where_no_run_is_named_the_first_one_that_has_kernels_to_compare_is_shown(open_tab):
    tab = open_tab("no/such/page")
    pages = {"": "kept", "kept": "stripes", "stripes": None}

    def one_by_one(route):
        """Answer as if a page held one run."""
        after = re.search(r"after=(\w*)", route.request.url)
        name = pages[after[1] if after else ""]
        runs = [one for one in route.fetch().json()["runs"] if one["run"] == name]
        route.fulfill(json={"runs": runs, "next": name if pages.get(name) else None})

    tab.page.route(LISTED, one_by_one)
    tab.go("compare")
    tab.drawn()
    expect(tab.page.get_by_label("First kernel")).to_have_value("trntk")
    expect(tab.page.get_by_label("Second kernel")).to_have_value("pntk")
    expect(tab.page).to_have_url(re.compile("run=stripes&one=trntk&with=stripes&other=pntk"))
    # All are listed, and no other one has kernels to compare.
    expect(tab.page.get_by_label("First run")).to_have_count(0)
    tab.settled()
