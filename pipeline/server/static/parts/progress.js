// How far a stage is: what is done, what was given up, and what is left.

import { el } from "../dom.js";
import { count, duration, size } from "../format.js";

/** A bar for one stage, with its numbers. */
export function stageBar(stage) {
  const lost = (stage.set_aside ?? 0) + (stage.left_out ?? 0);
  const share = (number) => `${stage.total ? (100 * number) / stage.total : 100}%`;
  const words = [`${count(stage.done)} of ${count(stage.total)}`];
  if (lost) words.push(`${count(lost)} missing for good`);
  if (stage.tasks_per_second && stage.done < stage.total) words.push(`${stage.tasks_per_second.toFixed(1)} tasks/s`);
  if (stage.bytes_per_second && stage.done < stage.total) words.push(`${size(stage.bytes_per_second)}/s`);
  if (stage.seconds_left && stage.done < stage.total) words.push(`${duration(stage.seconds_left)} left`);
  const bar = el(
    "div",
    {
      class: "bar",
      role: "progressbar",
      "aria-label": `Stage ${stage.stage}`,
      "aria-valuemin": 0,
      "aria-valuemax": stage.total,
      "aria-valuenow": stage.done,
      "aria-valuetext": words.join(", "),
    },
    el("i", { css: { width: share(stage.done) } }),
    lost ? el("i", { class: "lost", css: { width: share(lost) } }) : null,
  );
  return el(
    "div",
    { class: "stage" },
    el("span", { class: "name" }, stage.stage),
    bar,
    el("span", { class: "soft small" }, words.join(" · ")),
  );
}

/** The state of a run as a word. */
export function stateTag(state) {
  return el("span", { class: `state ${state}` }, state);
}
