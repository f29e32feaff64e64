// What training samples contribute to a prediction: by class, and the most helpful and harmful ones.

import { address, json } from "../api.js";
import { el, put } from "../dom.js";
import { value } from "../format.js";
import { hasClasses } from "../model.js";
import { bars } from "./bars.js";
import { sampleCards } from "./cards.js";
import { choice, renew } from "./forms.js";
import { empty, section } from "./states.js";

const K = 8;

/** Fill a host with choices, bars and samples. */
export function attributions(host, { run, split, geometry, told, solutions, signal }) {
  const classes = hasClasses(geometry, geometry.train_split);
  const first = classes ? "" : "0";
  const state = { solution: solutions[0], target: first };
  const body = el("div");
  const controls = el("div", { class: "controls" });
  const load = () => {
    const query = { split, sample: told.position, k: K, target: state.target };
    section(
      body,
      "attributions",
      signal,
      () => json(address(["runs", run, "solutions", state.solution, "attributions", "summary"], query), { signal }),
      (found) => draw(found, { run, geometry, told, signal }),
    );
  };
  const change = (changes) => {
    Object.assign(state, changes);
    const targets = geometry.solution_targets[geometry.solutions.indexOf(state.solution)] ?? 1;
    renew(
      controls,
      choice("Solution", solutions, state.solution, (solution) => change({ solution, target: first })),
      targets > 1
        ? choice(
            "Target",
            [
              ...(classes ? [["", "the predicted one"]] : []),
              ...Array.from({ length: targets }, (_, target) => [String(target), `target ${target}`]),
            ],
            state.target,
            (target) => change({ target }),
          )
        : null,
    );
    load();
  };
  put(host, controls, body);
  change({});
}

function draw(found, { run, geometry, told, signal }) {
  const cards = (items, name) =>
    items.length
      ? sampleCards(items, { run, split: geometry.train_split, own: told.label, signal, name })
      : empty("None.");
  const own = Array.isArray(told.label) ? null : told.label;
  const rows = (found.by_class ?? []).map((one) => ({
    name: one.label === null || one.label === undefined ? "all" : `label ${one.label}`,
    values: [
      { value: one.positive, tone: "good" },
      { value: one.negative, tone: "bad" },
    ],
    mark: one.label !== null && one.label === own ? "label" : "",
  }));
  return [
    el(
      "p",
      {},
      "Prediction of target ",
      el("b", {}, String(found.target)),
      ": ",
      el("b", {}, value(found.prediction)),
      ". It is the sum of what every training sample contributes, K(x, x",
      el("sub", {}, "i"),
      ") α",
      el("sub", {}, "i"),
      ".",
    ),
    el(
      "div",
      { class: "pair" },
      el(
        "div",
        {},
        el("h3", {}, "By class of the training samples"),
        rows.length
          ? bars(rows, { caption: "Contributions by class", head: "Class", columns: ["For", "Against"] })
          : empty("The training samples have no classes."),
      ),
      el(
        "div",
        {},
        el("h3", {}, "Most helpful"),
        cards(found.helpful ?? [], "Most helpful"),
        el("h3", {}, "Most harmful"),
        cards(found.harmful ?? [], "Most harmful"),
      ),
    ),
  ];
}
