"""Every page of the explorer: opened, clicked, read by keyboard, in both themes, with whatever runs contain."""

import re
import shutil
from threading import Thread

import pytest
from playwright.sync_api import expect
from serving import serving

import ntkpipe
from explorer.browsing import ACCESSIBLE, CONTRAST
from explorer.conftest import TOKEN
from explorer.material import HOSTILE, NUM_TRAIN, config, interrupted
from ntkpipe.storage.ledger import Ledger
from ntkpipe.storage.stores.registry import open_store

pytestmark = pytest.mark.slow

PAGES = [
    "",
    "runs/stripes",
    "runs/half",
    "runs/stripes/kernels/trntk?order=class",
    "runs/stripes/kernels/trntk/spectrum",
    "runs/stripes/samples/train/1",
    "runs/stripes/samples/test/0",
    "compare?run=stripes&one=trntk&other=ck",
    "runs/values",
    "runs/values/samples/test/0",
]


@pytest.mark.parametrize("address", PAGES)
def test_every_page_can_be_read_by_everybody(open_tab, address):
    for width, dark in ((1280, False), (380, True)):
        tab = open_tab(address, width=width, dark=dark)
        tab.settled()
        assert tab.page.evaluate(ACCESSIBLE) == []
        assert tab.page.evaluate(CONTRAST) == []
        assert tab.page.title().endswith("ntkpipe")


def test_runs_are_listed_searched_and_opened_and_one_that_cannot_be_read_says_so(open_tab):
    tab = open_tab()
    page, cards = tab.page, tab.page.locator(".card")
    expect(cards).to_have_count(7)
    unreadable = cards.filter(has_text="unreadable")
    expect(unreadable).to_contain_text(HOSTILE)
    expect(cards.filter(has_text="half").first).to_contain_text("interrupted")
    assert tab.page.locator("main img").count() == 0
    tab.page.get_by_label("Search the runs").fill("stri finished")
    expect(page.get_by_role("status").filter(has_text="match")).to_have_text("3 of 7 match.")
    expect(page.locator(".card:not([hidden])")).to_have_count(3)
    tab.page.get_by_role("link", name="stripes", exact=True).click()
    expect(tab.page.locator("h1")).to_contain_text("stripes")
    assert tab.page.title() == "stripes · ntkpipe"


def test_a_run_shows_what_it_is_what_happened_and_what_it_found(open_tab, root):
    tab = open_tab("runs/stripes")
    tab.settled()
    page, run = tab.page, ntkpipe.open_run(root / "stripes")
    record = run.solution_record("trntk-ridge")
    expect(page.locator("#solutions")).to_contain_text(f"{100 * record.losses['test']:.2f}")
    expect(page.locator("#faults")).to_contain_text("Nothing has failed")
    assert page.locator("#timeline svg rect").count() > 4
    expect(page.locator("#analyses img")).to_be_visible()
    page.get_by_role("tab", name="spectrum").focus()
    page.keyboard.press("ArrowRight")
    expect(page.get_by_role("tab", name="heatmap")).to_be_focused()
    page.get_by_role("tab", name=re.compile("kernel 9|kernel")).first.click()
    page.locator("#receipts").get_by_role("link").first.click()
    expect(page.locator("dialog pre")).to_contain_text("crc32c")
    page.get_by_role("button", name="Close").click()
    page.locator("#config summary").filter(has_text="resources").click()
    expect(page.locator("#config")).to_contain_text("executor: serial")


@pytest.fixture
def own_service(tmp_path):
    """A service of runs that a test makes for itself."""
    with serving(tmp_path, "--trust-code", "--no-access-log") as running:
        yield running


def test_what_a_run_has_not_made_yet_is_named_and_not_asked_for(open_tab, root, own_service, tmp_path):
    run = shutil.copytree(root / "stripes", tmp_path / "unfinished")
    Ledger(open_store(run)).revoke({("solve", "ck-ridge"), ("analyze", "spectrum")})
    tab = open_tab("runs/unfinished", url=own_service.url)
    tab.settled()
    page = tab.page
    expect(page.locator("#solutions tbody tr")).to_have_count(1)
    expect(page.locator("#solutions")).to_contain_text("ck-ridge: not solved yet.")
    expect(page.locator("#analyses").get_by_role("tab")).to_have_text(["heatmap"])
    expect(page.locator("#analyses img")).to_be_visible()
    expect(page.locator("#analyses")).to_contain_text("spectrum: not finished yet.")
    assert page.evaluate(ACCESSIBLE) == []


