// The frame of all pages: where we are, the theme, the token, and one view at a time.

import { keepToken, token } from "./api.js";
import { el, put } from "./dom.js";
import { busy, problem } from "./parts/states.js";
import { parsed, routed } from "./router.js";
import * as compare from "./views/compare.js";
import * as kernel from "./views/kernel.js";
import * as run from "./views/run.js";
import * as runs from "./views/runs.js";
import * as sample from "./views/sample.js";
import * as spectrum from "./views/spectrum.js";

const VIEWS = { compare, kernel, run, runs, sample, spectrum };
const content = document.getElementById("content");
const crumbs = document.getElementById("crumbs");
let leaving = null;
let opened = 0;

async function open() {
  leaving?.abort();
  leaving = new AbortController();
  const { signal } = leaving;
  const address = parsed(location.hash);
  const route = routed(address);
  put(content);
  content.dataset.address = location.hash;
  window.scrollTo(0, 0);
  const page = { content, signal, query: address.query, title, crumbs: (...parts) => showCrumbs(parts) };
  opened += 1;
  if (opened > 1) content.focus({ preventScroll: true });
  if (!route) {
    title("Not found");
    showCrumbs([]);
    put(content, notFound());
    return;
  }
  try {
    await busy(content, () => VIEWS[route.view].show(page, route));
  } catch (error) {
    if (signal.aborted || error.name === "AbortError") return;
    if (!error.kind) console.error(error);
    const ways = el("p", {}, el("a", { href: "#/" }, "See all runs"));
    put(content, el("h1", {}, "This page cannot be shown"), problem(error, open), ways);
  }
}

function notFound() {
  return [
    el("h1", {}, "There is no such page"),
    el("p", {}, "Its address does not name one. ", el("a", { href: "#/" }, "See all runs")),
  ];
}

function title(...parts) {
  document.title = [...parts, "ntkpipe"].join(" · ");
}

function showCrumbs(parts) {
  const items = [{ text: "Runs", href: "#/" }, ...parts].map(({ text, href }, position, all) =>
    el(
      "li",
      {},
      position + 1 < all.length
        ? el("a", { href, title: text }, text)
        : el("span", { "aria-current": "page", title: text }, text),
    ),
  );
  put(crumbs, el("ol", {}, items));
}

function showTheme() {
  const button = document.getElementById("theme");
  // The theme, and whose it is, were settled by theme.js before anything was drawn.
  const worn = document.documentElement.dataset;
  const say = () => put(button, worn.theme === "dark" ? "Light" : "Dark");
  const wear = (theme) => {
    worn.theme = theme;
    say();
    document.dispatchEvent(new CustomEvent("theme"));
  };
  button.setAttribute("aria-label", "Switch between the dark and the light theme");
  button.addEventListener("click", () => {
    worn.themeOf = "reader";
    wear(worn.theme === "dark" ? "light" : "dark");
    try {
      localStorage.setItem("ntkpipe-theme", worn.theme);
    } catch {
      // It is then forgotten with the tab.
    }
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", (dark) => {
    if (worn.themeOf === "system") wear(dark.matches ? "dark" : "light");
  });
  say();
}

function showToken() {
  const button = document.getElementById("forget");
  const say = () => {
    button.hidden = !token();
  };
  button.addEventListener("click", () => {
    keepToken("");
    open();
  });
  document.addEventListener("token", say);
  say();
}

// Following the skip link must not be taken for another page.
document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault();
  content.focus();
});
window.addEventListener("hashchange", open);
showTheme();
showToken();
open();
