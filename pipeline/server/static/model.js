// What a run's manifest says, in the terms of these pages.

import { address, json, pause } from "./api.js";

/** Seconds after which a sample is asked for again whose data set is being loaded. */
const LOADING = 1;

/** Return the manifest of a run. */
export async function manifestOf(run, signal) {
  return (await json(address(["runs", run]), { signal })).manifest;
}

/** What is known of a sample; how it is shown may still be "loading". */
export function sampleOf(run, split, sample, signal) {
  return json(address(["runs", run, "splits", split, "samples", sample]), { signal });
}

/** What is known of a sample once its data set is loaded. */
export async function loadedSample(run, split, sample, signal) {
  for (;;) {
    const told = await sampleOf(run, split, sample, signal);
    if (told.shown_as !== "loading") return told;
    await pause(LOADING, signal);
  }
}

/** Every kernel matrix: NAME, or NAME@MEMBER. */
export function references(geometry) {
  return geometry.kernels.flatMap((kernel) =>
    kernel.members.length && !kernel.cross ? kernel.members.map((member) => `${kernel.name}@${member}`) : [kernel.name],
  );
}

/** The geometry of the kernel that a reference names. */
export function kernelOf(geometry, reference) {
  const name = reference.split("@")[0];
  return geometry.kernels.find((kernel) => kernel.name === name) ?? null;
}

/** All splits, the training split first. */
export function splitsOf(geometry) {
  return [...new Set([geometry.train_split, ...Object.keys(geometry.splits)])];
}

/** Whether a kernel is stored between two splits; a symmetric one is also read as a transpose. */
export function isStored(geometry, kernel, rows, columns) {
  const has = (one, other) => geometry.pairs.some((pair) => pair[0] === one && pair[1] === other);
  return has(rows, columns) || (kernel.symmetric && has(columns, rows));
}

/** Whether a kernel has a spectrum: it is symmetric, and stored between the training samples. */
export function hasSpectrum(geometry, kernel) {
  return kernel.symmetric && isStored(geometry, kernel, geometry.train_split, geometry.train_split);
}

/** Whether a kernel can be compared with another: it has one row per training sample. */
export function isComparable(geometry, kernel) {
  return kernel.width === 1 && isStored(geometry, kernel, geometry.train_split, geometry.train_split);
}

/** The kernel matrices that can be compared. */
export function comparableKernels(geometry) {
  return references(geometry).filter((name) => isComparable(geometry, kernelOf(geometry, name)));
}

/** Whether the samples of a split have classes. */
export function hasClasses(geometry, split) {
  return geometry.splits[split].labels === "classes";
}

/** Splits on which a solution predicts. */
export function predictedSplits(geometry, solution) {
  const paired = geometry.pairs.filter(([, columns]) => columns === geometry.train_split).map(([rows]) => rows);
  return geometry.solution_splits[geometry.solutions.indexOf(solution)] ?? paired;
}

/** What a kernel is, in words. */
export function kernelWords(kernel) {
  const words = [kernel.kind];
  if (kernel.cosine) words.push("cosine");
  if (kernel.feature_dim)
    words.push(kernel.sketched ? `projected to ${kernel.feature_dim}` : `${kernel.feature_dim} features`);
  if (!kernel.feature_dim && !kernel.derived) words.push("exact");
  if (kernel.derived) words.push(`made of ${kernel.parents.join(", ")}`);
  if (kernel.groups.length) words.push(`${kernel.groups.length} layers`);
  if (kernel.width > 1) words.push(`${kernel.width} outputs`);
  if (kernel.members.length) words.push(`members ${kernel.members.join(", ")}`);
  return words.join(", ");
}

/** A label as text; targets are rounded. */
export function labelText(label) {
  if (label === null || label === undefined) return "none";
  if (Array.isArray(label))
    return `(${label
      .slice(0, 4)
      .map((one) => Number(one).toPrecision(3))
      .join(", ")}${label.length > 4 ? ", …" : ""})`;
  return String(label);
}
