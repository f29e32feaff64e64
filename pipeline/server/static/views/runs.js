// All runs below the root, with their progress while they are running.

import { address, json } from "../api.js";
import { el, put } from "../dom.js";
import { count, moment } from "../format.js";
import { stageBar, stateTag } from "../parts/progress.js";
import { empty, loading, problem } from "../parts/states.js";
import { poll } from "../polling.js";
import { link } from "../router.js";

const PAGE = 100;

export async function show(page) {
  page.title("Runs");
  page.crumbs();
  const list = el("ul", { class: "cards" });
  const said = el("p", { class: "soft small", role: "status" });
  const more = el("div", { class: "row" });
  const search = el("input", {
    type: "search",
    placeholder: "Name, kernel or state",
    "aria-label": "Search the runs",
    on: { input: () => filter() },
  });
  const note = el("div");
  put(page.content, el("div", { class: "row spread" }, el("h1", {}, "Runs"), search), note, said, list, more);
  const cards = new Map();
  let runs = [];
  let next = null;

  const filter = () => {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const run of runs) {
      const text = [run.run, run.name, run.state, ...(run.kernels ?? [])].join(" ").toLowerCase();
      const hit = words.every((word) => text.includes(word));
      cards.get(run.run).node.hidden = !hit;
      shown += hit;
    }
    const all = next ? `the first ${count(runs.length)} runs` : count(runs.length);
    put(said, words.length ? `${count(shown)} of ${all} match.` : "");
  };
  const take = (found) => {
    let changed = false;
    for (const run of found) {
      const text = JSON.stringify(run);
      const known = cards.get(run.run);
      if (known?.text === text) continue;
      changed = true;
      const node = card(run);
      if (known) known.node.replaceWith(node);
      else list.append(node);
      cards.set(run.run, { node, text });
      const at = runs.findIndex((one) => one.run === run.run);
      if (at < 0) runs.push(run);
      else runs[at] = run;
    }
    filter();
    return changed;
  };
  const forget = (found) => {
    const names = new Set(found.map((run) => run.run));
    for (const run of runs) if (!names.has(run.run)) cards.get(run.run).node.remove();
    runs = runs.filter((run) => names.has(run.run));
  };
  const fetchPage = async (after) => json(address(["runs"], { limit: PAGE, after }), { signal: page.signal });
  const offerMore = () => {
    const load = async () => {
      const found = await fetchPage(next);
      next = found.next;
      take(found.runs);
      offerMore();
    };
    put(more, next ? el("button", { type: "button", on: { click: load } }, "Show more runs") : null);
  };

  put(note, loading("the runs"));
  const first = await fetchPage();
  next = first.next;
  put(note);
  take(first.runs);
  offerMore();
  const none = () => put(note, runs.length ? null : nothing());
  none();
  poll(
    async () => {
      const found = await fetchPage();
      // Only while all of them are on one page is it known that one is gone.
      if (!found.next && !next) forget(found.runs);
      const changed = take(found.runs);
      none();
      return changed ? "changed" : "same";
    },
    page.signal,
    (error) => put(note, problem(error)),
  );
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
