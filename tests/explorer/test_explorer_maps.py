"""The heat map of a kernel: moved, magnified, pointed at and read, at any size."""

import io
import re

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import expect

import ntkpipe
from explorer.browsing import ACCESSIBLE, CONTRAST
from explorer.material import NUM_TRAIN
from explorer.reading import close, read_at

pytestmark = pytest.mark.slow

TIMES = "\u00d7"


@pytest.fixture(scope="module")
def run(root):
    return ntkpipe.open_run(root / "stripes")


def test_an_entry_under_the_pointer_is_the_one_of_the_run_in_every_order(open_tab, run):
    tab = open_tab("runs/stripes/kernels/trntk")
    page = tab.page
    for order in ("stored", "class", "cluster"):
        page.get_by_label("Order").select_option(order)
        expect(page).to_have_url(re.compile(f"order={order}"))
        for x, y in ((300, 150), (500, 420)):
            value, error, row, column = read_at(tab, x, y)
            assert close(value, run.kernel("trntk")[row, column])
            exact = run.standard_errors("trntk")[row, column]
            assert error is None or abs(error - exact) <= 0.06 * exact + 1e-12


def test_the_colour_of_an_entry_is_that_of_its_value(open_tab, run):
    tab = open_tab("runs/stripes/kernels/ck?low=0&high=4&palette=grey&order=class")
    page = tab.page
    tab.drawn()
    box = page.locator("canvas.map").bounding_box()
    assert box is not None
    labels = run.labels("train")
    order = np.argsort(labels, kind="stable")
    scale = min((box["width"] - 66) / NUM_TRAIN, (box["height"] - 22) / NUM_TRAIN)
    left, top = 66 + (box["width"] - 66 - scale * NUM_TRAIN) / 2, 22 + (box["height"] - 22 - scale * NUM_TRAIN) / 2
    kernel = run.kernel("ck")[:, :][np.ix_(order, order)]
    picture = Image.open(io.BytesIO(page.locator("canvas.map").screenshot())).convert("RGB")
    shown = []
    for row, column in ((0, 0), (3, 40), (20, 7), (47, 46)):
        colour = picture.getpixel((round(left + (column + 0.5) * scale), round(top + (row + 0.5) * scale)))
        assert max(colour) - min(colour) <= 1
        shown.append((kernel[row, column], colour[0]))
    shown.sort()
    assert [grey for _, grey in shown] == sorted(grey for _, grey in shown)
    assert len({grey for _, grey in shown}) > 1


def test_the_map_is_moved_magnified_and_read_by_keyboard_alone(open_tab, run):
    tab = open_tab("runs/stripes/kernels/trntk?order=class")
    page = tab.page
    tab.drawn()
    page.locator("canvas.map").focus()
    note = page.get_by_role("group", name="Magnification")
    before = note.inner_text()
    for key in ("+", "+", "+", "ArrowRight", "ArrowDown", "Shift+ArrowLeft"):
        page.keyboard.press(key)
    expect(note).not_to_have_text(before)
    spoken = page.locator("[aria-live=polite].unseen")
    expect(spoken).to_contain_text(re.compile(r"train-\d+, label \d and .*: .*\."))
    page.keyboard.press("Enter")
    chosen = page.locator(".chosen a").first
    expect(chosen).to_be_focused()
    expect(chosen.locator("img")).to_be_visible()
    title = chosen.locator("b").inner_text()
    page.keyboard.press("Enter")
    expect(page.locator("h1")).to_have_text(title)
    expect(page.get_by_label("Kernel", exact=True)).to_have_value("trntk")
    page.go_back()
    tab.drawn()
    page.locator("canvas.map").focus()
    page.keyboard.press("0")
    assert page.evaluate(ACCESSIBLE) == []


def test_the_map_is_dragged_wheeled_and_clicked(open_tab):
    tab = open_tab("runs/stripes/kernels/ck")
    page, canvas = tab.page, tab.page.locator("canvas.map")
    tab.drawn()
    canvas.hover(position={"x": 450, "y": 300})
    for _ in range(6):
        page.mouse.wheel(0, -240)
    expect(page.get_by_role("group", name="Magnification")).to_contain_text("pixels an entry")
    before = read_at(tab, 450, 300)
    page.mouse.down()
    page.mouse.move(700, 300, steps=4)
    page.mouse.up()
    assert read_at(tab, 440, 300) != before
    canvas.click(position={"x": 450, "y": 300})
    expect(page.locator(".chosen a")).to_have_count(2)
    page.get_by_role("button", name="Forget the chosen entry").click()
    expect(page.locator(".chosen a")).to_have_count(0)
    page.get_by_role("button", name="See all").click()
    tab.drawn()


