// Runs whose kernels can be compared: those that are named are opened by their manifests, others are listed when asked for.

import { address, json, Problem } from "../api.js";
import { comparableKernels, manifestOf, references } from "../model.js";

/** Runs that are listed at once; the service counts the receipts of each. */
const PAGE = 50;

const WHY = "has several rows per sample, or is not stored between the training samples";

export class ComparableRuns {
  constructor(signal) {
    this.signal = signal;
    this.opened = new Map();
    this.known = new Set();
    /** The name behind which the listing goes on; null once all are listed. */
    this.after = "";
  }

  /** Those that can be chosen: they have kernels to compare, as far as is known. */
  get names() {
    return [...this.known].filter((run) => this.opened.get(run)?.kernels.length !== 0);
  }

  /** Return {run, geometry, kernels} of a run: its kernels that can be compared, at least one. */
  async open(run) {
    const found = await this.#opened(run);
    if (!found.kernels.length)
      throw new Problem(422, { kind: "config", detail: `Run ${run} has no kernel that can be compared: each ${WHY}.` });
    return found;
  }

  /** Return a kernel of a run if it can be compared. */
  checked({ run, geometry, kernels }, kernel) {
    if (!references(geometry).includes(kernel))
      throw new Problem(404, { kind: "not-found", detail: `Run ${run} has no kernel ${kernel}.` });
    if (!kernels.includes(kernel))
      throw new Problem(422, {
        kind: "config",
        detail: `Kernel ${kernel} of run ${run} cannot be compared: it ${WHY}. Those that can: ${kernels.join(", ")}.`,
      });
    return kernel;
  }

  /** Return the first run of the listing that has a kernel to compare, null if none has. */
  async first() {
    while (this.after !== null) {
      for (const name of await this.list()) {
        const found = await this.#listed(name);
        if (found?.kernels.length) return found;
      }
    }
    return null;
  }

  /** List more runs; returns their names. */
  async list() {
    const query = { limit: PAGE, after: this.after };
    const { runs, next } = await json(address(["runs"], query), { signal: this.signal });
    this.after = next;
    const found = runs.filter((run) => run.kernels?.length).map((run) => run.run);
    for (const run of found) this.known.add(run);
    return found;
  }

  /** A run that was listed, null if it is gone meanwhile. */
  async #listed(run) {
    try {
      return await this.#opened(run);
    } catch (error) {
      if (error.status === 404) return null;
      throw error;
    }
  }

  async #opened(run) {
    if (!this.opened.has(run)) {
      const { geometry } = await manifestOf(run, this.signal);
      this.opened.set(run, { run, geometry, kernels: comparableKernels(geometry) });
      this.known.add(run);
    }
    return this.opened.get(run);
  }
}
