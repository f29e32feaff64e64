// The colours of a picture from low to high, with numbers and the place of the value that is pointed at.

import { el } from "../dom.js";
import { value } from "../format.js";
import { linearTicks, tickText } from "./axes.js";

/** Build it from the service's own colours. */
export function colourbar(colours, low, high) {
  const canvas = el("canvas", { width: colours.length, height: 1, "aria-hidden": "true" });
  const context = canvas.getContext("2d");
  colours.forEach((colour, position) => {
    context.fillStyle = colour;
    context.fillRect(position, 0, 1, 1);
  });
  const share = (one) => Math.max(0, Math.min(100, (100 * (one - low)) / (high - low || 1)));
  const ticks = linearTicks(low, high, 4).filter((one) => share(one) > 3 && share(one) < 97);
  const pointer = el("i", { class: "pointer", hidden: true });
  const node = el(
    "div",
    { class: "colourbar", role: "img", "aria-label": `Colours from ${value(low)} to ${value(high)}` },
    el("div", { class: "ramp" }, canvas, pointer),
    el(
      "div",
      { class: "ticks", "aria-hidden": "true" },
      ticks.map((one) => el("span", { css: { left: `${share(one)}%` } }, tickText(one))),
    ),
  );
  const point = (one) => {
    pointer.hidden = one === null || one === undefined || !Number.isFinite(one);
    if (!pointer.hidden) pointer.style.left = `${share(one)}%`;
  };
  return { node, point };
}

/** The palette that is the same on both sides of zero. */
export const DIVERGING = "balance";

/** The numbers at the ends of the colours. */
export function range(overview, { palette, low, high }) {
  const ends = [low ?? overview.low, high ?? overview.high];
  if ((palette ?? overview.palette) !== DIVERGING) return ends;
  const most = Math.max(Math.abs(ends[0]), Math.abs(ends[1]));
  return [-most, most];
}
