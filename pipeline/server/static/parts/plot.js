// Lines over an axis, as SVG: a legend that switches lines, values under the pointer or the arrow keys.

import { el, put, svg } from "../dom.js";
import { count, value } from "../format.js";
import { linearTicks, logTicks, tickText } from "./axes.js";

const HEIGHT = 320;
const LEFT = 62;
const RIGHT = 14;
const TOP = 10;
const BOTTOM = 40;
const MOST_POINTS = 1500;

/**
 * Build a plot.
 * Series: {name, tone, x: [..], y: [..]}. Axes: {title, log, low, high}. It draws itself anew when its width changes.
 */
export function plot(series, { x, y, label }) {
  const hidden = new Set();
  const said = el(
    "p",
    { class: "readout small", "aria-live": "polite" },
    "Point at a line, or use the arrow keys, to read values.",
  );
  const drawing = el("div", {
    class: "plot",
    tabindex: 0,
    role: "img",
    "aria-label": `${label}. Arrow keys read values.`,
  });
  let at = null;
  const shown = () => series.filter((one) => !hidden.has(one.name));
  const draw = () => put(drawing, picture(shown(), x, y, Math.max(280, drawing.clientWidth), at));
  const read = (position) => {
    at = position;
    const words = shown()
      .filter((one) => one.x.length)
      .map((one) => {
        const nearest = closest(one.x, position);
        return `${one.name}: ${value(one.y[nearest])}`;
      });
    put(
      said,
      el("b", {}, `${x.title} ${Number.isInteger(position) ? count(position) : value(position)}`),
      " · ",
      words.join(" · "),
    );
    draw();
  };
  drawing.addEventListener("pointermove", (event) => {
    const frame = drawing.getBoundingClientRect();
    const scale = scales(shown(), x, y, frame.width);
    if (scale) read(snapped(shown(), scale.x.back(event.clientX - frame.left)));
  });
  drawing.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1, PageUp: 10, PageDown: -10 }[event.key];
    const first = shown()[0];
    if (step === undefined || !first) return;
    event.preventDefault();
    const now = at === null ? -1 : closest(first.x, at);
    read(first.x[Math.max(0, Math.min(first.x.length - 1, now + step))]);
  });
  new ResizeObserver(draw).observe(drawing);
  const legend = series.map((one) =>
    el(
      "button",
      {
        type: "button",
        class: `key tone-${one.tone}`,
        "aria-pressed": "true",
        on: {
          click: (event) => {
            if (!hidden.delete(one.name)) hidden.add(one.name);
            event.currentTarget.setAttribute("aria-pressed", String(!hidden.has(one.name)));
            draw();
          },
        },
      },
      el("i", { "aria-hidden": "true" }),
      one.name,
    ),
  );
  return el(
    "figure",
    {},
    el("div", { class: "legend", role: "group", "aria-label": "Lines that are shown" }, legend),
    drawing,
    said,
  );
}

