// One run: what it is, how far it is, what happened, what it found.

import { address, json } from "../api.js";
import { el, put } from "../dom.js";
import { count, counted, duration, moment, percent, value } from "../format.js";
import {
  hasSpectrum,
  isComparable,
  kernelOf,
  kernelWords,
  manifestOf,
  predictedSplits,
  references,
  splitsOf,
} from "../model.js";
import { configView } from "../parts/config.js";
import { gantt } from "../parts/gantt.js";
import { stageBar, stateTag } from "../parts/progress.js";
import { receipts } from "../parts/receipts.js";
import { analyses } from "../parts/analyses.js";
import { empty, loading, section } from "../parts/states.js";
import { facts, table } from "../parts/table.js";
import { poll } from "../polling.js";
import { link } from "../router.js";

/** Of a stage that are asked for at once; solutions and analyses are a few. */
const MOST_TASKS = 1000;

export async function show(page, { run }) {
  page.title(run);
  page.crumbs({ text: run, href: link(["runs", run]) });
  put(page.content, el("h1", {}, run), loading("the run"));
  const [manifest, status] = await Promise.all([manifestOf(run, page.signal), statusOf(run, page.signal)]);
  const { geometry } = manifest;
  const configured = (manifest.config.analyses ?? []).map((one) => one.name || one.kind);
  const state = el("span", {}, stateTag(status.state));
  const progress = el("div", { class: "stages" });
  const parts = Object.fromEntries(
    ["kernels", "solutions", "timeline", "faults", "receipts", "analyses"].map((name) => [name, el("div")]),
  );
  const titled = (id, title, host) =>
    el("section", { id, "aria-labelledby": `${id}-title` }, el("h2", { id: `${id}-title` }, title), host);
  put(
    page.content,
    el("h1", {}, run, " ", state),
    facts([
      manifest.name !== run ? ["Name", manifest.name] : null,
      ["Started", moment(manifest.created_at)],
      [
        "Samples",
        Object.entries(geometry.splits)
          .map(([split, one]) => `${count(one.num_samples)} ${split}`)
          .join(" · "),
      ],
      geometry.num_outputs ? ["Outputs", count(geometry.num_outputs)] : null,
      manifest.num_parameters ? ["Parameters", count(manifest.num_parameters)] : null,
      ["Precision", geometry.dtype],
      ["Run id", el("code", { class: "small" }, manifest.run_id)],
    ]),
    titled("progress", "Progress", progress),
    titled("kernels", "Kernels", parts.kernels),
    titled("samples", "Samples", sampleLinks(run, geometry)),
    titled("solutions", "Solutions", parts.solutions),
    titled("analyses", "Analyses", parts.analyses),
    titled("timeline", "Timeline", parts.timeline),
    titled("faults", "Faults", parts.faults),
    titled("receipts", "Receipts", parts.receipts),
    titled("config", "Configuration", configView(manifest.config)),
  );
  put(parts.kernels, kernels(run, geometry));
  const told = (now) =>
    put(
      progress,
      now.stages.map(stageBar),
      workers(now),
      Object.entries(now.solves ?? {}).map(([name, text]) =>
        el("p", { class: "soft small" }, `Solution ${name}: ${text}`),
      ),
    );
  told(status);
  const get = (...names) => json(address(["runs", run, ...names]), { signal: page.signal });
  const fill = (now) => {
    const load = (what, host, ask, draw) => section(host, what, page.signal, ask, draw);
    // What no task has made yet is not asked for.
    if (madeOf(now, "solve"))
      load(
        "the solutions",
        parts.solutions,
        async () => solutions(run, geometry, await finishedTasks(run, now, "solve", page.signal), page.signal),
        (found) => drawSolutions(found, geometry),
      );
    else
      put(
        parts.solutions,
        geometry.solutions.length
          ? empty(`${geometry.solutions.join(", ")}: not solved yet.`)
          : drawSolutions([], geometry),
      );
    if (madeOf(now, "analyze"))
      load(
        "the analyses",
        parts.analyses,
        () => finishedTasks(run, now, "analyze", page.signal),
        (names) => analyses(run, configured, names, page.signal),
      );
    else put(parts.analyses, empty(configured.length ? "No analysis is finished yet." : "No analysis was configured."));
    load("the timeline", parts.timeline, () => get("timeline"), gantt);
    load("the faults", parts.faults, () => get("failures"), faults);
    receipts(parts.receipts, run, now.stages, page.signal);
  };
  fill(status);
  if (status.state === "finished") return;
  let last = JSON.stringify(status.stages);
  let made = madeOf(status, "solve") + madeOf(status, "analyze");
  poll(async () => {
    const now = await statusOf(run, page.signal);
    told(now);
    put(state, stateTag(now.state));
    const [text, ready] = [JSON.stringify(now.stages), madeOf(now, "solve") + madeOf(now, "analyze")];
    const changed = text !== last;
    if (ready !== made || now.state === "finished") fill(now);
    [last, made] = [text, ready];
    return now.state === "finished" ? false : changed ? "changed" : "same";
  }, page.signal);
}

/** How many tasks of a stage are finished. */
function madeOf(status, stage) {
  return status.stages.filter((one) => one.stage === stage).reduce((sum, one) => sum + one.done, 0);
}