def test_a_run_that_is_running_is_followed_to_its_end(open_tab, own_service, tmp_path):
    interrupted(config(name="followed"), tmp_path / "followed", 1)
    tab = open_tab("runs/followed", url=own_service.url)
    expect(tab.page.locator("h1")).to_contain_text("interrupted")
    bar = tab.page.get_by_role("progressbar", name="Stage kernel")
    before = int(bar.get_attribute("aria-valuenow"))
    resumed = Thread(target=ntkpipe.resume, args=[tmp_path / "followed"])
    resumed.start()
    expect(tab.page.locator("h1")).to_contain_text("finished", timeout=180_000)
    resumed.join()
    assert int(bar.get_attribute("aria-valuenow")) > before
    expect(tab.page.locator("#solutions")).to_contain_text("converged")
    tab.settled()


def test_a_sample_is_shown_with_what_it_resembles_and_what_its_prediction_is_made_of(open_tab, root):
    run = ntkpipe.open_run(root / "stripes")
    tab = open_tab("runs/stripes/samples/test/0")
    tab.settled()
    page = tab.page
    expect(page.locator("blockquote")).to_have_text(f"Stripes of kind 0. {HOSTILE}")
    nearest = page.get_by_role("list", name="Nearest", exact=True).get_by_role("link")
    for shown, neighbor in zip(nearest.all(), run.neighbors("test-000", 8, kernel="trntk", split="test"), strict=True):
        assert neighbor.sample_id in (shown.get_attribute("title"), shown.inner_text())
        assert f"{neighbor.value:.4}"[:5] in shown.inner_text().replace("\u2212", "-")
    expect(nearest.first.locator("img")).to_be_visible()
    summary = run.attribution_summary("trntk-ridge", "test-000", "test", k=8)
    helpful = page.get_by_role("list", name="Most helpful").get_by_role("link")
    assert [one.get_attribute("title") for one in helpful.all()] == [one.sample_id for one in summary.helpful]
    page.get_by_label("Class").select_option("2")
    expect(nearest.first).to_contain_text("label 2")
    page.get_by_role("link", name="Next").click()
    expect(page.locator("h1")).to_have_text("test-001")
    page.get_by_label("Id or position of a sample").fill("test-007")
    page.keyboard.press("Enter")
    expect(page.locator("h1")).to_have_text("test-007")
    tab.settled()


def test_a_sample_of_real_targets_shows_them_beside_the_outputs_of_every_member(open_tab, root):
    run = ntkpipe.open_run(root / "values")
    tab = open_tab("runs/values/samples/test/0")
    tab.settled()
    page = tab.page
    page.get_by_role("tab", name="Network late").click()
    shown = page.get_by_role("tabpanel").locator("tbody tr").all_inner_texts()
    for text, output, label in zip(shown, run.outputs("test", "late", 0)[0], run.labels("test")[0], strict=True):
        assert f"label {label:.3g}" in text.replace("\u2212", "-")
        assert f"{output:.3f}"[:5] in text.replace("\u2212", "-")
    assert "class" not in page.locator("dl").first.inner_text()
    expect(page.get_by_label("Kernel", exact=True).locator("option")).to_have_text(
        ["signgd_asym@early", "signgd_asym@late"]
    )
    target = page.get_by_label("Target")
    expect(target).to_have_value("0")
    expect(page.get_by_text("The training samples have no classes.")).to_be_visible()
    target.focus()
    page.keyboard.press("ArrowDown")
    expect(page.get_by_text(re.compile("Prediction of target"))).to_contain_text("target 1")
    expect(target).to_be_focused()


def test_nothing_is_offered_that_a_kept_prediction_or_a_kernel_does_not_have(open_tab):
    tab = open_tab("runs/kept/kernels/ck")
    tab.drawn()
    assert tab.page.get_by_role("main").get_by_role("link").all_inner_texts() == []
    tab.go("runs/kept/kernels/ck/spectrum")
    expect(tab.page.locator(".empty")).to_contain_text("not stored between the training samples")
    tab.go("runs/kept/samples/train/0")
    expect(tab.page.locator("#near-title + div")).to_contain_text("No kernel between this split")
    tab.go("runs/kept/samples/new/0")
    expect(tab.page.get_by_role("list", name="Nearest", exact=True)).to_be_visible()
    tab.settled()
    tab.go("runs/values/kernels/signgd_asym@late")
    tab.drawn()
    assert tab.page.get_by_role("main").get_by_role("link").all_inner_texts() == ["Compare"]


def test_what_a_run_stores_is_shown_as_text_whatever_it_looks_like(open_tab):
    tab = open_tab("runs/stripes/samples/train/1")
    tab.settled()
    expect(tab.page.locator("h1")).to_have_text(HOSTILE)
    expect(tab.page.locator(".picture.large img")).to_be_visible()
    assert "owned" not in tab.page.title().replace(HOSTILE, "")
    assert tab.page.locator("img[onerror], script:not([src])").count() == 0
    tab.go("compare?run=stripes&one=%3Cb%3E")
    expect(tab.page.get_by_role("alert")).to_contain_text("Run stripes has no kernel <b>.")
    tab.go("compare?run=stripes&one=ck&order=%22%3E")
    tab.settled()
    expect(tab.page.get_by_role("alert")).to_have_count(2)
    assert [status for status, _ in tab.refused] == [422, 422]
    tab.refused.clear()


