// What a run's manifest says, in the terms of these pages.

import { address, json } from "./api.js";

/** Return the manifest of a run. */
export async function manifestOf(run, signal) {
  return (await json(address(["runs", run]), { signal })).manifest;
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

/** The pairs of splits of a kernel that the explorer can draw. */
export function pairsOf(geometry) {
  return geometry.pairs;
}

/** Splits whose samples have neighbours: they are rows of a matrix with the training samples. */
export function askedSplits(geometry) {
  const splits = geometry.pairs.filter(([, columns]) => columns === geometry.train_split).map(([rows]) => rows);
  return [...new Set([geometry.train_split, ...splits])].filter((split) => split in geometry.splits);
}

/** Splits on which a solution predicts. */
export function predictedSplits(geometry, solution) {
  const at = geometry.solutions.indexOf(solution);
  return geometry.solution_splits[at] ?? askedSplits(geometry);
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