/** The tasks of a stage that are finished; null for all of them. */
async function finishedTasks(run, status, stage, signal) {
  if (status.stages.every((one) => one.stage !== stage || one.done === one.total)) return null;
  const found = await json(address(["runs", run, "receipts", stage], { limit: MOST_TASKS }), { signal });
  return new Set(found.receipts.map((one) => one.task));
}

function statusOf(run, signal) {
  return json(address(["runs", run, "status"]), { signal });
}

function workers(status) {
  const words = [];
  if (status.owner) words.push(`worked on by ${status.owner}`);
  if (status.workers_ready !== null && status.workers_ready !== undefined)
    words.push(`${status.workers_ready} of ${status.workers_wanted} workers ready`);
  if (status.silent_seconds !== null && status.silent_seconds !== undefined)
    words.push(`last sign of life ${duration(status.silent_seconds)} ago`);
  words.push(counted(status.epoch, "driver", "drivers"));
  return el("p", { class: "soft small" }, words.join(" · "));
}

function kernels(run, geometry) {
  return table(
    [
      { title: "Kernel", cell: (name) => el("a", { href: link(["runs", run, "kernels", name]) }, name) },
      { title: "What it is", kind: "long", cell: (name) => kernelWords(kernelOf(geometry, name)) },
      {
        title: "Matrices",
        kind: "long",
        cell: () => geometry.pairs.map(([rows, columns]) => `${rows} × ${columns}`).join(", "),
      },
      {
        title: "",
        cell: (name) =>
          hasSpectrum(geometry, kernelOf(geometry, name))
            ? el(
                "a",
                { href: link(["runs", run, "kernels", name, "spectrum"]), "aria-label": `Spectrum of ${name}` },
                "Spectrum",
              )
            : "",
      },
      {
        title: "",
        cell: (name) =>
          isComparable(geometry, kernelOf(geometry, name))
            ? el("a", { href: link(["compare"], { run, one: name }), "aria-label": `Compare ${name}` }, "Compare")
            : "",
      },
    ],
    references(geometry),
    { caption: "Kernels of this run", hidden: true },
  );
}

function sampleLinks(run, geometry) {
  const links = splitsOf(geometry).map((split) =>
    el(
      "a",
      { class: "chip", href: link(["runs", run, "samples", split, "0"]) },
      `${split}: ${count(geometry.splits[split].num_samples)} samples`,
    ),
  );
  return el("p", { class: "chips" }, links);
}

async function solutions(run, geometry, made, signal) {
  const one = async (name) => {
    if (made && !made.has(name)) return { name, missing: "not solved yet." };
    try {
      return await json(address(["runs", run, "solutions", name]), { signal });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      return { name, missing: error.message };
    }
  };
  return Promise.all(geometry.solutions.map(one));
}

function drawSolutions(found, geometry) {
  if (!found.length)
    return empty("This run has no solutions.", el("p", { class: "soft" }, "Its configuration asked for kernels only."));
  const worst = (numbers) => (numbers?.length ? value(Math.max(...numbers), 3) : "");
  const loss = (record, split) =>
    record.losses?.[split] === undefined
      ? ""
      : record.classes
        ? percent(record.losses[split], 2)
        : value(record.losses[split]);
  const splits = [...new Set(geometry.solutions.flatMap((name) => predictedSplits(geometry, name)))];
  const known = found.filter((record) => !record.missing);
  return [
    known.length
      ? table(
          [
            { title: "Solution", cell: (record) => record.name },
            { title: "Kernel", cell: (record) => record.kernel },
            { title: "Method", cell: (record) => record.method },
            {
              title: "Status",
              cell: (record) => el("span", { class: record.status === "converged" ? "good" : "bad" }, record.status),
            },
            { title: "Ridge", kind: "number", cell: (record) => value(record.ridge, 3) },
            { title: "Largest residual", kind: "number", cell: (record) => worst(record.residuals) },
            ...splits.map((split) => ({
              title: `${known.every((record) => record.classes) ? "Wrong" : "Loss"}, ${split}`,
              kind: "number",
              cell: (record) => loss(record, split),
            })),
            { title: "Why this solver", kind: "long", cell: (record) => record.chosen || "as configured" },
          ],
          known,
          { caption: "Solutions of this run", hidden: true },
        )
      : null,
    found
      .filter((record) => record.missing)
      .map((record) => el("p", { class: "soft" }, `${record.name}: ${record.missing}`)),
  ];
}

function faults({ failures }) {
  if (!failures.length) return empty("Nothing has failed.");
  const words = { again: "tried again", aside: "set aside", "left-out": "left out", end: "ended the run" };
  return table(
    [
      { title: "Task", kind: "long", cell: (one) => `${one.stage} ${one.task}` },
      { title: "Kind", cell: (one) => one.kind },
      { title: "What happened", kind: "long", cell: (one) => one.message },
      { title: "What became of it", cell: (one) => words[one.verdict] ?? one.verdict },
      { title: "Attempt", kind: "number", cell: (one) => one.attempt },
      { title: "When", cell: (one) => moment(one.failed_at) },
    ],
    failures,
    { caption: "Attempts that failed", hidden: true },
  );
}