def test_a_range_of_colours_that_is_none_is_told_of_beside_its_fields(open_tab):
    tab = open_tab("runs/stripes/kernels/ck")
    page = tab.page
    tab.drawn()
    low, high = (page.get_by_role("spinbutton", name=name, exact=True) for name in ("From", "To"))
    wrong, bar = page.get_by_role("alert"), page.get_by_role("img", name="Colours from")
    own = bar.get_attribute("aria-label")
    high.fill("-7")
    page.keyboard.press("Enter")
    expect(wrong).to_contain_text(f"To (-7) must be above From, which is {low.get_attribute('placeholder')} unless")
    for field in (low, high):
        expect(field).to_have_attribute("aria-invalid", "true")
        expect(field).to_have_accessible_description(wrong.inner_text())
    expect(high).to_be_focused()
    low.fill("-7")
    page.keyboard.press("Enter")
    expect(wrong).to_have_text("From (-7) must be below To (-7). Until then the map has its own range.")
    expect(bar).to_have_attribute("aria-label", own)
    tab.drawn()
    assert page.evaluate(ACCESSIBLE) == []
    assert page.evaluate(CONTRAST) == []
    page.reload()
    expect(wrong).to_contain_text("From (-7) must be below To (-7).")
    tab.drawn()
    low.fill("-9")
    page.keyboard.press("Enter")
    expect(wrong).to_have_count(0)
    expect(low).not_to_have_attribute("aria-invalid", "true")
    expect(bar).to_have_accessible_name("Colours from \u22129.000 to \u22127.000")
    tab.drawn()


def test_layers_transforms_palettes_and_pairs_can_be_chosen(open_tab, run):
    tab = open_tab("runs/stripes/kernels/pntk")
    page = tab.page
    tab.drawn()
    page.get_by_text(re.compile(r"all \d+ layers")).click()
    layer = page.get_by_role("group", name="Sum of layers").get_by_role("checkbox").first
    name = layer.get_attribute("value")
    layer.check()
    expect(page).to_have_url(re.compile("layers="))
    tab.drawn()
    value, _, row, column = read_at(tab, 450, 300)
    assert close(value, run.kernel("pntk", component=name)[row, column])
    page.get_by_label("Cosine").check()
    tab.drawn()
    page.get_by_label("Cosine").uncheck()
    page.get_by_label("Matrix").select_option("test,train")
    expect(page.get_by_text(f"12 {TIMES} {NUM_TRAIN}", exact=True)).to_be_visible()
    page.get_by_label("Palette").select_option("balance")
    tab.drawn()
    expect(page).to_have_url(re.compile("palette=balance"))


def test_sixty_thousand_samples_are_drawn_and_read_entry_by_entry_where_there_are_any(open_tab, root):
    many = ntkpipe.open_run(root / "many")
    tab = open_tab("runs/many/kernels/pntk")
    page = tab.page
    tab.drawn()
    expect(page.get_by_text(f"60,000 {TIMES} 60,000")).to_be_visible()
    expect(page.get_by_text("not committed yet. The picture follows")).to_be_visible()
    canvas = page.locator("canvas.map")
    box = canvas.bounding_box()
    canvas.hover(position={"x": box["width"] * 0.6, "y": box["height"] * 0.8})
    expect(page.locator(".live .figure")).to_have_text("not committed yet")
    tab.go("runs/many/kernels/pntk?at=500,1500,20")
    page.reload()
    expect(page.get_by_role("group", name="Magnification")).to_contain_text("20 pixels an entry")
    for x, y in ((200, 200), (400, 300)):
        value, _, row, column = read_at(tab, x, y)
        assert abs(int(row) - 500) < 100
        assert close(value, many.kernel("pntk")[row, column])


def test_a_picture_that_cannot_be_made_says_why(open_tab):
    tab = open_tab("runs/damaged/kernels/ck")
    expect(tab.page.get_by_role("alert")).to_contain_text("ntkpipe verify")
    assert {status for status, _ in tab.refused} == {500}
    tab.refused.clear()