function picture(series, x, y, width, at) {
  const scale = scales(series, x, y, width);
  const frame = { viewBox: `0 0 ${width} ${HEIGHT}`, width, height: HEIGHT, "aria-hidden": "true" };
  if (!scale)
    return svg(
      "svg",
      frame,
      svg("text", { x: width / 2, y: HEIGHT / 2, "text-anchor": "middle", class: "soft" }, "no line is shown"),
    );
  const parts = [];
  for (const one of scale.x.ticks) {
    parts.push(
      svg("path", { class: "grid", d: `M${scale.x.to(one)} ${TOP}V${HEIGHT - BOTTOM}` }),
      svg(
        "text",
        { class: "soft", x: scale.x.to(one), y: HEIGHT - BOTTOM + 16, "text-anchor": "middle" },
        tickText(one),
      ),
    );
  }
  for (const one of scale.y.ticks) {
    parts.push(
      svg("path", { class: "grid", d: `M${LEFT} ${scale.y.to(one)}H${width - RIGHT}` }),
      svg(
        "text",
        { class: "soft", x: LEFT - 6, y: scale.y.to(one) + 4, "text-anchor": "end" },
        tickText(one, scale.y.powers),
      ),
    );
  }
  parts.push(
    svg("text", { class: "soft", x: (LEFT + width - RIGHT) / 2, y: HEIGHT - 6, "text-anchor": "middle" }, x.title),
  );
  parts.push(
    svg(
      "text",
      { class: "soft", transform: `translate(13 ${(HEIGHT - BOTTOM + TOP) / 2}) rotate(-90)`, "text-anchor": "middle" },
      y.title,
    ),
  );
  for (const one of series) parts.push(svg("path", { class: `line tone-${one.tone}`, d: path(one, scale) }));
  if (at !== null) {
    parts.push(svg("path", { class: "cursor", d: `M${scale.x.to(at)} ${TOP}V${HEIGHT - BOTTOM}` }));
    for (const one of series) {
      const nearest = closest(one.x, at);
      const drawn = scale.y.to(one.y[nearest]);
      if (Number.isFinite(drawn))
        parts.push(svg("circle", { class: `dot tone-${one.tone}`, cx: scale.x.to(one.x[nearest]), cy: drawn, r: 4 }));
    }
  }
  return svg("svg", frame, parts);
}

function scales(series, x, y, width) {
  const within = (numbers, axis) => numbers.filter((one) => Number.isFinite(one) && (!axis.log || one > 0));
  const xs = series.flatMap((one) => within(one.x, x));
  const ys = series.flatMap((one) => within(one.y, y));
  if (!xs.length || !ys.length) return null;
  return { x: scaled(xs, x, LEFT, width - RIGHT, width / 110), y: scaled(ys, y, HEIGHT - BOTTOM, TOP, 6) };
}

function scaled(numbers, axis, from, to, about) {
  let low = axis.low ?? numbers.reduce((one, other) => Math.min(one, other), Infinity);
  let high = axis.high ?? numbers.reduce((one, other) => Math.max(one, other), -Infinity);
  if (axis.log && axis.floor) low = Math.max(low, high * axis.floor);
  if (low === high) [low, high] = axis.log ? [low / 2, high * 2] : [low - 1, high + 1];
  const [first, last] = axis.log ? [Math.log10(low), Math.log10(high)] : [low, high];
  return {
    powers: Boolean(axis.log) && (high >= 1e5 || low < 1e-3) && high / low > 100,
    ticks: axis.log ? logTicks(low, high, about) : linearTicks(low, high, about),
    to: (one) => {
      const where = from + ((to - from) * ((axis.log ? Math.log10(one) : one) - first)) / (last - first);
      return Math.round(10 * where) / 10;
    },
    back: (pixel) => {
      const where = first + (last - first) * Math.max(0, Math.min(1, (pixel - from) / (to - from)));
      return axis.log ? 10 ** where : where;
    },
  };
}

function path(one, scale) {
  const stride = Math.max(1, Math.floor(one.x.length / MOST_POINTS));
  let text = "";
  let pen = "M";
  for (let position = 0; position < one.x.length; position += position < MOST_POINTS / 4 ? 1 : stride) {
    const [across, up] = [scale.x.to(one.x[position]), scale.y.to(one.y[position])];
    const inside = Number.isFinite(across) && Number.isFinite(up) && up <= HEIGHT - BOTTOM + 1;
    if (inside) text += `${pen}${across} ${up}`;
    pen = inside ? "L" : "M";
  }
  return text;
}

function snapped(series, position) {
  const first = series.find((one) => one.x.length);
  return first ? first.x[closest(first.x, position)] : position;
}

/** The position of the number nearest to another one; numbers go up. */
function closest(numbers, wanted) {
  let low = 0;
  let high = numbers.length - 1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (numbers[middle] < wanted) low = middle;
    else high = middle;
  }
  return Math.abs(numbers[high] - wanted) < Math.abs(numbers[low] - wanted) ? high : low;
}
