// Tables: numbers to the right, texts to the left, a caption that may be for screen readers only.

import { el } from "../dom.js";

/**
 * Build a table.
 * Columns: {title, cell: row -> node or text, kind: "number" | "text" | "long"}; the first one heads its row.
 */
export function table(columns, rows, { caption, hidden = false } = {}) {
  const head = columns.map((column) => el("th", { scope: "col", class: column.kind ?? "text" }, column.title));
  const body = rows.map((row) =>
    el(
      "tr",
      {},
      columns.map((column, position) =>
        el(position ? "td" : "th", { scope: position ? null : "row", class: column.kind ?? "text" }, column.cell(row)),
      ),
    ),
  );
  const title = caption ? el("caption", { class: hidden ? "unseen" : null }, caption) : null;
  return scrolling(
    el("table", {}, title, el("thead", {}, el("tr", {}, head)), el("tbody", {}, body)),
    caption ?? "table",
  );
}

/** Put something wide into a box that scrolls; one that does must be reachable by keyboard. */
function scrolling(node, name) {
  const box = el("div", { class: "wide" }, node);
  new ResizeObserver(() => {
    const wider = box.scrollWidth > box.clientWidth + 1;
    if (wider === box.hasAttribute("tabindex")) return;
    for (const [key, value] of [
      ["tabindex", "0"],
      ["role", "region"],
      ["aria-label", name],
    ]) {
      if (wider) box.setAttribute(key, value);
      else box.removeAttribute(key);
    }
  }).observe(box);
  return box;
}

/** A list of names and values. */
export function facts(pairs) {
  return el(
    "dl",
    { class: "facts" },
    pairs.filter(Boolean).map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value))),
  );
}
