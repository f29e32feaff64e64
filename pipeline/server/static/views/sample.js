// One sample: what it is, what is predicted for it, and which training samples stand behind that.

import { el, put } from "../dom.js";
import { count, short, value } from "../format.js";
import {
  hasClasses,
  isStored,
  kernelOf,
  labelText,
  loadedSample,
  manifestOf,
  predictedSplits,
  references,
  sampleOf,
  splitsOf,
} from "../model.js";
import { attributions } from "../parts/attributions.js";
import { bars } from "../parts/bars.js";
import { choice } from "../parts/forms.js";
import { neighbours } from "../parts/neighbours.js";
import { samplePicture } from "../parts/picture.js";
import { empty, loading, problem } from "../parts/states.js";
import { facts } from "../parts/table.js";
import { tabs } from "../parts/tabs.js";
import { link } from "../router.js";

const MOST_BARS = 200;

export async function show(page, { run, split, sample }) {
  page.title(sample, split, run);
  page.crumbs(
    { text: run, href: link(["runs", run]) },
    { text: split, href: link(["runs", run, "samples", split, "0"]) },
    { text: sample },
  );
  put(page.content, el("h1", {}, short(sample, 60)), loading("the sample"));
  const [manifest, told] = await Promise.all([
    manifestOf(run, page.signal),
    sampleOf(run, split, sample, page.signal),
  ]);
  const { geometry } = manifest;
  page.title(told.id, split, run);
  page.crumbs(
    { text: run, href: link(["runs", run]) },
    { text: split, href: link(["runs", run, "samples", split, "0"]) },
    { text: told.id },
  );
  const near = el("div");
  const blame = el("div");
  put(
    page.content,
    el(
      "div",
      { class: "row spread" },
      el("h1", { title: told.id }, short(told.id, 60)),
      walk(page, run, split, told, geometry),
    ),
    el(
      "div",
      { class: "sample" },
      el("section", { "aria-label": "The sample" }, shown(run, split, told, page.signal), about(split, told, geometry)),
      el(
        "section",
        { "aria-labelledby": "outputs-title" },
        el("h2", { id: "outputs-title" }, "Outputs and predictions"),
        outputs(told, geometry),
      ),
    ),
    el(
      "section",
      { "aria-labelledby": "near-title" },
      el("h2", { id: "near-title" }, "Nearest and most opposed training samples"),
      near,
    ),
    el(
      "section",
      { "aria-labelledby": "blame-title" },
      el("h2", { id: "blame-title" }, "What the prediction is made of"),
      blame,
    ),
  );
  const stored = references(geometry).filter((name) =>
    isStored(geometry, kernelOf(geometry, name), split, geometry.train_split),
  );
  const kernels = stored.filter((name) => kernelOf(geometry, name).width === 1);
  if (kernels.length)
    neighbours(near, { run, split, geometry, told, kernels, chosen: page.query.kernel, signal: page.signal });
  else
    put(
      near,
      empty(
        stored.length
          ? "The kernels of this run are of pairs of a sample and an output, so samples have no neighbours."
          : "No kernel between this split and the training samples is stored.",
      ),
    );
  const solutions = geometry.solutions.filter((name) => predictedSplits(geometry, name).includes(split));
  if (solutions.length) attributions(blame, { run, split, geometry, told, solutions, signal: page.signal });
  else put(blame, empty("No solution of this run predicts this split."));
}

function walk(page, run, split, told, geometry) {
  const num = geometry.splits[split].num_samples;
  const { kernel } = page.query;
  const to = (position) => link(["runs", run, "samples", split, String(position)], { kernel });
  const step = (name, position) =>
    position < 0 || position >= num
      ? el("span", { class: "button off", "aria-disabled": "true" }, name)
      : el("a", { class: "button", href: to(position) }, name);
  const input = el("input", {
    type: "text",
    id: "go",
    placeholder: "Id or position",
    spellcheck: "false",
    autocomplete: "off",
    size: 16,
  });
  const go = (event) => {
    event.preventDefault();
    const text = input.value.trim();
    if (!text) return;
    const isPlace = /^\d+$/.test(text) && Number(text) < num;
    location.hash = to(isPlace || text.startsWith("id:") ? text : `id:${text}`);
  };
  const splits = splitsOf(geometry);
  return el(
    "div",
    { class: "row" },
    splits.length > 1
      ? choice("Split", splits, split, (other) => {
          location.hash = link(["runs", run, "samples", other, "0"], { kernel });
        })
      : null,
    el(
      "div",
      { class: "row", role: "group", "aria-label": "Other samples" },
      step("Previous", told.position - 1),
      step("Next", told.position + 1),
    ),
    el(
      "form",
      { class: "row", on: { submit: go } },
      el("label", { for: "go", class: "unseen" }, "Id or position of a sample"),
      input,
      el("button", { type: "submit" }, "Go"),
    ),
  );
}

