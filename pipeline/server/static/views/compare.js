// Two kernels side by side: of one run, of two members, or of two runs.

import { address, ready } from "../api.js";
import { el, put } from "../dom.js";
import { count, value } from "../format.js";
import { ComparableRuns } from "../parts/comparable.js";
import { checks, choice, renew } from "../parts/forms.js";
import { ORDER_NAMES } from "../parts/mapcontrols.js";
import { PairedMaps } from "../parts/pairedmaps.js";
import { busy, empty, loading, problem, section } from "../parts/states.js";
import { remember } from "../router.js";

export async function show(page) {
  page.title("Compare");
  page.crumbs({ text: "Compare" });
  put(page.content, el("h1", {}, "Compare two kernels"), loading("the runs"));
  const runs = new ComparableRuns(page.signal);
  const state = await begin(runs, page.query);
  if (state) new Comparison(page, runs, state).open();
  else
    put(
      page.content,
      el("h1", {}, "Compare two kernels"),
      empty("There is no run with a kernel to compare yet.", el("p", {}, el("a", { href: "#/" }, "See all runs"))),
    );
}

/** What an address asks for; where it leaves that open, two kernels that go together. */
async function begin(runs, query) {
  const run = query.run ? await runs.open(query.run) : await runs.first();
  if (!run) return null;
  const other = query.with ? await runs.open(query.with) : run;
  const one = query.one ? runs.checked(run, query.one) : run.kernels[0];
  const another = run.kernels.find((name) => name !== one) ?? one;
  const alike = other.kernels.includes(one) ? one : other.kernels[0];
  return {
    run: run.run,
    one,
    with: other.run,
    other: query.other ? runs.checked(other, query.other) : other === run ? another : alike,
    order: query.order ?? "stored",
    same: query.same === "yes",
  };
}

class Comparison {
  constructor(page, runs, state) {
    Object.assign(this, { page, runs, state });
    this.parts = {
      controls: el("div", { class: "controls" }),
      trouble: el("div"),
      figures: el("div"),
      maps: el("div", { class: "pair" }),
      help: el("p", { class: "soft small", id: "map-help" }),
    };
    /** The run that was chosen last for a side. */
    this.wanted = {};
  }

  open() {
    put(this.page.content, el("h1", {}, "Compare two kernels"), Object.values(this.parts));
    this.change({});
  }

  change(changes) {
    Object.assign(this.state, changes);
    put(this.parts.trouble);
    this.remember();
    this.drawing?.abort();
    this.drawing = new AbortController();
    this.page.signal.addEventListener("abort", () => this.drawing.abort());
    this.drawControls([...new Set(["stored", this.state.order])]);
    this.drawFigures();
    this.drawMaps();
  }

  /** Take another run for a side (`run` or `with`), and its kernel of the same name (`one` or `other`) if there is one. */
  choose(side, kernel, name) {
    this.wanted[side] = name;
    return this.ask(async () => {
      const { kernels } = await this.runs.open(name);
      // Another one may have been chosen meanwhile.
      if (this.wanted[side] !== name) return;
      const before = this.state[kernel];
      this.change({ [side]: name, [kernel]: kernels.includes(before) ? before : kernels[0] });
    });
  }

  /** Do what needs the service, and say beside the controls why it cannot be done. */
  async ask(work) {
    const { controls, trouble } = this.parts;
    put(trouble);
    try {
      await busy(controls, work);
    } catch (error) {
      if (this.page.signal.aborted || error.name === "AbortError") return;
      if (!error.kind) console.error(error);
      put(trouble, problem(error));
      this.drawControls(this.orders);
    }
  }

  remember() {
    remember(["compare"], { ...this.state, same: this.state.same ? "yes" : "" });
  }

  drawControls(orders) {
    const { state, runs } = this;
    const { names } = runs;
    this.orders = orders;
    const more = () =>
      this.ask(async () => {
        await runs.list();
        this.drawControls(this.orders);
      });
    const side = (title, run, kernel) => [
      names.length > 1 || runs.after !== null
        ? choice(`${title} run`, names, state[run], (name) => this.choose(run, kernel, name))
        : null,
      choice(`${title} kernel`, runs.opened.get(state[run]).kernels, state[kernel], (name) =>
        this.change({ [kernel]: name }),
      ),
    ];
    renew(
      this.parts.controls,
      side("First", "run", "one"),
      side("Second", "with", "other"),
      runs.after === null ? null : el("button", { type: "button", on: { click: more } }, "Show more runs"),
      choice(
        "Order",
        orders.map((order) => [order, ORDER_NAMES[order] ?? order]),
        state.order,
        (order) => this.change({ order }),
      ),
      checks("Colours", [["same", "the same range"]], state.same ? ["same"] : [], (chosen) => {
        state.same = chosen.length > 0;
        this.remember();
        this.pair.recolour();
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
    const { state, runs, parts } = this;
    const side = (run, kernel) => ({ run, kernel, geometry: runs.opened.get(run).geometry });
    const { signal } = this.drawing;
    this.pair = new PairedMaps(parts, [side(state.run, state.one), side(state.with, state.other)], {
      order: state.order,
      same: () => state.same,
      signal,
    });
    const orders = await this.pair.draw();
    if (!signal.aborted) this.drawControls(orders);
  }
}