def test_spectra_of_several_kernels_are_drawn_switched_and_read(open_tab, root):
    tab = open_tab("runs/stripes/kernels/trntk/spectrum")
    page = tab.page
    tab.settled()
    spectrum = ntkpipe.open_run(root / "stripes").spectrum("ck", max_samples=NUM_TRAIN)
    lines = page.locator(".plot").first.locator("path.line")
    expect(lines).to_have_count(3)
    page.get_by_role("button", name="pntk").first.click()
    expect(lines).to_have_count(2)
    plot = page.locator(".plot").first
    plot.focus()
    page.keyboard.press("ArrowRight")
    expect(page.locator(".readout").first).to_contain_text("ck: ")
    first = page.locator("table tbody tr").first.inner_text().replace(",", "")
    assert f"{spectrum.eigenvalues[0]:.4g}"[:5] in first


def test_errors_say_what_happened_and_what_to_do(open_tab):
    tab = open_tab("runs/nothing")
    expect(tab.page.get_by_role("alert")).to_contain_text("no run")
    expect(tab.page.get_by_role("link", name="See all runs")).to_be_visible()
    tab.go("runs/damaged/kernels/ck/spectrum")
    expect(tab.page.get_by_role("alert").first).to_contain_text("ntkpipe verify")
    tab.go("runs/half/kernels/trntk/spectrum")
    expect(tab.page.get_by_role("alert").first).to_contain_text("has not got there yet")
    tab.go("no/such/page")
    expect(tab.page.locator("h1")).to_have_text("There is no such page")
    assert {status for status, _ in tab.refused} == {404, 409, 500}
    tab.refused.clear()


def test_a_service_that_has_ended_is_not_asked_again_and_again(open_tab, root):
    with serving(root, "--no-access-log") as ending:
        tab = open_tab("runs/stripes/kernels/ck", url=ending.url)
        tab.drawn()
        asked = []
        tab.page.on("request", lambda request: asked.append(request.url))
        ending.end()
        tab.page.get_by_role("spinbutton", name="From").fill("-7")
        tab.page.keyboard.press("Enter")
        expect(tab.page.get_by_role("alert")).to_contain_text("does not answer")
        tab.page.wait_for_timeout(500)
        assert 0 < len(asked) <= 4
        tab.page.get_by_role("button", name="Try again").click()
        expect(tab.page.get_by_role("alert")).to_contain_text("does not answer")


def test_a_token_is_asked_for_once_kept_in_the_tab_and_forgotten(open_tab, tmp_path):
    with serving(tmp_path, "--no-access-log", token=TOKEN) as guarded:
        tab = open_tab(url=guarded.url)
        page = tab.page
        expect(page.get_by_role("dialog")).to_be_visible()
        page.get_by_role("textbox", name="Token").fill("not-the-right-token-at-all")
        page.keyboard.press("Enter")
        expect(page.get_by_role("dialog")).to_contain_text("was not accepted")
        page.get_by_role("textbox", name="Token").fill(TOKEN)
        page.get_by_role("button", name="Open").click()
        expect(page.locator(".empty")).to_contain_text("There are no runs")
        assert TOKEN not in page.url
        assert page.evaluate("sessionStorage.length") == 1
        assert page.evaluate("localStorage.length") == 0
        tab.refused.clear()
        page.reload()
        expect(page.locator(".empty")).to_contain_text("There are no runs")
        assert tab.refused == []
        page.get_by_role("button", name="Forget token").click()
        expect(page.get_by_role("dialog")).to_be_visible()
        tab.refused.clear()


def test_the_theme_is_that_of_the_system_until_it_is_switched_and_is_then_kept(open_tab):
    tab = open_tab()
    page, ground = tab.page, tab.page.locator("body")
    light = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.emulate_media(color_scheme="dark")
    expect(ground).not_to_have_css("background-color", light)
    page.emulate_media(color_scheme="light")
    expect(ground).to_have_css("background-color", light)
    page.get_by_role("button", name="Switch between").click()
    expect(ground).not_to_have_css("background-color", light)
    page.reload()
    expect(ground).not_to_have_css("background-color", light)


def test_the_first_stop_of_the_keyboard_leads_past_the_header(open_tab):
    tab = open_tab()
    tab.page.keyboard.press("Tab")
    expect(tab.page.get_by_text("Skip to the content")).to_be_focused()
    tab.page.keyboard.press("Enter")
    expect(tab.page.locator("main")).to_be_focused()
