// Two kernels side by side: of one run, of two members, or of two runs.

import { address, json, ready } from "../api.js";
import { el, put } from "../dom.js";
import { count, value } from "../format.js";
import { checks, choice, renew } from "../parts/forms.js";
import { ORDER_NAMES } from "../parts/mapcontrols.js";
import { MapView } from "../parts/mapview.js";
import { Matrix } from "../parts/matrix.js";
import { lines, sentence } from "../parts/readout.js";
import { colourbar, DIVERGING, range } from "../parts/colourbar.js";
import { busy, empty, loading, section } from "../parts/states.js";
import { manifestOf } from "../model.js";
import { link, remember } from "../router.js";

const MOST_RUNS = 500;

export async function show(page) {
  page.title("Compare");
  page.crumbs({ text: "Compare" });
  put(page.content, el("h1", {}, "Compare two kernels"), loading("the runs"));
  const { runs } = await json(address(["runs"], { limit: MOST_RUNS }), { signal: page.signal });
  const usable = runs.filter((run) => run.kernels?.length);
  if (!usable.length) {
    put(
      page.content,
      el("h1", {}, "Compare two kernels"),
      empty("There is no run with a kernel to compare yet.", el("p", {}, el("a", { href: "#/" }, "See all runs"))),
    );
    return;
  }
  new Comparison(page, usable).open();
}

class Comparison {
  constructor(page, runs) {
    this.page = page;
    this.runs = runs;
    const { query } = page;
    const run = this.known(query.run) ?? runs[0];
    const other = this.known(query.with) ?? run;
    const one = run.kernels.includes(query.one) ? query.one : run.kernels[0];
    const fallback =
      other === run
        ? (run.kernels.find((name) => name !== one) ?? one)
        : other.kernels.includes(one)
          ? one
          : other.kernels[0];
    this.state = {
      run: run.run,
      one,
      with: other.run,
      other: other.kernels.includes(query.other) ? query.other : fallback,
      order: query.order ?? "stored",
      same: query.same === "yes",
    };
    this.parts = { controls: el("div", { class: "controls" }), figures: el("div"), maps: el("div", { class: "pair" }) };
    this.spoken = el("p", { class: "unseen", "aria-live": "polite" });
  }

  known(name) {
    return this.runs.find((run) => run.run === name);
  }

  open() {
    const { parts } = this;
    put(
      this.page.content,
      el("h1", {}, "Compare two kernels"),
      parts.controls,
      parts.figures,
      parts.maps,
      el(
        "p",
        { class: "soft small", id: "map-help" },
        "Both maps move together, and point at the same entry. Drag or use the arrow keys to move, the wheel or + and − to magnify, 0 to see all.",
      ),
      this.spoken,
    );
    this.change({});
  }

  change(changes) {
    Object.assign(this.state, changes);
    const { state } = this;
    for (const [run, kernel] of [
      ["run", "one"],
      ["with", "other"],
    ]) {
      const names = this.known(state[run]).kernels;
      if (!names.includes(state[kernel])) [state[kernel]] = names;
    }
    this.remember();
    this.drawing?.abort();
    this.drawing = new AbortController();
    this.page.signal.addEventListener("abort", () => this.drawing.abort());
    this.drawControls([...new Set(["stored", state.order])]);
    this.drawFigures();
    this.drawMaps();
  }

  remember() {
    remember(["compare"], { ...this.state, same: this.state.same ? "yes" : "" });
  }

  drawControls(orders) {
    const { state } = this;
    const names = this.runs.map((run) => run.run);
    const side = (title, run, kernel) => [
      names.length > 1 ? choice(`${title} run`, names, state[run], (name) => this.change({ [run]: name })) : null,
      choice(`${title} kernel`, this.known(state[run]).kernels, state[kernel], (name) =>
        this.change({ [kernel]: name }),
      ),
    ];
    renew(
      this.parts.controls,
      side("First", "run", "one"),
      side("Second", "with", "other"),
      choice(
        "Order",
        orders.map((order) => [order, ORDER_NAMES[order] ?? order]),
        state.order,
        (order) => this.change({ order }),
      ),
      checks("Colours", [["same", "the same range"]], state.same ? ["same"] : [], (chosen) => {
        state.same = chosen.length > 0;
        this.remember();
        this.recolour?.();
      }),
    );
  }

