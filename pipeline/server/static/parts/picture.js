// Pictures of samples. They are fetched with the token in a header and shown from memory.

import { address, picture } from "../api.js";
import { el, put } from "../dom.js";
import { loadedSample } from "../model.js";

const MOST = 400;
const kept = new Map();
const kinds = new Map();

/** How samples of a split are shown: "image", "text" or "none"; asked once, and waited for. */
function shownAs(run, split, signal) {
  const key = JSON.stringify([run, split]);
  if (!kinds.has(key)) {
    const asked = loadedSample(run, split, "0", signal).then(
      (sample) => sample.shown_as,
      (error) => {
        kinds.delete(key);
        if (error.name === "AbortError") throw error;
        return "none";
      },
    );
    kinds.set(key, asked);
  }
  return kinds.get(key);
}

/** A frame that gets a sample's picture when there is one. */
export function samplePicture(run, split, position, name, signal, { large = false, known } = {}) {
  const frame = el("span", { class: large ? "picture large" : "picture" });
  fill(frame, run, split, position, name, signal, known);
  return frame;
}

async function fill(frame, run, split, position, name, signal, known) {
  try {
    const kind = known ?? (await shownAs(run, split, signal));
    if (kind !== "image") {
      put(frame, el("span", { class: "none", "aria-hidden": "true" }, kind === "text" ? "text" : "no picture"));
      return;
    }
    const source = await fetched(
      address(["runs", run, "splits", split, "samples", String(position), "picture"]),
      signal,
    );
    const image = el("img", { src: source, alt: `Picture of ${name}` });
    await image.decode().catch(() => {});
    if (image.naturalWidth && image.naturalWidth <= 128) image.classList.add("pixels");
    put(frame, image);
  } catch (error) {
    if (error.name !== "AbortError") put(frame, el("span", { class: "none", title: error.message }, "no picture"));
  }
}

async function fetched(path, signal) {
  const found = kept.get(path);
  if (found) {
    kept.delete(path);
    kept.set(path, found);
    return found;
  }
  const source = URL.createObjectURL(await picture(path, { signal }));
  kept.set(path, source);
  if (kept.size > MOST) {
    const [oldest, gone] = kept.entries().next().value;
    kept.delete(oldest);
    URL.revokeObjectURL(gone);
  }
  return source;
}
