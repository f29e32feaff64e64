// The training samples that a kernel finds most alike, and most opposed, to a sample.

import { address, json } from "../api.js";
import { el, put } from "../dom.js";
import { sampleCards } from "./cards.js";
import { checks, choice } from "./forms.js";
import { empty, section } from "./states.js";

const K = 8;
const MOST_CLASSES = 1000;

/** Fill a host with choices and both rows of samples. */
export function neighbours(host, { run, split, geometry, told, kernels, chosen, signal }) {
  const train = geometry.train_split;
  const classes =
    geometry.splits[train].labels === "classes" ? Math.min(geometry.splits[train].num_targets, MOST_CLASSES) : 0;
  const state = { kernel: kernels.includes(chosen) ? chosen : kernels[0], label: "", transforms: [] };
  const rows = { near: el("div"), far: el("div") };
  const load = (target, opposed, name) =>
    section(
      target,
      name.toLowerCase(),
      signal,
      () =>
        json(
          address(["runs", run, "kernels", state.kernel, "neighbors"], {
            split,
            rows: told.position,
            k: K,
            opposed,
            label: state.label,
            transforms: state.transforms.join(","),
          }),
          { signal },
        ),
      ({ neighbors }) =>
        neighbors[0]?.neighbors.length
          ? sampleCards(neighbors[0].neighbors, {
              run,
              split: train,
              kernel: state.kernel,
              own: told.label,
              signal,
              name,
            })
          : empty("No training sample fits this choice."),
    );
  const change = (changes) => {
    Object.assign(state, changes);
    load(rows.near, false, "Nearest");
    load(rows.far, true, "Most opposed");
  };
  const numbers = Array.from({ length: classes }, (_, label) => [String(label), `label ${label}`]);
  put(
    host,
    el(
      "div",
      { class: "controls" },
      choice("Kernel", kernels, state.kernel, (kernel) => change({ kernel })),
      classes ? choice("Class", [["", "all"], ...numbers], "", (label) => change({ label })) : null,
      checks(
        "Transform",
        [
          ["cosine", "Cosine"],
          ["centred", "Centred"],
        ],
        [],
        (transforms) => change({ transforms }),
      ),
    ),
    el("h3", {}, "Nearest"),
    rows.near,
    el("h3", {}, "Most opposed"),
    rows.far,
  );
  change({});
}
