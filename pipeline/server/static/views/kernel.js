// A kernel matrix as a picture that can be moved and magnified.

import { el, put } from "../dom.js";
import { count, percent } from "../format.js";
import { hasSpectrum, isComparable, kernelOf, kernelWords, manifestOf, references } from "../model.js";
import { colourbar, range } from "../parts/colourbar.js";
import { signButton } from "../parts/forms.js";
import { drawable, mapControls } from "../parts/mapcontrols.js";
import { MapView } from "../parts/mapview.js";
import { Matrix } from "../parts/matrix.js";
import { minimap } from "../parts/minimap.js";
import { chosenEntry, lines, sentence } from "../parts/readout.js";
import { loading } from "../parts/states.js";
import { facts } from "../parts/table.js";
import { Problem } from "../api.js";
import { link, remember } from "../router.js";

/** Seconds without a move after which the address names the place. */
const PATIENCE = 0.3;

/** Classes of the parts that have one. */
const NAMED = { controls: "controls", live: "live", chosen: "chosen" };
const HELP =
  "Drag or use the arrow keys to move, the wheel or + and − to magnify, 0 to see all, shift with arrows to step from entry to entry, Enter to choose the marked one.";

export async function show(page, { run, kernel }) {
  page.title(kernel, run);
  page.crumbs({ text: run, href: link(["runs", run]) }, { text: kernel });
  put(page.content, el("h1", {}, kernel), loading("the kernel"));
  const { geometry } = await manifestOf(run, page.signal);
  const shape = kernelOf(geometry, kernel);
  if (!references(geometry).includes(kernel)) throw new Problem(404, { kind: "not-found", detail: `This run has no kernel ${kernel}.` });
  new KernelPage(page, run, kernel, geometry, shape).open();
}

class KernelPage {
  constructor(page, run, kernel, geometry, shape) {
    Object.assign(this, { page, run, kernel, geometry, shape });
    const { query } = page;
    const { pairs } = geometry;
    const [rows, columns] = pairs.find((pair) => pair.join(",") === query.pair) ?? pairs[0];
    const listed = (text) => (text ? text.split(",") : []);
    this.options = {
      rows,
      columns,
      order: query.order ?? "stored",
      layers: listed(query.layers),
      transforms: listed(query.transforms),
    };
    const given = (text) => (text === undefined || text === "" || !Number.isFinite(Number(text)) ? null : Number(text));
    this.colours = { palette: query.palette ?? null, low: given(query.low), high: given(query.high) };
    this.view = null;
    this.place = placeOf(query.at);
    this.parts = Object.fromEntries(
      ["controls", "map", "live", "chosen", "ramp", "small", "facts"].map((name) => [
        name,
        el("div", { class: NAMED[name] }),
      ]),
    );
    this.spoken = el("p", { class: "unseen", "aria-live": "polite" });
    this.matrix = new Matrix(this.parts.map, {
      run,
      kernel,
      signal: page.signal,
      label: `Heat map of ${kernel}`,
      hovered: (entry, told, keyboard) => this.hovered(entry, told, keyboard),
      picked: (entry) => this.picked(entry),
      drawn: () => this.draw(),
    });
    this.matrix.arrived = () => this.small?.draw();
  }

  open() {
    const { parts, run, kernel, geometry, shape } = this;
    const buttons = el(
      "div",
      { class: "row", role: "group", "aria-label": "Magnification" },
      signButton("+", "Magnify", () => this.view?.zoom(1.6)),
      signButton("−", "See more", () => this.view?.zoom(1 / 1.6)),
      signButton("⤢", "See all", () => this.view?.fit()),
      (this.scaleNote = el("span", { class: "soft small" })),
    );
    put(parts.live, el("p", { class: "soft small" }, "Point at the map to read an entry."));
    put(
      this.page.content,
      el(
        "div",
        { class: "row spread" },
        el("h1", {}, kernel),
        el(
          "p",
          { class: "row" },
          hasSpectrum(geometry, shape)
            ? el("a", { href: link(["runs", run, "kernels", kernel, "spectrum"]) }, "Spectrum")
            : null,
          isComparable(geometry, shape) ? el("a", { href: link(["compare"], { run, one: kernel }) }, "Compare") : null,
        ),
      ),
      el("p", { class: "soft small" }, kernelWords(this.shape)),
      parts.controls,
      el(
        "div",
        { class: "split" },
        el("div", {}, parts.map, el("p", { class: "soft small", id: "map-help" }, HELP)),
        el(
          "aside",
          { "aria-label": "About the entry and the colours" },
          buttons,
          el("div", { class: "card tight" }, el("h2", { class: "small" }, "Under the pointer"), parts.live),
          parts.chosen,
          el("div", { class: "card tight" }, el("h2", { class: "small" }, "Colours"), parts.ramp),
          parts.small,
          parts.facts,
        ),
        this.spoken,
      ),
    );
    this.drawControls();
    this.load();
  }

  async load() {
    this.remember();
    try {
      await this.matrix.load(this.options);
      this.draw();
    } catch {
      // The map's frame tells what went wrong, and offers to try again.
    }
  }

