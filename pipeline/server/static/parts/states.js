// What stands where nothing can be shown yet, or nothing is, or something went wrong.

import { el, put } from "../dom.js";
import { count } from "../format.js";

const REMEDIES = {
  unreachable: "Is it running, and is this machine connected? Try again when it is.",
  "chunk-not-ready": "The run has not got there yet. If nobody works on it, `ntkpipe resume URL` goes on with it.",
  "corrupt-chunk": "What is stored is damaged or gone: `ntkpipe verify URL --repair` computes it again.",
  storage: "The store did not answer as it should. Try again in a while.",
  error: "This is a defect of the service; its log names it by the number above.",
};
const MOST_BLOCKS = 6;

/** Something is on its way. */
export function loading(what) {
  return el(
    "p",
    { class: "loading", role: "status" },
    el("span", { class: "spinner", "aria-hidden": "true" }),
    `Loading ${what}…`,
  );
}

/** There is nothing, and that is fine. */
export function empty(title, ...more) {
  return el("div", { class: "empty" }, el("p", { class: "strong" }, title), more);
}

/** Statuses of questions that have the same answer however often they are asked. */
const FINAL = [413, 422];

/** Something went wrong: what, and what to do. */
export function problem(error, again) {
  const kind = error.kind ?? "page";
  const rows = [el("p", { class: "strong" }, code(error.message))];
  if (error.limit !== undefined && error.asked !== undefined) {
    rows.push(el("p", {}, `Asked for ${count(error.asked)}, the limit is ${count(error.limit)}.`));
  }
  if (error.blocks?.length) rows.push(blocks(error.blocks));
  const remedy = REMEDIES[kind];
  if (remedy) rows.push(el("p", {}, code(remedy)));
  rows.push(el("p", { class: "soft small" }, error.status ? `${error.status} ${kind}` : kind));
  if (again && !FINAL.includes(error.status)) rows.push(el("button", { type: "button", on: { click: () => again() } }, "Try again"));
  return el("div", { class: kind === "chunk-not-ready" ? "notice" : "problem", role: "alert" }, rows);
}

/** How much is being loaded into an element. */
const working = new WeakMap();

/** Say that an element is busy until what loads it has ended, and whatever else loads it meanwhile. */
export async function busy(host, load) {
  working.set(host, (working.get(host) ?? 0) + 1);
  host.setAttribute("aria-busy", "true");
  try {
    return await load();
  } finally {
    const left = working.get(host) - 1;
    working.set(host, left);
    if (!left) host.removeAttribute("aria-busy");
  }
}

/** Show what a promise brings in a section of its own, whatever becomes of it. */
export async function section(host, what, signal, load, draw) {
  put(host, loading(what));
  try {
    const found = await busy(host, load);
    if (signal.aborted) return;
    put(host, draw(found));
  } catch (error) {
    if (signal.aborted || error.name === "AbortError") return;
    if (!error.kind) console.error(error);
    put(
      host,
      problem(error, () => section(host, what, signal, load, draw)),
    );
  }
}

function blocks(names) {
  const more = names.length > MOST_BLOCKS ? ` and ${count(names.length - MOST_BLOCKS)} more` : "";
  return el("p", { class: "small" }, `Not committed: ${names.slice(0, MOST_BLOCKS).join(", ")}${more}`);
}

function code(text) {
  return text.split("`").map((part, position) => (position % 2 ? el("code", {}, part) : part));
}
