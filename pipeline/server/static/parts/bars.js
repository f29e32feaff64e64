// Bars beside their numbers, as a table that a screen reader can read.

import { el } from "../dom.js";
import { value } from "../format.js";

/**
 * Bars around zero.
 * Rows: {name, values: [{value, tone}], mark}; tone is "good", "bad" or a number of a colour; `mark` sets a row off.
 */
export function bars(rows, { caption, head, columns }) {
  const all = rows.flatMap((row) => row.values.map((one) => one.value)).filter(Number.isFinite);
  const low = Math.min(0, ...all);
  const high = Math.max(0, ...all);
  const span = high - low || 1;
  const titles = [
    el("th", { scope: "col" }, head),
    ...columns.map((title) => el("th", { scope: "col", class: "number" }, title)),
    el("td", { class: "drawn", "aria-hidden": "true" }),
  ];
  const body = rows.map((row) =>
    el(
      "tr",
      { class: row.mark ? "marked" : null },
      el("th", { scope: "row" }, row.name, row.mark ? el("span", { class: "mark" }, row.mark) : null),
      row.values.map((one) => el("td", { class: "number" }, value(one.value, 3))),
      el("td", { class: "drawn", "aria-hidden": "true" }, track(row.values, low, span)),
    ),
  );
  return el(
    "table",
    { class: "bars" },
    el("caption", { class: "unseen" }, caption),
    el("thead", {}, el("tr", {}, titles)),
    el("tbody", {}, body),
  );
}

function track(values, low, span) {
  const zero = (-100 * low) / span;
  const marks = values
    .filter((one) => Number.isFinite(one.value))
    .map((one) => {
      const length = (100 * Math.abs(one.value)) / span;
      return el("i", {
        class: `tone-${one.tone ?? 0}`,
        css: { left: `${one.value < 0 ? zero - length : zero}%`, width: `${length}%` },
      });
    });
  return el("span", { class: "track" }, el("b", { css: { left: `${zero}%` } }), marks);
}
