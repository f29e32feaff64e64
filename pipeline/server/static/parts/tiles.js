// Tiles of a picture pyramid: fetched a few at a time, the newest wishes first, kept while there is room.

import { ask, pause } from "../api.js";

export const TILE = 256;
const AT_ONCE = 6;
const MOST = 400;
const TRIES = 60;

export class Tiles {
  /**
   * `overview`: what the service says of the pyramid. `path`: (level, row, column) -> address.
   * `arrived` is called when there is more to draw, `failed` with what went wrong.
   */
  constructor(overview, path, signal, arrived, failed) {
    this.levels = overview.levels;
    this.finest = Math.min(overview.levels - 1, overview.finest ?? overview.levels - 1);
    this.rows = overview.rows;
    this.columns = overview.columns;
    this.path = path;
    this.signal = signal;
    this.arrived = arrived;
    this.failed = failed;
    this.kept = new Map();
    this.wished = [];
    this.busy = new Map();
    /** Those that could not be had; they are not asked for until `again` is called. */
    this.lost = new Set();
    /** Tiles of an earlier picture of the same matrix, shown until newer ones are here. */
    this.earlier = null;
  }

  /** Entries along a side of a pixel. */
  entries(level) {
    return 2 ** (this.levels - 1 - level);
  }

  /** The level whose pixels are about as large as those of the screen. */
  level(pixelsPerEntry) {
    const wanted = Math.ceil(this.levels - 1 + Math.log2(pixelsPerEntry) - 0.4);
    return Math.max(0, Math.min(this.finest, wanted));
  }

  /** Tiles of a level that touch a range of entries. */
  within(level, top, left, bottom, right) {
    const side = TILE * this.entries(level);
    const found = [];
    const last = (end, size) => Math.min(Math.ceil(end / side), Math.ceil(size / side));
    for (let row = Math.max(0, Math.floor(top / side)); row < last(bottom, this.rows); row += 1) {
      for (let column = Math.max(0, Math.floor(left / side)); column < last(right, this.columns); column += 1) {
        found.push({ level, row, column });
      }
    }
    return found;
  }

  /** Return a tile's bitmap if it is here. */
  get(tile) {
    const key = name(tile);
    const found = this.kept.get(key);
    if (found) {
      this.kept.delete(key);
      this.kept.set(key, found);
    }
    return found ?? null;
  }

  /** Return what stands in for a tile that is not here: an earlier one, or the part of a coarser one that covers it. */
  cover(tile) {
    const bitmap = this.earlier?.get(tile);
    return bitmap ? { bitmap, x: 0, y: 0, size: TILE } : (this.#coarser(tile) ?? this.earlier?.cover(tile) ?? null);
  }

  #coarser(tile) {
    for (let up = 1; up <= tile.level; up += 1) {
      const parts = 2 ** up;
      const above = {
        level: tile.level - up,
        row: Math.floor(tile.row / parts),
        column: Math.floor(tile.column / parts),
      };
      const bitmap = this.get(above);
      if (bitmap) {
        const size = TILE / parts;
        return { bitmap, x: (tile.column % parts) * size, y: (tile.row % parts) * size, size };
      }
    }
    return null;
  }

  /** Say what is on screen now: what was wished for before and is not seen any more is not fetched. */
  wish(tiles) {
    const isHere = (key) => this.kept.has(key) || this.busy.has(key) || this.lost.has(key);
    this.wished = tiles.filter((tile) => !isHere(name(tile)));
    const wanted = new Set(tiles.map(name));
    for (const [key, fetching] of this.busy) if (!wanted.has(key)) fetching.abort();
    this.#next();
  }

  /** Ask once more for what could not be had. */
  again() {
    this.lost.clear();
    this.arrived();
  }

  /** Whether everything that was wished for is here, or cannot be had. */
  get settled() {
    return !this.wished.length && !this.busy.size;
  }

  #next() {
    while (this.wished.length && this.busy.size < AT_ONCE && !this.signal.aborted) this.#fetch(this.wished.shift());
  }

  async #fetch(tile) {
    const fetching = new AbortController();
    const leave = () => fetching.abort();
    this.signal.addEventListener("abort", leave);
    this.busy.set(name(tile), fetching);
    try {
      const bitmap = await this.#bitmap(tile, fetching.signal);
      this.kept.set(name(tile), bitmap);
      if (this.kept.size > MOST) {
        const [oldest, gone] = this.kept.entries().next().value;
        this.kept.delete(oldest);
        gone.close();
      }
    } catch (error) {
      if (error.name !== "AbortError") {
        this.lost.add(name(tile));
        this.failed(error);
      }
    } finally {
      this.signal.removeEventListener("abort", leave);
      this.busy.delete(name(tile));
      if (!this.signal.aborted) {
        this.#next();
        this.arrived();
      }
    }
  }

  async #bitmap(tile, signal) {
    for (let tries = 0; tries < TRIES; tries += 1) {
      const answer = await ask(this.path(tile), { signal, accept: "image/png" });
      if (answer.status !== 202) return createImageBitmap(await answer.blob());
      // Another process behind the same address is still making the picture.
      await pause(1, signal);
    }
    throw new Error("The picture does not get ready.");
  }
}

function name(tile) {
  return `${tile.level}/${tile.row}/${tile.column}`;
}
