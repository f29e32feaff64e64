// A matrix of any size as a picture that can be moved and magnified, by pointer, wheel, fingers and keyboard.

import { el } from "../dom.js";
import { LEFT, TOP, drawGroups, drawNames } from "./mapaxes.js";
import { TILE } from "./tiles.js";

/** Pixels by which a pointer may move while it clicks. */
const CLICK = 4;

/** Of the screen, by which an arrow key moves. */
const STEP = 0.2;

const ZOOM = 1.6;

export class Heatmap {
  /**
   * `overview`: its groups are marked along the axes. `hovered` is told {row, column} or null, and whether by keyboard;
   * `picked` the entry that was clicked or entered.
   */
  constructor(host, { view, overview, label, signal, hovered, picked }) {
    this.view = view;
    this.overview = overview;
    this.tiles = null;
    this.signal = signal;
    this.hovered = hovered;
    this.picked = picked;
    this.cursor = null;
    this.byKeyboard = false;
    this.pointers = new Map();
    this.frame = 0;
    this.canvas = el("canvas", {
      tabindex: 0,
      role: "application",
      "aria-label": label,
      "aria-describedby": "map-help",
      class: "map",
    });
    host.append(this.canvas);
    this.#listen();
    view.listen(() => this.redraw(), signal);
    document.addEventListener("theme", () => this.redraw(), { signal });
    const sized = new ResizeObserver(() => this.#resize());
    sized.observe(this.canvas);
    signal.addEventListener("abort", () => sized.disconnect());
  }

  /** Draw from a pyramid; what was there is forgotten. */
  use(tiles, overview) {
    this.tiles = tiles;
    this.overview = overview;
    this.redraw();
  }

  /** Draw at the next frame. */
  redraw() {
    if (this.frame || this.signal.aborted) return;
    this.frame = requestAnimationFrame(() => {
      this.frame = 0;
      this.#draw();
    });
  }

  /** Entries along a side of a pixel of the level on screen, and that level. */
  get level() {
    return this.tiles ? this.tiles.level(this.view.scale * devicePixelRatio) : 0;
  }

  #resize() {
    const { clientWidth, clientHeight } = this.canvas;
    if (!clientWidth || !clientHeight) return;
    this.canvas.width = Math.round(clientWidth * devicePixelRatio);
    this.canvas.height = Math.round(clientHeight * devicePixelRatio);
    this.view.resize(clientWidth - LEFT, clientHeight - TOP);
    this.redraw();
  }

