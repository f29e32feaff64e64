// All runs below the root, with their progress while they are running.

import { address, json } from "../api.js";
import { el, put } from "../dom.js";
import { count, moment } from "../format.js";
import { stageBar, stateTag } from "../parts/progress.js";
import { busy, empty, loading, problem } from "../parts/states.js";
import { poll } from "../polling.js";
import { link } from "../router.js";

const PAGE = 100;

export async function show(page) {
  page.title("Runs");
  page.crumbs();
  const cards = new Cards();
  const said = el("p", { class: "soft small", role: "status" });
  const trouble = el("div");
  const button = el("button", { type: "button", hidden: true, on: { click: () => showMore() } }, "Show more runs");
  const rest = el("div", {}, trouble, button);
  const search = el("input", {
    type: "search",
    placeholder: "Name, kernel or state",
    "aria-label": "Search the runs",
    on: { input: () => say() },
  });
  const note = el("div");
  put(page.content, el("div", { class: "row spread" }, el("h1", {}, "Runs"), search), note, said, cards.list, rest);
  /** Whether the listing goes on behind the last card. */
  let more = false;

  const fetchPage = (after) => json(address(["runs"], { limit: PAGE, after }), { signal: page.signal });
  const say = () => {
    button.hidden = !more;
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const hits = cards.find(words);
    const all = more ? `the first ${count(cards.shown.length)} runs` : count(cards.shown.length);
    put(said, words.length ? `${count(hits)} of ${all} match.` : "");
  };
  const showMore = async () => {
    if (rest.hasAttribute("aria-busy")) return;
    put(trouble);
    try {
      const found = await busy(rest, () => fetchPage(cards.last));
      more = Boolean(found.next);
      cards.take(found.runs, cards.shown.length);
      say();
    } catch (error) {
      if (page.signal.aborted || error.name === "AbortError") return;
      if (!error.kind) console.error(error);
      put(trouble, problem(error));
    }
  };
  const take = (found) => {
    const changed = cards.take(found.runs, 0);
    const gone = cards.forget(found);
    // Behind the first page there may be more that is shown already.
    more = Boolean(found.next) && (more || found.next === cards.last);
    put(note, cards.last ? null : nothing());
    say();
    return changed || gone ? "changed" : "same";
  };

  put(note, loading("the runs"));
  take(await fetchPage());
  poll(
    async () => take(await fetchPage()),
    page.signal,
    (error) => put(note, problem(error)),
  );
}

/** The runs that are shown, in the order of the listing. */
class Cards {
  constructor() {
    this.list = el("ul", { class: "cards" });
    /** {run, node, text}: what was told of each, its card, and what it was made from. */
    this.shown = [];
  }

  /** The name of the last run. */
  get last() {
    return this.shown.at(-1)?.run.run;
  }

  placeOf(name) {
    return this.shown.findIndex((one) => one.run.run === name);
  }

  /**
   * Show a part of the listing that begins at a place: runs that are new follow those that they follow there.
   * Returns whether any has changed.
   */
  take(runs, start) {
    let place = start;
    let changed = false;
    for (const run of runs) {
      const text = JSON.stringify(run);
      const at = this.placeOf(run.run);
      const known = at < 0 ? null : this.shown[at];
      if (known) place = at;
      if (known?.text !== text) {
        const node = card(run);
        if (known) known.node.replaceWith(node);
        else this.list.insertBefore(node, this.list.children[place] ?? null);
        this.shown.splice(place, known ? 1 : 0, { run, node, text });
        changed = true;
      }
      place += 1;
    }
    return changed;
  }

  /** Remove what the first page of the listing has no longer. Returns whether there was any. */
  forget({ runs, next }) {
    const names = new Set(runs.map((run) => run.run));
    const end = next ? this.placeOf(next) + 1 : this.shown.length;
    const gone = this.shown.slice(0, end).filter((one) => !names.has(one.run.run));
    for (const one of gone) one.node.remove();
    this.shown = this.shown.filter((one) => !gone.includes(one));
    return gone.length > 0;
  }

  /** Show only runs that have all words in what is said of them; returns how many. */
  find(words) {
    let hits = 0;
    for (const { run, node } of this.shown) {
      const text = [run.run, run.name, run.state, ...(run.kernels ?? [])].join(" ").toLowerCase();
      node.hidden = !words.every((word) => text.includes(word));
      hits += !node.hidden;
    }
    return hits;
  }
}

function nothing() {
  return empty(
    "There are no runs below the root of this service yet.",
    el("p", {}, "Start one there, and it appears on this page:"),
    el("pre", {}, "ntkpipe run digits --out ROOT/digits"),
  );
}

function card(run) {
  if (run.problem) {
    return el(
      "li",
      { class: "card" },
      el("h2", {}, run.run, " ", el("span", { class: "state incomplete" }, "unreadable")),
      el("p", { class: "bad" }, run.problem),
      el("p", { class: "soft small" }, "Other runs are not affected."),
    );
  }
  const samples =
    typeof run.num_samples === "object" && run.num_samples !== null
      ? Object.entries(run.num_samples)
      : [["train", run.num_samples]];
  const stages = run.stages ?? [];
  const open = stages.filter((stage) => stage.done < stage.total);
  return el(
    "li",
    { class: "card", data: { run: run.run } },
    el("h2", {}, el("a", { href: link(["runs", run.run]) }, run.run), " ", stateTag(run.state)),
    el("p", { class: "soft small" }, run.name !== run.run ? `${run.name} · ` : "", `started ${moment(run.created_at)}`),
    el(
      "p",
      {},
      samples.map(([split, number], position) => [position ? " · " : "", el("b", {}, count(number)), ` ${split}`]),
    ),
    el("div", { class: "stages" }, (run.state === "finished" ? [] : open.length ? open : stages).map(stageBar)),
    run.kernels?.length
      ? el(
          "p",
          { class: "chips" },
          run.kernels.map((kernel) =>
            el("a", { class: "chip", href: link(["runs", run.run, "kernels", kernel]) }, kernel),
          ),
        )
      : null,
  );
}
