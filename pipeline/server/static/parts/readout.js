// What is known of an entry of a matrix: both samples, the value, and how sure it is.

import { el } from "../dom.js";
import { count, short, value } from "../format.js";
import { labelText } from "../model.js";
import { link } from "../router.js";
import { samplePicture } from "./picture.js";
import { facts } from "./table.js";

/** The value with its standard error. */
function valueText(told) {
  if (told.value === null || told.value === undefined) return "not committed yet";
  if (told.error === null || told.error === undefined) return value(told.value);
  return told.error === 0 ? `${value(told.value)} (exact)` : `${value(told.value)} ± ${value(told.error, 2)}`;
}

/** One sentence, for those who listen. */
export function sentence(told) {
  if (told.problem) return told.problem;
  const one = (sample) => `${sample.id}${hasLabel(sample) ? `, label ${labelText(sample.label)}` : ""}`;
  return `${one(told.row)} and ${one(told.column)}: ${valueText(told)}${told.of > 1 ? `, mean of ${count(told.of)} entries` : ""}.`;
}

/** The lines under a map. */
export function lines(told) {
  if (told.problem) return el("p", { class: "bad small" }, told.problem);
  return [
    el("p", { class: "figure" }, valueText(told)),
    sampleLine("Row", told.row),
    sampleLine("Column", told.column),
    el("p", { class: "soft small" }, behind(told)),
  ];
}

/** What stands under a map until something is pointed at: how to read an entry, and between which numbers they lie. */
export function idle({ quantiles }, both) {
  const between = (low, high) => `${value(quantiles[low])} to ${value(quantiles[high])}`;
  const where = both ? "either map, or go to one" : "the map, or go to it";
  return [
    el(
      "p",
      { class: "soft small" },
      `Point at ${where} with the Tab key: the entry there is read here${both ? ", for both kernels" : ""}.`,
    ),
    "0.0" in quantiles
      ? facts([
          ["All that is drawn", between("0.0", "1.0")],
          ["The middle half", between("0.25", "0.75")],
        ])
      : null,
  ];
}

/** An entry that was chosen: pictures of both samples, and the way to their pages. */
export function chosenEntry(told, { run, rows, columns, kernel, signal }) {
  const card = (sample, split, title) =>
    el(
      "a",
      { class: "samplecard", href: link(["runs", run, "samples", split, String(sample.position)], { kernel }) },
      samplePicture(run, split, sample.position, sample.id, signal),
      el(
        "span",
        {},
        el("b", {}, short(sample.id, 24)),
        el(
          "span",
          { class: "soft small" },
          `${title} · ${split} ${count(sample.position)}${hasLabel(sample) ? ` · label ${labelText(sample.label)}` : ""}`,
        ),
      ),
    );
  return [
    el("p", { class: "figure" }, valueText(told)),
    card(told.row, rows, "row"),
    card(told.column, columns, "column"),
    told.of > 1 ? el("p", { class: "soft small" }, `Mean of ${count(told.of)} entries; magnify to see each.`) : null,
  ];
}

function sampleLine(title, sample) {
  return el(
    "p",
    { class: "line" },
    el("span", { class: "soft" }, title),
    el("b", { title: sample.id }, short(sample.id, 26)),
    el(
      "span",
      { class: "soft" },
      hasLabel(sample) ? `label ${labelText(sample.label)}` : `position ${count(sample.position)}`,
    ),
  );
}

/** What a pixel stands for, in a sentence. */
function behind(told) {
  if (told.of <= 1) return "One entry.";
  if (told.value === null) return `None of the ${count(told.of)} entries of this pixel is committed.`;
  return `A pixel here is the mean of ${count(told.of)} entries; the samples are those under the pointer.`;
}

function hasLabel(sample) {
  return sample.label !== null && sample.label !== undefined;
}
