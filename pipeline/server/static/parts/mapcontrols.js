// The choices above a map: which matrix, in which order, in which colours.

import { el } from "../dom.js";
import { count } from "../format.js";
import { checks, choice, number, renew } from "./forms.js";

/** The id of what is said of a range that is none. */
const WRONG = "wrong-range";

export const ORDER_NAMES = { stored: "As stored", id: "By id", class: "By class", cluster: "By cluster" };

/** Fill a host. `changed` gets what makes another picture, `recoloured` what only makes other colours. */
export function mapControls(host, { geometry, shape, options, colours, overview, changed, recoloured }) {
  const pairs = geometry.pairs.map(([rows, columns]) => [`${rows},${columns}`, `${rows} × ${columns}`]);
  const orders = overview?.orders ?? [...new Set(["stored", options.order])];
  const ofPair = (text) => {
    const [rows, columns] = text.split(",");
    changed({ rows, columns });
  };
  const named = orders.map((order) => [order, ORDER_NAMES[order] ?? order]);
  const transforms = Object.entries({ cosine: "Cosine", centred: "Centred" });
  renew(
    host,
    pairs.length > 1 ? choice("Matrix", pairs, `${options.rows},${options.columns}`, ofPair) : null,
    choice("Order", named, options.order, (order) => changed({ order })),
    overview ? colourChoices(overview, colours, recoloured) : null,
    checks("Transform", transforms, options.transforms, (chosen) => changed({ transforms: chosen })),
    shape.groups.length ? layerChoice(shape.groups, options.layers, (layers) => changed({ layers })) : null,
  );
}

function colourChoices(overview, { palette, low, high }, recoloured) {
  const palettes = Object.keys(overview.palettes);
  const wrong = wrongRange(overview, { low, high });
  return [
    choice("Palette", palettes, palette ?? overview.palette, (chosen) => recoloured({ palette: chosen })),
    number("From", low, rounded(overview.low), (given) => recoloured({ low: given }), wrong && WRONG),
    number("To", high, rounded(overview.high), (given) => recoloured({ high: given }), wrong && WRONG),
    wrong ? el("p", { class: "bad small beside", id: WRONG, role: "alert" }, wrong) : null,
  ];
}

/** Why colours cannot go from one number to the other, null where they can. */
function wrongRange(overview, { low, high }) {
  const [from, to] = [low ?? overview.low, high ?? overview.high];
  if ((low === null && high === null) || from < to) return null;
  const found =
    high === null
      ? `From (${low}) must be below To, which is ${rounded(to)} unless you give another number.`
      : low === null
        ? `To (${high}) must be above From, which is ${rounded(from)} unless you give another number.`
        : `From (${low}) must be below To (${high}).`;
  return `${found} Until then the map has its own range.`;
}

/** The colours that can be drawn: those that were chosen, without a range that is none. */
export function drawable(overview, colours) {
  return wrongRange(overview, colours) ? { ...colours, low: null, high: null } : colours;
}

function layerChoice(layers, chosen, changed) {
  const all = layers.map((layer) => [layer, layer]);
  const said = chosen.length
    ? `${count(chosen.length)} of ${count(layers.length)} layers summed`
    : `all ${count(layers.length)} layers`;
  return el(
    "details",
    { class: "field layers", open: chosen.length > 0 },
    el("summary", {}, said),
    checks("Sum of layers", all, chosen, changed),
  );
}

function rounded(number) {
  return Number.isFinite(number) ? String(Number(number.toPrecision(3))) : "";
}
