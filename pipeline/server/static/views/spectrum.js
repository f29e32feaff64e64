// Eigenvalues of kernels, and how much of the labels their eigenvectors explain.

import { address, Problem, ready } from "../api.js";
import { el, put } from "../dom.js";
import { count, percent, value } from "../format.js";
import { hasSpectrum, kernelOf, manifestOf, references } from "../model.js";
import { checks, choice } from "../parts/forms.js";
import { plot } from "../parts/plot.js";
import { empty, loading, problem } from "../parts/states.js";
import { table } from "../parts/table.js";
import { link, remember } from "../router.js";

const SIZES = [250, 500, 1000, 2000, 4000];
const FIRST = 500;
const MOST_KERNELS = 4;

/** Samples of a run of which every spectrum takes the service a while, so that only the wanted one is asked for. */
const MANY = 10_000;

const FLOOR = 1e-12;
const ROWS = [1, 2, 3, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 4000];

export async function show(page, { run, kernel }) {
  page.title("Spectrum", kernel, run);
  page.crumbs(
    { text: run, href: link(["runs", run]) },
    { text: kernel, href: link(["runs", run, "kernels", kernel]) },
    { text: "Spectrum" },
  );
  put(page.content, el("h1", {}, "Spectrum"), loading("the run"));
  const { geometry } = await manifestOf(run, page.signal);
  if (!references(geometry).includes(kernel))
    throw new Problem(404, { kind: "not-found", detail: `This run has no kernel ${kernel}.` });
  const possible = references(geometry).filter((name) => hasSpectrum(geometry, kernelOf(geometry, name)));
  if (!possible.includes(kernel)) {
    put(
      page.content,
      el("h1", {}, "Spectrum"),
      empty(
        kernelOf(geometry, kernel).symmetric
          ? `${kernel} is not stored between the training samples, so there is no spectrum.`
          : `${kernel} is not symmetric, so it has no spectrum of this kind.`,
      ),
    );
    return;
  }
  const num = geometry.splits[geometry.train_split].num_samples;
  const asked = page.query.kernels?.split(",").filter((name) => possible.includes(name));
  const state = {
    kernels: asked ?? [kernel, ...possible.filter((name) => name !== kernel)].slice(0, num > MANY ? 1 : MOST_KERNELS),
    size: Number(page.query.size) || FIRST,
    cosine: page.query.transforms === "cosine",
  };
  const host = el("div");
  const controls = el("div", { class: "controls" });
  put(page.content, el("h1", {}, "Spectrum"), controls, host);
  let drawing = null;
  const change = (changes) => {
    Object.assign(state, changes);
    remember(["runs", run, "kernels", kernel, "spectrum"], {
      kernels: state.kernels.join(","),
      size: state.size,
      transforms: state.cosine ? "cosine" : "",
    });
    drawing?.abort();
    drawing = new AbortController();
    page.signal.addEventListener("abort", () => drawing.abort());
    draw(host, run, geometry, state, drawing.signal, possible);
  };
  const sizes = [...SIZES.filter((one) => one < num), ...(num <= SIZES[SIZES.length - 1] ? [num] : [])];
  put(
    controls,
    possible.length > 1
      ? checks(
          "Kernels",
          possible.map((name) => [name, name]),
          state.kernels,
          (kernels) => change({ kernels }),
        )
      : null,
    choice(
      "Samples",
      sizes.map((one) => [String(one), one === num ? `all ${count(one)}` : `${count(one)}, evenly spaced`]),
      String(state.size),
      (text) => change({ size: Number(text) }),
    ),
    checks("Transform", [["cosine", "Cosine"]], state.cosine ? ["cosine"] : [], (chosen) =>
      change({ cosine: chosen.length > 0 }),
    ),
  );
  change({
    size: sizes.includes(state.size) ? state.size : (sizes.find((one) => one >= FIRST) ?? sizes[sizes.length - 1]),
  });
}

async function draw(host, run, geometry, state, signal, possible) {
  const found = [];
  const failed = [];
  if (!state.kernels.length) {
    put(host, empty("No kernel is chosen."));
    return;
  }
  // One at a time: each of them costs the service a decomposition.
  for (const name of state.kernels) {
    put(host, found.length ? pictures(found) : null, loading(`the spectrum of ${name}`));
    const query = { max_samples: state.size, transforms: state.cosine ? "cosine" : "" };
    try {
      const told = await ready(address(["runs", run, "kernels", name, "spectrum"], query), { signal });
      found.push({ name, tone: possible.indexOf(name) % 8, ...told });
    } catch (error) {
      if (error.name === "AbortError") return;
      failed.push([name, error]);
    }
  }
  put(
    host,
    found.length ? pictures(found) : null,
    failures(failed, () => draw(host, run, geometry, state, signal, possible)),
  );
}

/** What went wrong, once for all kernels of which the same is told. */
function failures(failed, again) {
  const messages = [...new Set(failed.map(([, error]) => error.message))];
  return messages.map((message) => {
    const alike = failed.filter(([, error]) => error.message === message);
    return el("div", {}, el("h2", {}, alike.map(([name]) => name).join(", ")), problem(alike[0][1], again));
  });
}

function pictures(found) {
  const ranks = (numbers) => numbers.map((_, position) => position + 1);
  const spectra = found.map((one) => ({
    name: one.name,
    tone: one.tone,
    x: ranks(one.eigenvalues),
    y: one.eigenvalues,
  }));
  const aligned = found
    .filter((one) => one.label_energy)
    .map((one) => ({ name: one.name, tone: one.tone, x: ranks(one.label_energy), y: one.label_energy }));
  const num = found[0].eigenvalues.length;
  const sampled = found.some((one) => one.num_samples > one.eigenvalues.length);
  return [
    sampled
      ? el(
          "p",
          { class: "soft" },
          `Of ${count(num)} evenly spaced training samples out of ${count(found[0].num_samples)}.`,
        )
      : null,
    el(
      "div",
      { class: "pair" },
      el(
        "section",
        { class: "card" },
        el("h2", {}, "Eigenvalues"),
        plot(spectra, {
          x: { title: "rank", log: true },
          y: { title: "eigenvalue", log: true, floor: FLOOR },
          label: "Eigenvalues over their rank, both logarithmic",
        }),
      ),
      el(
        "section",
        { class: "card" },
        el("h2", {}, "Label alignment"),
        aligned.length
          ? plot(aligned, {
              x: { title: "eigenvectors", log: true },
              y: { title: "share of the labels", low: 0, high: 1 },
              label: "Share of the labels in the first eigenvectors",
            })
          : empty("The training samples have no labels."),
      ),
    ),
    el("h2", {}, "In numbers"),
    table(
      [
        { title: "Rank", kind: "number", cell: (rank) => count(rank) },
        ...found.flatMap((one) => [
          { title: `Eigenvalue, ${one.name}`, kind: "number", cell: (rank) => value(one.eigenvalues[rank - 1]) },
          ...(one.label_energy
            ? [{ title: `Labels, ${one.name}`, kind: "number", cell: (rank) => percent(one.label_energy[rank - 1]) }]
            : []),
        ]),
      ],
      [...new Set([...ROWS.filter((rank) => rank < num), num])],
      { caption: "Eigenvalues and label alignment by rank", hidden: true },
    ),
  ];
}
