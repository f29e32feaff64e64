// Who did what when: a lane for each stage, then one for each worker, over the time of drivers at work.

import { el, put, svg } from "../dom.js";
import { count, counted, duration, short, size } from "../format.js";
import { empty } from "./states.js";
import { table } from "./table.js";

const ROW = 20;
const LANE = 14;
const TOP = 8;
const MOST_LANES = 40;
const SMALLEST = 2;

/** Draw what the service tells of a run's events. */
export function gantt(told) {
  const stages = told.stages ?? [];
  if (!stages.length) return empty("No task is recorded yet.");
  const tone = (stage) =>
    Math.max(
      0,
      stages.findIndex((one) => one.stage === stage),
    ) % 8;
  const workers = told.workers ?? [];
  const lanes = workers.slice(0, MOST_LANES);
  const drawing = el("div", {
    class: "plot timeline",
    role: "img",
    "aria-label": "Timeline of stages and workers; the table below has its numbers",
  });
  const draw = () => put(drawing, picture(told, stages, lanes, tone, Math.max(300, drawing.clientWidth)));
  new ResizeObserver(draw).observe(drawing);
  const notes = [];
  if (workers.length > lanes.length)
    notes.push(`${counted(lanes.length, "worker")} of ${count(workers.length)} are drawn.`);
  if (!told.spans)
    notes.push("There are too many tasks to draw each; a worker's lane shows from its first to its last.");
  return [
    el(
      "div",
      { class: "legend" },
      stages.map((one) =>
        el("span", { class: `key tone-${tone(one.stage)}` }, el("i", { "aria-hidden": "true" }), one.stage),
      ),
    ),
    drawing,
    notes.length ? el("p", { class: "soft small" }, notes.join(" ")) : null,
    table(
      [
        { title: "Stage", cell: (one) => one.stage },
        { title: "Tasks", kind: "number", cell: (one) => count(one.tasks) },
        { title: "Took", kind: "number", cell: (one) => duration(Math.max(0, one.stop - one.start)) },
        { title: "Written", kind: "number", cell: (one) => size(one.bytes ?? one.num_bytes ?? 0) },
        { title: "Failed attempts", kind: "number", cell: (one) => count(one.failures ?? 0) },
      ],
      stages,
      { caption: "Stages in numbers", hidden: true },
    ),
  ];
}

function picture(told, stages, workers, tone, width) {
  const left = Math.min(150, width * 0.28);
  const end = Math.max(told.seconds ?? 0, ...stages.map((one) => one.stop), 1e-3);
  const x = (at) => left + ((width - left - 30) * Math.min(at, end)) / end;
  const bottom = TOP + ROW * (stages.length + workers.length) + 4;
  const parts = [];
  for (const at of marks(end, width)) {
    parts.push(
      svg("path", { class: "grid", d: `M${x(at)} ${TOP}V${bottom}` }),
      svg("text", { class: "soft", x: x(at), y: bottom + 15, "text-anchor": "middle" }, duration(at)),
    );
  }
  const label = (text, row) =>
    svg(
      "text",
      { x: left - 8, y: TOP + ROW * row + 13, "text-anchor": "end" },
      short(text, Math.floor(left / 7)),
      svg("title", {}, text),
    );
  const bar = (start, stop, row, name, title) => {
    const from = x(start);
    const length = Math.max(SMALLEST, x(stop) - from);
    return svg(
      "rect",
      { class: name, x: from, y: TOP + ROW * row + 2, width: length, height: LANE, rx: 2 },
      svg("title", {}, title),
    );
  };
  stages.forEach((one, row) => {
    parts.push(
      label(one.stage, row),
      bar(
        one.start,
        one.stop,
        row,
        `tone-${tone(one.stage)}`,
        `${one.stage}: ${duration(one.stop - one.start)}, ${counted(one.tasks, "task")}`,
      ),
    );
  });
  const rows = new Map();
  workers.forEach((one, position) => {
    const name = one.name ?? one.worker;
    const row = stages.length + position;
    rows.set(name, row);
    parts.push(label(name, row));
    if (!told.spans)
      parts.push(
        bar(
          one.start,
          one.stop,
          row,
          "tone-7",
          `${name}: ${counted(one.tasks, "task")}, busy for ${duration(one.busy_seconds)}`,
        ),
      );
  });
  for (const span of told.spans ?? []) {
    if (rows.has(span.worker))
      parts.push(
        bar(
          span.start,
          span.stop,
          rows.get(span.worker),
          `tone-${tone(span.stage)} task`,
          `${span.stage} ${span.task}: ${duration(span.stop - span.start)}`,
        ),
      );
  }
  for (const fault of told.faults ?? []) {
    const row =
      rows.get(fault.worker) ??
      Math.max(
        0,
        stages.findIndex((one) => one.stage === fault.stage),
      );
    parts.push(
      svg(
        "path",
        { class: "fault", d: `M${x(fault.at) - 4} ${TOP + ROW * row + 5}l8 8m0 -8l-8 8` },
        svg("title", {}, `${fault.kind}: ${fault.message}`),
      ),
    );
  }
  return svg(
    "svg",
    { viewBox: `0 0 ${width} ${bottom + 22}`, width, height: bottom + 22, "aria-hidden": "true" },
    parts,
  );
}

function marks(end, width) {
  const steps = [
    0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 21600, 43200, 86400,
  ];
  const most = Math.max(2, width / 110);
  const step = steps.find((one) => end / one <= most) ?? 86400 * Math.ceil(end / 86400 / most);
  const found = [];
  for (let at = 0; at <= end; at += step) found.push(at);
  return found;
}
