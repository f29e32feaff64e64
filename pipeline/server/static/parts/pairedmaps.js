// Two maps that move together, and read the same entry of both kernels.

import { el, put } from "../dom.js";
import { link } from "../router.js";
import { colourbar, DIVERGING, range } from "./colourbar.js";
import { MapView } from "./mapview.js";
import { Matrix } from "./matrix.js";
import { idle, lines, sentence } from "./readout.js";
import { busy } from "./states.js";

/** Orders of both kernels; clusters are those of one. */
const ORDERS = ["stored", "id", "class"];

const TOGETHER = "Both maps move together, and point at the same entry.";
const APART = "The matrices have different sizes, so each map moves on its own.";
const KEYS =
  "Drag or use the arrow keys to move, the wheel or + and − to magnify, 0 to see all, shift with arrows to step from entry to entry.";

/** Seconds for which the pointer rests before the other map is asked, too. */
const PATIENCE = 0.06;

export class PairedMaps {
  /** `sides`: {run, kernel, geometry}. `same()` tells whether a colour is to mean the same number in both. */
  constructor({ maps, help }, sides, { order, same, signal }) {
    Object.assign(this, { maps, help, order, same, signal });
    this.spoken = el("p", { class: "unseen", "aria-live": "polite" });
    this.sides = sides.map((side) => ({ ...side, frame: el("div"), live: el("div", { class: "live" }), ramp: el("div") }));
    /** The sides whose picture could be made. */
    this.drawn = [];
    put(maps, this.sides.map(framed), this.spoken);
    put(help, KEYS);
  }

  /** Draw both; returns the orders that both have. */
  async draw() {
    const opened = this.sides.map((side) => this.#opened(side));
    const found = await busy(this.maps, () => Promise.allSettled(opened));
    this.drawn = found.filter((one) => one.status === "fulfilled").map((one) => one.value);
    if (this.signal.aborted || !this.drawn.length) return ORDERS.slice(0, 1);
    const [first] = this.drawn;
    const alike = this.drawn.every((side) => side.matrix.overview.rows === first.matrix.overview.rows);
    this.paired = alike && this.drawn.length > 1;
    const shared = new MapView(first.matrix.overview.rows, first.matrix.overview.columns);
    for (const side of this.drawn) {
      const { rows, columns } = side.matrix.overview;
      side.view = alike ? shared : new MapView(rows, columns);
      side.card.hidden = false;
    }
    put(this.help, this.drawn.length > 1 ? `${alike ? TOGETHER : APART} ` : "", KEYS);
    this.recolour();
    return ORDERS.filter((name) => this.drawn.every((side) => side.matrix.overview.orders.includes(name)));
  }

  recolour() {
    const colours = this.same() ? sharedColours(this.drawn.map((side) => side.matrix.overview)) : {};
    for (const side of this.drawn) {
      const { overview } = side.matrix;
      side.matrix.show(side.view, colours);
      const [low, high] = range(overview, colours);
      side.bar = colourbar(overview.palettes[colours.palette ?? overview.palette], low, high);
      put(side.ramp, side.bar.node);
      if (!side.live.dataset.entry) put(side.live, idle(overview, this.paired));
    }
  }

  async #opened(side) {
    side.matrix = new Matrix(side.frame, {
      run: side.run,
      kernel: side.kernel,
      signal: this.signal,
      label: `Heat map of ${side.kernel} of ${side.run}`,
      hovered: (entry, told, keyboard) => this.#point(side, entry, told, keyboard),
      picked: (entry) => this.#follow(side, entry),
      drawn: () => this.recolour(),
    });
    const train = side.geometry.train_split;
    await side.matrix.load({ rows: train, columns: train, order: this.order });
    return side;
  }

  /** One map is pointed at: the other one follows. */
  #point(from, entry, told, keyboard) {
    if (told) {
      tell(from, entry, told);
      if (keyboard) put(this.spoken, `${from.kernel}: ${sentence(told)}`);
    } else {
      from.bar?.point(null);
    }
    for (const side of this.paired ? this.drawn : []) if (side !== from) this.#follow(side, entry, keyboard);
  }

  /** Point at the same entry of the other map. */
  #follow(side, entry, keyboard) {
    side.matrix.map.mark(entry);
    clearTimeout(side.timer);
    if (!entry) {
      side.bar?.point(null);
      return;
    }
    const look = async () => {
      try {
        const told = await side.matrix.entry(entry.row, entry.column, side.matrix.map.level, this.signal);
        // A later move of the pointer may have been answered before.
        if (side.matrix.map.cursor !== entry) return;
        tell(side, entry, told);
        if (keyboard) this.spoken.append(` ${side.kernel}: ${sentence(told)}`);
      } catch (error) {
        if (error.name !== "AbortError") put(side.live, el("p", { class: "bad small" }, error.message));
      }
    };
    side.timer = setTimeout(look, keyboard ? 0 : 1000 * PATIENCE);
  }
}

/** A section for a map, its colours, and what is read from it. */
function framed(side) {
  // What is pointed at is told once there is a map to point at.
  side.card = el("div", { class: "card tight", hidden: true }, el("h3", { class: "small" }, "Under the pointer"), side.live);
  return el(
    "section",
    { "aria-label": `${side.kernel} of ${side.run}` },
    el(
      "h2",
      {},
      el("a", { href: link(["runs", side.run, "kernels", side.kernel]) }, side.kernel),
      el("span", { class: "soft small" }, ` ${side.run}`),
    ),
    side.frame,
    side.ramp,
    side.card,
  );
}

/** Colours that mean the same numbers in several maps. */
function sharedColours(overviews) {
  const palettes = overviews.map((one) => one.palette);
  return {
    palette: palettes.includes(DIVERGING) ? DIVERGING : palettes[0],
    low: Math.min(...overviews.map((one) => one.low)),
    high: Math.max(...overviews.map((one) => one.high)),
  };
}

function tell(side, entry, told) {
  put(side.live, lines(told));
  side.live.dataset.entry = `${entry.row},${entry.column}`;
  side.bar?.point(told.value);
}
