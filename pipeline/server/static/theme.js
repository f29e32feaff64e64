// Runs before the page is drawn, so that no other theme flashes; everything else is a module.
"use strict";
(function () {
  let chosen = null;
  try {
    chosen = localStorage.getItem("ntkpipe-theme");
  } catch {
    // A browser may refuse storage; the system's theme is used then.
  }
  const known = chosen === "dark" || chosen === "light";
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const root = document.documentElement;
  root.dataset.theme = known ? chosen : dark.matches ? "dark" : "light";
  root.dataset.themeOf = known ? "reader" : "system";
})();
