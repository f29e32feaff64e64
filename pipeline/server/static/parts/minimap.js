// All of a matrix in small, with a frame around what is on screen.

import { el } from "../dom.js";

const SIDE = 132;

/** Build it; a click moves the view. It is for pointers only: keys move the map itself. */
export function minimap(view, tiles, signal) {
  const size = Math.max(view.rows, view.columns);
  const [width, height] = [Math.max(8, (SIDE * view.columns) / size), Math.max(8, (SIDE * view.rows) / size)];
  const canvas = el("canvas", {
    class: "minimap",
    "aria-hidden": "true",
    width: Math.round(2 * width),
    height: Math.round(2 * height),
    css: { width: `${width}px`, height: `${height}px` },
  });
  const draw = () => {
    const context = canvas.getContext("2d");
    context.setTransform(2, 0, 0, 2, 0, 0);
    context.clearRect(0, 0, width, height);
    const whole = tiles().get({ level: 0, row: 0, column: 0 });
    const entries = tiles().entries(0);
    if (whole) context.drawImage(whole, 0, 0, view.columns / entries, view.rows / entries, 0, 0, width, height);
    const ratio = width / view.columns;
    const box = [
      Math.max(0, view.left) * ratio,
      Math.max(0, view.top) * ratio,
      Math.min(view.columns, view.width / view.scale) * ratio,
      Math.min(view.rows, view.height / view.scale) * ratio,
    ];
    const style = getComputedStyle(canvas);
    for (const [name, line] of [
      ["--page", 3],
      ["--accent", 1.5],
    ]) {
      context.strokeStyle = style.getPropertyValue(name).trim();
      context.lineWidth = line;
      context.strokeRect(box[0], box[1], Math.max(3, box[2]), Math.max(3, box[3]));
    }
  };
  const move = (event) => {
    if (event.type === "pointermove" && !event.buttons) return;
    const frame = canvas.getBoundingClientRect();
    view.show(
      ((event.clientY - frame.top) / height) * view.rows,
      ((event.clientX - frame.left) / width) * view.columns,
    );
  };
  canvas.addEventListener("pointerdown", move);
  canvas.addEventListener("pointermove", move);
  view.listen(draw, signal);
  document.addEventListener("theme", draw, { signal });
  draw();
  return { node: canvas, draw };
}
