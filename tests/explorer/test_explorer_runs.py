"""The list of runs while runs come, go and come back, and while the service does not answer."""

import shutil

import pytest
from playwright.sync_api import expect
from serving import serving

pytestmark = pytest.mark.slow

LISTED = "**/v1/runs?limit=100"
MORE = "**/v1/runs?limit=100&after=*"


@pytest.fixture
def changing(root, tmp_path):
    """Return a root of its own, and a function that puts a run there."""
    folder = tmp_path / "changing"
    folder.mkdir()
    return folder, lambda name: shutil.copytree(root / "stripes", folder / name)


def names(tab):
    return tab.page.locator(".card h2 a")


def test_runs_stand_where_the_listing_has_them_also_when_they_are_new_or_come_back(open_tab, changing, tmp_path):
    folder, make = changing
    for name in ("b", "d"):
        make(name)
    with serving(folder, "--no-access-log") as watched:
        tab = open_tab(url=watched.url)
        expect(names(tab)).to_have_text(["b", "d"])
        make("a")
        expect(names(tab)).to_have_text(["a", "b", "d"])
        make("c")
        expect(names(tab)).to_have_text(["a", "b", "c", "d"])
        (folder / "b").rename(tmp_path / "away")
        expect(names(tab)).to_have_text(["a", "c", "d"])
        (tmp_path / "away").rename(folder / "b")
        expect(names(tab)).to_have_text(["a", "b", "c", "d"])
        tab.page.get_by_label("Search the runs").fill("b")
        expect(tab.page.get_by_role("status").filter(has_text="match")).to_have_text("1 of 4 match.")
        for name in "abcd":
            shutil.rmtree(folder / name)
        expect(tab.page.locator(".empty")).to_contain_text("There are no runs")
        tab.settled()


def test_more_runs_that_cannot_be_had_are_told_of_and_can_be_asked_for_again(open_tab, changing):
    folder, make = changing
    for name in ("a", "b", "c"):
        make(name)

    def shortened(route):
        """Answer as if a page held two runs."""
        found = route.fetch().json()
        route.fulfill(json={"runs": found["runs"][:2], "next": found["runs"][1]["run"]})

    with serving(folder, "--no-access-log") as watched:
        tab = open_tab("no/such/page", url=watched.url)
        page = tab.page
        page.route(LISTED, shortened)
        page.route(MORE, lambda route: route.abort())
        tab.go("")
        expect(names(tab)).to_have_text(["a", "b"])
        more = page.get_by_role("button", name="Show more runs")
        more.focus()
        page.keyboard.press("Enter")
        expect(page.get_by_role("alert")).to_contain_text("The service does not answer")
        expect(names(tab)).to_have_text(["a", "b"])
        expect(more).to_be_focused()
        page.unroute(MORE)
        page.keyboard.press("Enter")
        expect(names(tab)).to_have_text(["a", "b", "c"])
        expect(page.get_by_role("alert")).to_have_count(0)
        expect(more).to_be_hidden()
