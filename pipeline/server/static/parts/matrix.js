// A kernel matrix on screen: its overview is asked for, and waited for, then its tiles are.

import { address, ready } from "../api.js";
import { el, put } from "../dom.js";
import { percent } from "../format.js";
import { poll } from "../polling.js";
import { Heatmap } from "./heatmap.js";
import { busy, problem } from "./states.js";
import { Tiles } from "./tiles.js";

const KEPT = 800;
const PATIENCE = 0.05;

/** The parameters that say which matrix is drawn, and in which order. */
function matrixQuery(options) {
  return {
    row_split: options.rows,
    column_split: options.columns,
    order: options.order,
    layers: options.layers?.join(","),
    transforms: options.transforms?.join(","),
  };
}

/** A frame that shows a matrix or why not. Create one per matrix; `open` shows another order or other colours. */
export class Matrix {
  /** `hovered(entry, told, keyboard)` gets what the service says of the entry that is pointed at, null while it is asked. */
  constructor(host, { run, kernel, view, signal, hovered, picked, drawn, label }) {
    Object.assign(this, { host, run, kernel, view, signal, hovered, picked, drawn, label });
    this.overview = null;
    this.options = {};
    this.asked = new Map();
    this.veil = el("div", { class: "veil", hidden: true });
    this.opening = null;
    this.pointing = null;
    host.classList.add("mapframe");
    this.map = null;
  }

  /** Ask for the overview of a matrix; returns it. */
  async load(options) {
    this.opening?.abort();
    this.opening = new AbortController();
    this.signal.addEventListener("abort", () => this.opening.abort());
    const { signal } = this.opening;
    this.options = options;
    this.asked.clear();
    // What was asked of another order is not what the map shows from now on.
    this.#point(null);
    this.map?.mark(null);
    put(this.veil, building(0));
    this.veil.hidden = false;
    this.host.append(this.veil);
    try {
      const path = address(["runs", this.run, "kernels", this.kernel, "overview"], matrixQuery(options));
      const progress = (told) => put(this.veil, building(told.done));
      this.overview = await busy(this.host, () => ready(path, { signal, progress }));
      this.veil.hidden = true;
      if (this.overview.incomplete) this.#watch(path, signal);
      return this.overview;
    } catch (error) {
      if (error.name === "AbortError") throw error;
      put(
        this.veil,
        problem(error, () =>
          this.load(options).then(
            (found) => this.drawn(found),
            () => {},
          ),
        ),
      );
      throw error;
    }
  }

  /** Show the matrix that was loaded in `view`, which may be shared, with colours between two numbers. */
  show(view, { palette, low, high }) {
    const { overview, options, run, kernel } = this;
    if (this.view !== view || !this.map) {
      this.map?.canvas.remove();
      this.view = view;
      this.map = new Heatmap(this.host, {
        view,
        overview,
        label: this.label,
        signal: this.signal,
        hovered: (entry, keyboard) => this.#point(entry, keyboard),
        picked: this.picked,
      });
    }
    this.colours = { palette, low, high };
    const query = { ...matrixQuery(options), palette, low, high, version: overview.version };
    const path = ({ level, row, column }) =>
      address(["runs", run, "kernels", kernel, "tiles", String(level), String(row), `${column}.png`], query);
    const before = this.tiles ?? null;
    if (before) before.earlier = null;
    this.tilesSignal?.abort();
    this.tilesSignal = new AbortController();
    this.signal.addEventListener("abort", () => this.tilesSignal.abort());
    this.tiles = new Tiles(
      overview,
      path,
      this.tilesSignal.signal,
      () => {
        this.map.redraw();
        this.arrived?.();
      },
      (error) => this.#failed(error),
    );
    const drawn = JSON.stringify(matrixQuery(options));
    if (drawn === this.drawnQuery) this.tiles.earlier = before;
    this.drawnQuery = drawn;
    this.map.use(this.tiles, overview);
  }

  /** What the service says of an entry on a level of the pyramid; answers are kept. */
  async entry(row, column, level, signal) {
    const path = address(["runs", this.run, "kernels", this.kernel, "hover"], {
      ...matrixQuery(this.options),
      row,
      column,
      level,
    });
    if (!this.asked.has(path)) {
      this.asked.set(path, await ready(path, { signal }));
      if (this.asked.size > KEPT) this.asked.delete(this.asked.keys().next().value);
    }
    return this.asked.get(path);
  }

  #point(entry, keyboard) {
    clearTimeout(this.pointing?.timer);
    this.pointing?.asking.abort();
    if (!entry) {
      this.hovered(null, null, keyboard);
      return;
    }
    const asking = new AbortController();
    const look = async () => {
      try {
        this.hovered(entry, await this.entry(entry.row, entry.column, this.map.level, asking.signal), keyboard);
      } catch (error) {
        if (error.name !== "AbortError") this.hovered(entry, { problem: error.message }, keyboard);
      }
    };
    // Nothing is asked for entries that the pointer only passes.
    this.pointing = { asking, timer: setTimeout(look, 1000 * PATIENCE) };
  }

  #failed(error) {
    if (this.signal.aborted) return;
    put(
      this.veil,
      problem(error, () => {
        this.veil.hidden = true;
        this.tiles.again();
      }),
    );
    this.veil.hidden = false;
    this.host.append(this.veil);
  }

  /** Look again while blocks are missing. */
  #watch(path, signal) {
    const { version } = this.overview;
    poll(async () => {
      const found = await ready(path, { signal });
      if (found.version === version) return "same";
      this.overview = found;
      this.asked.clear();
      this.drawn(found);
      if (found.incomplete) this.#watch(path, signal);
      return false;
    }, signal);
  }
}

function building(done) {
  const share = Math.max(0, Math.min(1, done ?? 0));
  return el(
    "div",
    { class: "building", role: "status" },
    el("p", { class: "strong" }, "Making the picture"),
    el("p", { class: "soft small" }, "Every block of the matrix is read once; it is then kept."),
    el(
      "div",
      {
        class: "bar",
        role: "progressbar",
        "aria-label": "Picture",
        "aria-valuemin": 0,
        "aria-valuemax": 100,
        "aria-valuenow": Math.round(100 * share),
      },
      el("i", { css: { width: `${100 * share}%` } }),
    ),
    el("p", { class: "small" }, percent(share, 0)),
  );
}
