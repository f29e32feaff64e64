// Receipts of a stage, page by page: the proof that a task is finished.

import { address, json } from "../api.js";
import { el, put } from "../dom.js";
import { count, duration, moment, size } from "../format.js";
import { empty, section } from "./states.js";
import { table } from "./table.js";
import { tabs } from "./tabs.js";

const PAGE = 25;

/** Show the stages as tabs. */
export function receipts(host, run, stages, signal) {
  if (!stages.length) return put(host, empty("This run has no stages."));
  return put(
    host,
    tabs(
      "Stages",
      stages.map((stage) => ({
        name: stage.stage,
        note: count(stage.done),
        open: (panel) => pageOf(panel, run, stage, [""], signal),
      })),
    ),
  );
}

function pageOf(panel, run, stage, marks, signal) {
  const after = marks[marks.length - 1];
  const load = () => json(address(["runs", run, "receipts", stage.stage], { after, limit: PAGE }), { signal });
  return section(panel, "the receipts", signal, load, (found) => {
    if (!found.receipts.length) return empty("No task of this stage is finished yet.");
    const go = (name, next, to) =>
      el(
        "button",
        { type: "button", disabled: !next, on: { click: () => pageOf(panel, run, stage, to(), signal) } },
        name,
      );
    return [
      table(
        [
          {
            title: "Task",
            cell: (one) =>
              el(
                "a",
                {
                  href: taskAddress(run, stage.stage, one.task),
                  on: { click: (event) => open(event, run, stage.stage, one.task, signal) },
                },
                one.task,
              ),
          },
          { title: "Took", kind: "number", cell: (one) => duration(one.seconds) },
          { title: "Written", kind: "number", cell: (one) => size(one.num_bytes ?? 0) },
          { title: "Chunks", kind: "number", cell: (one) => count(one.chunks ?? 0) },
          { title: "Attempt", kind: "number", cell: (one) => one.attempt },
          { title: "Driver", kind: "number", cell: (one) => one.epoch },
          { title: "Worker", cell: (one) => one.worker },
          { title: "Committed", cell: (one) => moment(one.committed_at) },
        ],
        found.receipts,
        { caption: `Receipts of stage ${stage.stage}`, hidden: true },
      ),
      el(
        "div",
        { class: "row" },
        go("Previous", marks.length > 1, () => marks.slice(0, -1)),
        go("Next", found.next, () => [...marks, found.next]),
        el("span", { class: "soft small" }, `page ${count(marks.length)}`),
      ),
    ];
  });
}

function taskAddress(run, stage, task) {
  return `${address(["runs", run, "receipts", stage])}/${task.split("/").map(encodeURIComponent).join("/")}`;
}

async function open(event, run, stage, task, signal) {
  // A plain link could not carry the token.
  event.preventDefault();
  const body = el("div");
  const dialog = el(
    "dialog",
    { class: "broad", "aria-label": `Receipt of ${stage} ${task}`, on: { close: () => dialog.remove() } },
    el("h2", {}, `${stage} ${task}`),
    body,
    el("form", { method: "dialog", class: "row end" }, el("button", {}, "Close")),
  );
  document.body.append(dialog);
  signal.addEventListener("abort", () => dialog.remove());
  dialog.showModal();
  await section(
    body,
    "the receipt",
    signal,
    () => json(taskAddress(run, stage, task), { signal }),
    (found) => el("pre", { tabindex: 0 }, JSON.stringify(found, null, 2)),
  );
}