  query() {
    const { options, colours } = this;
    return {
      pair: `${options.rows},${options.columns}`,
      order: options.order,
      layers: options.layers.join(","),
      transforms: options.transforms.join(","),
      palette: colours.palette,
      low: colours.low,
      high: colours.high,
      at: this.at(),
    };
  }

  /** Where the map is, as it stands in the address, so that a link leads there again. */
  at() {
    const { view } = this;
    if (!view?.scale) return this.place?.join(",") ?? "";
    return view.fitted ? "" : [view.middle.row, view.middle.column, view.scale.toPrecision(3)].join(",");
  }

  remember() {
    remember(["runs", this.run, "kernels", this.kernel], this.query());
  }

  draw() {
    const { overview } = this.matrix;
    if (!this.view || this.view.rows !== overview.rows || this.view.columns !== overview.columns) {
      this.view = new MapView(overview.rows, overview.columns);
      this.view.listen(() => this.moved(), this.page.signal);
      if (this.place) this.view.begin(...this.place);
      this.place = null;
      this.small = null;
    }
    this.matrix.show(this.view, drawable(overview, this.colours));
    if (!this.small) {
      this.small = minimap(this.view, () => this.matrix.tiles, this.page.signal);
      put(
        this.parts.small,
        el("div", { class: "card tight" }, el("h2", { class: "small" }, "Where you are"), this.small.node),
      );
    }
    this.drawColours();
    this.drawFacts();
    this.drawControls();
    this.sayScale();
  }

  drawColours() {
    const { overview } = this.matrix;
    const [low, high] = range(overview, drawable(overview, this.colours));
    const palette = overview.palettes?.[this.colours.palette ?? overview.palette];
    this.bar = palette ? colourbar(palette, low, high) : null;
    put(this.parts.ramp, this.bar?.node);
  }

  drawFacts() {
    const { overview } = this.matrix;
    const missing = overview.missing ?? 0;
    put(
      this.parts.facts,
      facts([
        ["Entries", `${count(overview.rows)} × ${count(overview.columns)}`],
        missing ? ["Not committed", percent(missing / (overview.rows * overview.columns))] : null,
        overview.exact_from === null
          ? ["Detail", "means of several entries in this order; as stored shows each"]
          : null,
      ]),
      missing
        ? el("p", { class: "soft small" }, "Hatched: entries that are not committed yet. The picture follows the run.")
        : null,
    );
  }

  drawControls() {
    const { options, colours, geometry, shape } = this;
    mapControls(this.parts.controls, {
      geometry,
      shape,
      options,
      colours,
      overview: this.matrix.overview,
      changed: (change) => {
        Object.assign(options, change);
        // Numbers of another matrix are no range of this one's colours.
        if (!("order" in change)) Object.assign(colours, { low: null, high: null });
        this.load();
      },
      recoloured: (change) => {
        Object.assign(colours, change);
        this.remember();
        this.draw();
      },
    });
  }

  moved() {
    this.sayScale();
    clearTimeout(this.moving);
    this.moving = setTimeout(() => this.page.signal.aborted || this.remember(), 1000 * PATIENCE);
  }

  sayScale() {
    const { view, matrix } = this;
    if (!view?.scale || !matrix.tiles || !matrix.map) return;
    const side = matrix.tiles.entries(matrix.map.level);
    put(
      this.scaleNote,
      side > 1
        ? `${count(side)} × ${count(side)} entries a pixel`
        : view.scale >= 1.5
          ? `${count(view.scale)} pixels an entry`
          : "an entry a pixel",
    );
  }

  hovered(entry, told, keyboard) {
    if (!told) {
      this.bar?.point(null);
      return;
    }
    put(this.parts.live, lines(told));
    this.parts.live.dataset.entry = `${entry.row},${entry.column}`;
    this.bar?.point(told.value);
    if (keyboard) put(this.spoken, sentence(told));
  }

  async picked(entry) {
    const { matrix, page, run, kernel, options } = this;
    const byKeyboard = matrix.map.byKeyboard;
    try {
      const told = await matrix.entry(entry.row, entry.column, matrix.map.level, page.signal);
      put(
        this.parts.chosen,
        el(
          "div",
          { class: "card tight" },
          el(
            "div",
            { class: "row spread" },
            el("h2", { class: "small" }, "Chosen entry"),
            signButton("×", "Forget the chosen entry", () => put(this.parts.chosen)),
          ),
          chosenEntry(told, { run, kernel, rows: options.rows, columns: options.columns, signal: page.signal }),
        ),
      );
      if (byKeyboard) this.parts.chosen.querySelector("a")?.focus();
    } catch (error) {
      if (error.name !== "AbortError") put(this.parts.live, el("p", { class: "bad small" }, error.message));
    }
  }
}

/** Row, column and pixels per entry from an address, null if it has none. */
function placeOf(text) {
  const numbers = (text ?? "").split(",").map(Number);
  return numbers.length === 3 && numbers.every((one) => Number.isFinite(one) && one >= 0) ? numbers : null;
}
