// Which part of a matrix is on screen. Maps that share a view move together.

/** Pixels of an entry at the closest. */
const MOST = 64;

export class MapView {
  /** `rows` and `columns`: of the matrix. */
  constructor(rows, columns) {
    this.rows = rows;
    this.columns = columns;
    this.width = 0;
    this.height = 0;
    this.scale = 0;
    this.left = 0;
    this.top = 0;
    this.heard = new Set();
    this.fitted = true;
    this.first = null;
  }

  /** Call `listener` after every change, until the signal is aborted. */
  listen(listener, signal) {
    this.heard.add(listener);
    signal.addEventListener("abort", () => this.heard.delete(listener));
  }

  /** The map on screen has so many pixels. */
  resize(width, height) {
    if (width === this.width && height === this.height) return;
    const middle = this.scale
      ? [this.left + this.width / 2 / this.scale, this.top + this.height / 2 / this.scale]
      : null;
    this.width = width;
    this.height = height;
    if (this.first) this.show(...this.first);
    else if (this.fitted || !middle) this.fit();
    else this.#to(this.scale, middle[0] - width / 2 / this.scale, middle[1] - height / 2 / this.scale);
  }

  /** Begin at an entry instead of with all of the matrix; to be called before the map has a size. */
  begin(row, column, scale) {
    this.first = [row, column, scale];
  }

  /** Pixels of an entry when all of the matrix is seen. */
  get whole() {
    return Math.min(this.width / this.columns, this.height / this.rows);
  }

  /** Show all of the matrix. */
  fit() {
    this.#to(this.whole, 0, 0);
    this.fitted = true;
  }

  /** Move by pixels. */
  pan(across, down) {
    this.#to(this.scale, this.left + across / this.scale, this.top + down / this.scale);
  }

  /** Come closer around a pixel; the middle by default. */
  zoom(factor, x = this.width / 2, y = this.height / 2) {
    const scale = Math.max(this.whole, Math.min(MOST, this.scale * factor));
    const [column, row] = [this.left + x / this.scale, this.top + y / this.scale];
    this.#to(scale, column - x / scale, row - y / scale);
  }

  /** Put an entry into the middle, at so many pixels per entry. */
  show(row, column, scale = this.scale) {
    const bounded = Math.max(this.whole, Math.min(MOST, scale));
    this.#to(bounded, column + 0.5 - this.width / 2 / bounded, row + 0.5 - this.height / 2 / bounded);
  }

  /** The entry under a pixel, null beside the matrix. */
  entry(x, y) {
    const [column, row] = [Math.floor(this.left + x / this.scale), Math.floor(this.top + y / this.scale)];
    return row >= 0 && column >= 0 && row < this.rows && column < this.columns ? { row, column } : null;
  }

  /** The entry in the middle, or the nearest to it. */
  get middle() {
    const clamp = (at, size) => Math.max(0, Math.min(size - 1, Math.floor(at)));
    return {
      row: clamp(this.top + this.height / 2 / this.scale, this.rows),
      column: clamp(this.left + this.width / 2 / this.scale, this.columns),
    };
  }

  #to(scale, left, top) {
    this.first = null;
    this.scale = scale;
    this.left = bounded(left, this.columns, this.width / scale);
    this.top = bounded(top, this.rows, this.height / scale);
    this.fitted = scale <= this.whole * 1.0001;
    for (const listener of this.heard) listener();
  }
}

/** Keep the matrix on screen; what is smaller than the screen stands in its middle. */
function bounded(start, size, seen) {
  return seen >= size ? (size - seen) / 2 : Math.max(0, Math.min(size - seen, start));
}
