// Training samples in a row, each with its picture, label and a number.

import { el } from "../dom.js";
import { short, value } from "../format.js";
import { labelText } from "../model.js";
import { link } from "../router.js";
import { samplePicture } from "./picture.js";

/** Items: {id, position, label, value}. `own` is the label of the sample they belong to; equal ones are set off. */
export function sampleCards(items, { run, split, kernel, own, signal, name }) {
  return el(
    "ol",
    { class: "samplecards", "aria-label": name },
    items.map((item) => {
      const labelled = item.label !== null && item.label !== undefined;
      const same =
        labelled && !Array.isArray(item.label) && own !== null && own !== undefined ? item.label === own : null;
      return el(
        "li",
        {},
        el(
          "a",
          {
            class: "samplecard",
            href: link(["runs", run, "samples", split, String(item.position)], { kernel }),
            title: item.id,
          },
          samplePicture(run, split, item.position, item.id, signal),
          el(
            "span",
            {},
            el("b", {}, short(item.id, 18)),
            el("span", { class: "number" }, value(item.value)),
            labelled
              ? el(
                  "span",
                  { class: `small ${same === null ? "soft" : same ? "good" : "bad"}` },
                  `label ${labelText(item.label)}`,
                )
              : null,
          ),
        ),
      );
    }),
  );
}