  drawFigures() {
    const { state } = this;
    const { signal } = this.drawing;
    const path = address(["runs", state.run, "compare"], {
      one: state.one,
      other: state.other,
      with: state.with === state.run ? "" : state.with,
    });
    section(
      this.parts.figures,
      "the comparison",
      signal,
      () => ready(path, { signal }),
      (found) => {
        const tile = (title, number, note) =>
          el(
            "div",
            { class: "tile" },
            el("b", {}, value(number)),
            el("span", {}, title),
            el("span", { class: "soft small" }, note),
          );
        return [
          el(
            "div",
            { class: "tiles" },
            tile("Alignment (CKA)", found.alignment, "1: alike up to scale, centred"),
            tile("Correlation", found.correlation, "of entries"),
            tile("Relative difference", found.relative_difference, "‖A − B‖ / ‖A‖, 0: equal"),
          ),
          el(
            "p",
            { class: "soft small" },
            found.sampled
              ? `From ${count(found.samples)} evenly spaced training samples of ${count(found.num_samples)}.`
              : `From all ${count(found.samples)} training samples.`,
          ),
        ];
      },
    );
  }

  async drawMaps() {
    const { state, parts } = this;
    const { signal } = this.drawing;
    const sides = [
      [state.run, state.one],
      [state.with, state.other],
    ].map(([run, kernel]) => ({ run, kernel, frame: el("div"), live: el("div", { class: "live" }), ramp: el("div") }));
    put(
      parts.maps,
      sides.map((side) =>
        el(
          "section",
          { "aria-label": `${side.kernel} of ${side.run}` },
          el(
            "h2",
            {},
            el("a", { href: link(["runs", side.run, "kernels", side.kernel]) }, side.kernel),
            this.runs.length > 1 ? el("span", { class: "soft small" }, ` ${side.run}`) : null,
          ),
          side.frame,
          side.ramp,
          side.live,
        ),
      ),
    );
    const point = (from, entry, told, keyboard) => {
      if (told) {
        tell(from, entry, told);
        if (keyboard) put(this.spoken, `${from.kernel}: ${sentence(told)}`);
      }
      for (const side of sides)
        if (side !== from && side.matrix?.map && side.paired) this.follow(side, entry, keyboard);
    };
    const opened = sides.map(async (side) => {
      const { geometry } = await manifestOf(side.run, signal);
      side.matrix = new Matrix(side.frame, {
        run: side.run,
        kernel: side.kernel,
        signal,
        label: `Heat map of ${side.kernel} of ${side.run}`,
        hovered: (entry, told, keyboard) => point(side, entry, told, keyboard),
        picked: (entry) => this.follow(side, entry, true),
        drawn: () => this.recolour?.(),
      });
      const train = geometry.train_split;
      await side.matrix.load({ rows: train, columns: train, order: state.order });
      return side;
    });
    const found = (await busy(parts.maps, () => Promise.allSettled(opened)))
      .filter((one) => one.status === "fulfilled")
      .map((one) => one.value);
    if (signal.aborted || !found.length) return;
    const [first] = found;
    // Clusters are those of one kernel, so they are no order of both.
    const both = ["stored", "id", "class"];
    this.drawControls(both.filter((name) => found.every((side) => side.matrix.overview.orders.includes(name))));
    const alike = found.every((side) => side.matrix.overview.rows === first.matrix.overview.rows);
    const shared = new MapView(first.matrix.overview.rows, first.matrix.overview.columns);
    this.recolour = () => {
      for (const side of found) {
        const { overview } = side.matrix;
        side.paired = alike && found.length > 1;
        side.view ??= alike ? shared : new MapView(overview.rows, overview.columns);
        const colours = state.same ? sharedColours(found.map((one) => one.matrix.overview)) : {};
        side.matrix.show(side.view, colours);
        const [low, high] = range(overview, colours);
        side.bar = colourbar(overview.palettes[colours.palette ?? overview.palette], low, high);
        put(side.ramp, side.bar.node);
      }
    };
    this.recolour();
    if (!alike)
      put(first.live, el("p", { class: "soft" }, "The matrices have different sizes, so each map moves on its own."));
  }

  /** Point at the same entry of the other map. */
  async follow(side, entry, keyboard) {
    side.matrix.map.mark(entry);
    clearTimeout(side.timer);
    if (!entry) return;
    side.timer = setTimeout(
      async () => {
        try {
          const told = await side.matrix.entry(entry.row, entry.column, side.matrix.map.level, this.drawing.signal);
          // A later move of the pointer may have been answered before.
          if (side.matrix.map.cursor === entry) tell(side, entry, told);
        } catch (error) {
          if (error.name !== "AbortError") put(side.live, el("p", { class: "bad small" }, error.message));
        }
      },
      keyboard ? 0 : 60,
    );
  }
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
