"""A tab of the browser that keeps what goes wrong in it."""

import re
from typing import Any

from playwright.sync_api import Browser, ConsoleMessage, Page, Response, expect

SECONDS = 60
"""In which a page must show what it is asked for; a busy machine takes its time."""

expect.set_options(timeout=1000 * SECONDS)


class Tab:
    """A page of the explorer, alone in its own context.

    Attributes:
        page: To be clicked.
        refused: Status and path of answers that were errors; a test that expects them clears the list.
    """

    def __init__(self, browser: Browser, url: str, *, width: int = 1280, dark: bool = False, **options: Any) -> None:
        self._context = browser.new_context(
            viewport={"width": width, "height": 860}, color_scheme="dark" if dark else "light", **options
        )
        self.page: Page = self._context.new_page()
        self.page.set_default_timeout(1000 * SECONDS)
        self.refused: list[tuple[int, str]] = []
        self._url = url
        self._said: list[str] = []
        self._foreign: list[str] = []
        self.page.on("console", self._hear)
        self.page.on("pageerror", lambda error: self._said.append(f"page error: {error}"))
        self.page.on("response", self._see)
        self.page.on("request", lambda request: self._note(request.url))

    def go(self, address: str) -> None:
        """Open the page behind a #."""
        self.page.goto(f"{self._url}/#/{address}")
        # The page before may still stand there otherwise.
        expect(self.page.locator("main")).to_have_attribute("data-address", f"#/{address}")
        expect(self.page.locator("h1")).to_be_visible()

    def settled(self) -> None:
        """Wait until nothing is loading any more."""
        expect(self.page.locator(".loading, [aria-busy]")).to_have_count(0)

    def drawn(self) -> None:
        """Wait until every tile on screen is drawn."""
        maps = self.page.locator("canvas.map")
        expect(maps.first).to_be_visible()
        for position in range(maps.count()):
            expect(maps.nth(position)).to_have_attribute("data-settled", "true")

    def text(self) -> str:
        """Return what can be read."""
        return re.sub(r"\s+", " ", self.page.locator("main").inner_text())

    def troubles(self) -> list[str]:
        """Return what went wrong: errors of scripts, refused requests, requests to anybody else."""
        return [*self._said, *(f"{status} {path}" for status, path in self.refused), *self._foreign]

    def close(self) -> None:
        self._context.close()

    def _hear(self, message: ConsoleMessage) -> None:
        # The browser's own line about an answer that is an error is kept as that answer.
        if message.type in ("error", "warning") and "Failed to load resource" not in message.text:
            self._said.append(f"{message.type}: {message.text}")

    def _see(self, response: Response) -> None:
        if response.status >= 400:
            self.refused.append((response.status, response.url.removeprefix(self._url)))

    def _note(self, url: str) -> None:
        if not url.startswith((f"{self._url}/", "blob:", "data:")):
            self._foreign.append(f"asked somebody else: {url}")


ACCESSIBLE = """() => {
  const visible = (node) => node.checkVisibility();
  const named = (node) => {
    const by = node.getAttribute("aria-labelledby");
    const label = node.labels?.length ? node.labels[0].textContent : "";
    const own = node.tagName === "INPUT" || node.tagName === "SELECT" ? "" : node.textContent;
    const picture = node.querySelector("img[alt]:not([alt=''])")?.alt;
    const other = by ? document.getElementById(by)?.textContent : node.getAttribute("aria-label");
    return (other || label || own || picture || "").trim();
  };
  const found = [];
  const controls = "a[href], button, input, select, summary, [tabindex='0'], [role='progressbar'], [role='tabpanel']";
  for (const node of document.querySelectorAll(controls)) {
    if (visible(node) && !named(node)) found.push(`no name: ${node.outerHTML.slice(0, 120)}`);
  }
  for (const image of document.querySelectorAll("img:not([alt])")) found.push(`no alt: ${image.outerHTML.slice(0, 120)}`);
  const ids = [...document.querySelectorAll("[id]")].map((node) => node.id);
  for (const id of ids) if (ids.indexOf(id) !== ids.lastIndexOf(id)) found.push(`twice: #${id}`);
  for (const node of document.querySelectorAll("[aria-describedby], [aria-labelledby], [aria-controls]")) {
    for (const name of ["aria-describedby", "aria-labelledby", "aria-controls"]) {
      const to = node.getAttribute(name);
      if (to && !document.getElementById(to)) found.push(`${name} leads nowhere: ${to}`);
    }
  }
  if (document.querySelectorAll("h1").length !== 1) found.push("a page has one h1");
  if (document.querySelectorAll("[tabindex]:not([tabindex='0'], [tabindex='-1'])").length) found.push("forced tab order");
  if (document.documentElement.scrollWidth > innerWidth) found.push(`scrolls sideways: ${document.documentElement.scrollWidth}`);
  return found;
}"""
"""What a person who cannot see the page, or has a narrow screen, would stumble over."""

CONTRAST = """() => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgba = (colour) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const light = ([r, g, b]) => {
    const part = (one) => (one / 255 <= 0.04045 ? one / 255 / 12.92 : ((one / 255 + 0.055) / 1.055) ** 2.4);
    return 0.2126 * part(r) + 0.7152 * part(g) + 0.0722 * part(b);
  };
  const ground = (node) => {
    for (let at = node; at; at = at.parentElement) {
      const colour = rgba(getComputedStyle(at).backgroundColor);
      if (colour[3] > 200) return colour;
    }
    return rgba("white");
  };
  const found = new Set();
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || !node.checkVisibility() || node.closest(":disabled, .off, .skip, .unseen, noscript")) continue;
    const style = getComputedStyle(node);
    const ink = light(rgba(node.closest("svg") ? style.fill : style.color));
    const page = light(ground(node));
    const ratio = (Math.max(ink, page) + 0.05) / (Math.min(ink, page) + 0.05);
    if (ratio < 4.5) found.add(`${ratio.toFixed(2)} ${node.className} ${walker.currentNode.data.trim().slice(0, 40)}`);
  }
  return [...found];
}"""
"""Texts whose contrast against their ground is below 4.5."""