function shown(run, split, told, signal) {
  if (told.shown_as === "loading") return later(run, split, told, signal);
  if (told.shown_as === "image")
    return samplePicture(run, split, told.position, told.id, signal, { large: true, known: "image" });
  if (told.shown_as === "text") return el("blockquote", { class: "text", tabindex: 0 }, told.text ?? "");
  return el(
    "div",
    { class: "empty" },
    el("p", { class: "strong" }, "This sample cannot be shown."),
    el("p", { class: "soft" }, told.why ?? "The run does not say how its samples look."),
  );
}

/** The place of a sample whose data set is being loaded. */
function later(run, split, told, signal) {
  const host = el("div", {}, loading("the data set"));
  loadedSample(run, split, String(told.position), signal).then(
    (now) => put(host, shown(run, split, now, signal)),
    (error) => error.name === "AbortError" || put(host, problem(error)),
  );
  return host;
}

function about(split, told, geometry) {
  const classes = hasClasses(geometry, split);
  const best = (numbers) => numbers.indexOf(Math.max(...numbers));
  const tone = (numbers) => (classes ? (best(numbers) === told.label ? "good" : "bad") : null);
  const said = (name, numbers) =>
    hasClasses(geometry, geometry.train_split) && numbers.length > 1
      ? [name, el("span", { class: tone(numbers) }, String(best(numbers)))]
      : null;
  return facts([
    ["Position", `${count(told.position)} of ${split}`],
    told.label !== null && told.label !== undefined ? ["Label", labelText(told.label)] : null,
    ...networks(told).map(([name, numbers]) => said(`${name}'s class`, numbers)),
  ]);
}

/** Outputs of the network, or of each of its members: [name, numbers]. */
function networks(told) {
  const members = Object.entries(told.member_outputs ?? {}).map(([member, numbers]) => [`Network ${member}`, numbers]);
  return told.outputs ? [["Network", told.outputs], ...members] : members;
}

/** What an output has to do with the label. */
function marksOf(numbers, label, classes) {
  if (!classes) {
    const wanted = [label ?? []].flat();
    return (at) => (wanted.length === numbers.length ? `label ${value(wanted[at], 3)}` : "");
  }
  const best = numbers.indexOf(Math.max(...numbers));
  return (at) =>
    [at === label ? "label" : "", at === best && numbers.length > 1 ? "largest" : ""].filter(Boolean).join(", ");
}

function outputs(told, geometry) {
  // Of a split without labels the training split says what outputs are.
  const classes = hasClasses(geometry, geometry.train_split);
  const label = classes ? told.label : null;
  const draw = (numbers, caption) => {
    const marks = marksOf(numbers, told.label, classes);
    const rows = numbers.slice(0, MOST_BARS).map((one, at) => ({
      name: numbers.length > 1 ? String(at) : "output",
      values: [{ value: one, tone: at === label ? "good" : 0 }],
      mark: marks(at),
    }));
    return [
      bars(rows, { caption, head: "Output", columns: ["Value"] }),
      numbers.length > MOST_BARS
        ? el("p", { class: "soft small" }, `The first ${count(MOST_BARS)} of ${count(numbers.length)}.`)
        : null,
    ];
  };
  const items = [];
  for (const [name, numbers] of networks(told))
    items.push({ name, open: (panel) => put(panel, draw(numbers, `Outputs of ${name.toLowerCase()}`)) });
  for (const [name, numbers] of Object.entries(told.predictions ?? {}))
    items.push({ name, open: (panel) => put(panel, draw(numbers, `Predictions of ${name}`)) });
  return items.length
    ? tabs("Outputs and predictions", items)
    : empty("Neither outputs nor predictions of this sample are committed.");
}
