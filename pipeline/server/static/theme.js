// Runs before the page is drawn, so that a chosen theme does not flash; everything else is a module.
"use strict";
(function () {
  let chosen = null;
  try {
    chosen = localStorage.getItem("ntkpipe-theme");
  } catch {
    // A browser may refuse storage; the system's theme is used then.
  }
  if (chosen === "dark" || chosen === "light") document.documentElement.dataset.theme = chosen;
})();
