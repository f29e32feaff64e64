"""Reading numbers off a map, to compare them with those of the run."""

import re

from playwright.sync_api import Locator, expect

from explorer.browsing import Tab

READ = """(live) => ({
  value: live.querySelector(".figure")?.textContent ?? "",
  ids: [...live.querySelectorAll(".line b")].map((line) => line.title),
})"""


def read_from(live: Locator) -> tuple[float, float | None, str, str]:
    """Return the value of the entry that is told, its error, and both ids."""
    told = live.evaluate(READ)
    value, _, error = told["value"].replace("\u2212", "-").partition(" ± ")
    row, column = told["ids"]
    return float(value.split(" ")[0]), float(error) if error else None, row, column


def read_at(tab: Tab, x: float, y: float) -> tuple[float, float | None, str, str]:
    """Point at a place of the first map; return what is told of the entry there."""
    canvas = tab.page.locator("canvas.map").first
    tab.drawn()
    canvas.hover(position={"x": x, "y": y})
    expect(canvas).to_have_attribute("data-entry", re.compile(r"\d+,\d+"))
    live = tab.page.locator(".live").first
    expect(live).to_have_attribute("data-entry", canvas.get_attribute("data-entry") or "")
    return read_from(live)


def close(shown: float, exact: float) -> bool:
    """Return whether a number with four digits is another one."""
    return abs(shown - exact) <= 6e-4 * abs(exact) + 1e-12