  #draw() {
    const { canvas, view } = this;
    const context = canvas.getContext("2d");
    const ratio = devicePixelRatio;
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, canvas.width, canvas.height);
    const style = getComputedStyle(canvas);
    const colour = (name) => style.getPropertyValue(name).trim();
    context.save();
    context.beginPath();
    context.rect(LEFT, TOP, view.width, view.height);
    context.clip();
    if (this.tiles) this.#drawTiles(context, ratio);
    drawGroups(context, view, this.overview, colour("--ink"));
    if (this.cursor) this.#drawCursor(context, colour("--page"), colour("--ink"));
    context.restore();
    context.font = `11px ${style.fontFamily}`;
    drawNames(context, view, this.overview, colour("--soft"));
    canvas.dataset.settled = String(Boolean(this.tiles?.settled));
    canvas.dataset.entry = this.cursor ? `${this.cursor.row},${this.cursor.column}` : "";
  }

  #drawTiles(context, ratio) {
    const { view, tiles } = this;
    const { level } = this;
    const bottom = view.top + view.height / view.scale;
    const right = view.left + view.width / view.scale;
    const wanted = tiles.within(level, view.top, view.left, bottom, right);
    tiles.wish([...tiles.within(0, 0, 0, tiles.rows, tiles.columns), ...nearFirst(wanted)]);
    const side = TILE * tiles.entries(level);
    const snap = (at) => Math.round(at * ratio) / ratio;
    for (const tile of wanted) {
      const x = snap(LEFT + (tile.column * side - view.left) * view.scale);
      const y = snap(TOP + (tile.row * side - view.top) * view.scale);
      const width = snap(LEFT + ((tile.column + 1) * side - view.left) * view.scale) - x;
      const height = snap(TOP + ((tile.row + 1) * side - view.top) * view.scale) - y;
      const bitmap = tiles.get(tile);
      const from = bitmap ? { bitmap, x: 0, y: 0, size: TILE } : tiles.cover(tile);
      if (!from) continue;
      // Entries have edges; pixels that stand for many are averaged when they are made smaller.
      context.imageSmoothingEnabled = (width * ratio) / from.size < 1;
      context.imageSmoothingQuality = "high";
      context.drawImage(from.bitmap, from.x, from.y, from.size, from.size, x, y, width, height);
    }
  }

  #drawCursor(context, page, ink) {
    const { view, cursor } = this;
    const size = Math.max(view.scale, 7);
    const x = LEFT + (cursor.column + 0.5 - view.left) * view.scale;
    const y = TOP + (cursor.row + 0.5 - view.top) * view.scale;
    for (const [colour, width] of [
      [page, 4],
      [ink, 1.5],
    ]) {
      context.strokeStyle = colour;
      context.lineWidth = width;
      context.strokeRect(x - size / 2, y - size / 2, size, size);
      if (!this.byKeyboard) continue;
      context.beginPath();
      context.moveTo(x - size / 2 - 10, y);
      context.lineTo(x - size / 2, y);
      context.moveTo(x + size / 2, y);
      context.lineTo(x + size / 2 + 10, y);
      context.moveTo(x, y - size / 2 - 10);
      context.lineTo(x, y - size / 2);
      context.moveTo(x, y + size / 2);
      context.lineTo(x, y + size / 2 + 10);
      context.stroke();
    }
  }

  #listen() {
    const { canvas } = this;
    const on = (name, heard, options) => canvas.addEventListener(name, heard, { signal: this.signal, ...options });
    on("wheel", (event) => this.#wheel(event), { passive: false });
    on("pointerdown", (event) => this.#down(event));
    on("pointermove", (event) => this.#move(event));
    on("pointerup", (event) => this.#up(event));
    on("pointercancel", (event) => this.pointers.delete(event.pointerId));
    on("pointerleave", () => !this.byKeyboard && this.#point(null));
    on("dblclick", (event) => this.view.zoom(ZOOM * ZOOM, ...this.#at(event)));
    on("keydown", (event) => this.#key(event));
    on("focus", () => this.#reached());
    on("blur", () => this.byKeyboard && this.#point(null));
  }

  #at(event) {
    const frame = this.canvas.getBoundingClientRect();
    return [event.clientX - frame.left - LEFT, event.clientY - frame.top - TOP];
  }

  #wheel(event) {
    event.preventDefault();
    const lines = event.deltaMode === 1 ? 30 : 1;
    this.view.zoom(Math.exp(-Math.max(-240, Math.min(240, event.deltaY * lines)) / 300), ...this.#at(event));
  }

  #down(event) {
    this.canvas.setPointerCapture(event.pointerId);
    this.pointers.set(event.pointerId, { at: this.#at(event), moved: 0 });
  }

  #move(event) {
    const at = this.#at(event);
    const held = this.pointers.get(event.pointerId);
    if (!held) {
      this.byKeyboard = false;
      this.#point(this.#inside(at) ? this.view.entry(...at) : null);
      return;
    }
    const before = this.#spread();
    const [across, down] = [at[0] - held.at[0], at[1] - held.at[1]];
    held.moved += Math.abs(across) + Math.abs(down);
    held.at = at;
    if (this.pointers.size === 1) {
      if (held.moved > CLICK) this.view.pan(-across, -down);
      return;
    }
    const after = this.#spread();
    this.view.pan(-across / this.pointers.size, -down / this.pointers.size);
    if (before.length > 1) this.view.zoom(after.length / before.length, ...after.middle);
  }

  #up(event) {
    const held = this.pointers.get(event.pointerId);
    this.pointers.delete(event.pointerId);
    if (!held || held.moved > CLICK || event.button !== 0) return;
    const entry = this.#inside(held.at) ? this.view.entry(...held.at) : null;
    this.byKeyboard = false;
    this.#point(entry);
    if (entry) this.picked(entry);
  }

  /** How far two fingers are apart, and where their middle is. */
  #spread() {
    const [one, other] = [...this.pointers.values()].map((pointer) => pointer.at);
    if (!other) return { length: 0, middle: one };
    return {
      length: Math.hypot(one[0] - other[0], one[1] - other[1]),
      middle: [(one[0] + other[0]) / 2, (one[1] + other[1]) / 2],
    };
  }

  #inside([x, y]) {
    return x >= 0 && y >= 0 && x < this.view.width && y < this.view.height;
  }

  /** Whoever comes by keyboard is told at once what stands in the middle. */
  #reached() {
    if (!this.view.scale || !this.canvas.matches(":focus-visible")) return;
    this.byKeyboard = true;
    this.#point(this.view.middle, true);
  }

  #key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const { view } = this;
    const far = event.shiftKey ? 1 / view.scale : STEP;
    const by = (across, down) =>
      event.shiftKey ? this.#stepCursor(across, down) : view.pan(across * far * view.width, down * far * view.height);
    const actions = {
      ArrowLeft: () => by(-1, 0),
      ArrowRight: () => by(1, 0),
      ArrowUp: () => by(0, -1),
      ArrowDown: () => by(0, 1),
      "+": () => view.zoom(ZOOM),
      "=": () => view.zoom(ZOOM),
      "-": () => view.zoom(1 / ZOOM),
      _: () => view.zoom(1 / ZOOM),
      0: () => view.fit(),
      Home: () => view.fit(),
      Enter: () => this.picked(this.cursor ?? view.middle),
    };
    const action = actions[event.key];
    if (!action) return;
    event.preventDefault();
    action();
    this.byKeyboard = true;
    if (!event.shiftKey && event.key !== "Enter") this.#point(view.middle, true);
  }

  /** Move the mark by entries (by pixels where they are smaller), and the screen with it. */
  #stepCursor(across, down) {
    const { view } = this;
    const step = Math.max(1, Math.round(1 / view.scale));
    const from = this.cursor ?? view.middle;
    const clamp = (at, size) => Math.max(0, Math.min(size - 1, at));
    const entry = {
      row: clamp(from.row + down * step, view.rows),
      column: clamp(from.column + across * step, view.columns),
    };
    const [x, y] = [(entry.column + 0.5 - view.left) * view.scale, (entry.row + 0.5 - view.top) * view.scale];
    if (!this.#inside([x, y])) view.show(entry.row, entry.column);
    this.#point(entry, true);
  }

  /** Mark an entry, and say so. */
  #point(entry, keyboard = false) {
    const same = entry?.row === this.cursor?.row && entry?.column === this.cursor?.column;
    this.cursor = entry;
    this.redraw();
    if (!same || keyboard) this.hovered(entry, keyboard);
  }

  /** Mark an entry that another map points at. */
  mark(entry) {
    this.cursor = entry;
    this.redraw();
  }
}

/** Tiles nearer to the middle come first. */
function nearFirst(tiles) {
  if (!tiles.length) return tiles;
  const middle = (name) => (tiles[0][name] + tiles[tiles.length - 1][name]) / 2;
  const [row, column] = [middle("row"), middle("column")];
  const far = (tile) => Math.abs(tile.row - row) + Math.abs(tile.column - column);
  return [...tiles].sort((one, other) => far(one) - far(other));
}
