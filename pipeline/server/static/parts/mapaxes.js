// What is written and drawn along the axes of a map: groups of samples, their names, or round numbers.

import { count, short } from "../format.js";
import { linearTicks } from "./axes.js";

/** Pixels left of a map and above it, for names. */
export const LEFT = 66;
export const TOP = 22;

/** Pixels of a group that has room for its name. */
const SMALLEST_GROUP = 13;

/** Draw lines between groups. */
export function drawGroups(context, view, overview, ink) {
  context.strokeStyle = ink;
  context.globalAlpha = 0.45;
  context.lineWidth = 1;
  context.beginPath();
  for (const group of (overview?.groups ?? []).slice(1)) {
    const y = Math.round(TOP + (group.start - view.top) * view.scale) + 0.5;
    context.moveTo(LEFT + Math.max(0, -view.left * view.scale), y);
    context.lineTo(LEFT + Math.min(view.width, (view.columns - view.left) * view.scale), y);
  }
  for (const group of (overview?.column_groups ?? []).slice(1)) {
    const x = Math.round(LEFT + (group.start - view.left) * view.scale) + 0.5;
    context.moveTo(x, TOP + Math.max(0, -view.top * view.scale));
    context.lineTo(x, TOP + Math.min(view.height, (view.rows - view.top) * view.scale));
  }
  context.stroke();
  context.globalAlpha = 1;
}

/** Write names beside the matrix, wherever on the screen it begins. */
export function drawNames(context, view, overview, ink) {
  context.fillStyle = ink;
  context.textBaseline = "middle";
  const [edge, ceiling] = [LEFT + Math.max(0, -view.left * view.scale), TOP + Math.max(0, -view.top * view.scale)];
  for (const mark of marks(overview?.groups, view.top, view.height, view.scale, view.rows)) {
    context.textAlign = "right";
    context.fillText(fitting(mark.text, LEFT - 8, context), edge - 6, TOP + mark.at);
  }
  for (const mark of marks(overview?.column_groups, view.left, view.width, view.scale, view.columns)) {
    context.textAlign = "center";
    context.fillText(fitting(mark.text, mark.room - 4, context), LEFT + mark.at, ceiling - 10);
  }
}

/** Names of groups that have room, or else round numbers. */
function marks(groups, start, pixels, scale, size) {
  if (groups?.length) {
    return groups
      .map((group) => {
        const from = Math.max(0, (group.start - start) * scale);
        const to = Math.min(pixels, (group.stop - start) * scale);
        return { text: String(group.label), at: (from + to) / 2, room: to - from };
      })
      .filter((mark) => mark.room >= SMALLEST_GROUP);
  }
  const low = Math.max(0, start);
  const high = Math.min(size, start + pixels / scale);
  return linearTicks(low, high, pixels / 90)
    .filter((at) => Number.isInteger(at) && at < size)
    .map((at) => ({ text: count(at), at: (at + (scale > 6 ? 0.5 : 0) - start) * scale, room: 90 }));
}

/** As much of a name as has room: all of it, or its last word, or its ends. */
function fitting(text, room, context) {
  const fits = (some) => context.measureText(some).width <= room;
  const last = text.split(" ").pop();
  return [text, last, short(text, 8), short(text, 5)].find(fits) ?? short(text, 3);
}
