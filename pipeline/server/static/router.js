// Addresses behind the #: names are escaped, parameters follow a question mark.

/** Return the address of a page. */
export function link(names, query = {}) {
  const path = names.map((name) => encodeURIComponent(name)).join("/");
  const asked = new URLSearchParams();
  for (const [name, given] of Object.entries(query)) {
    if (given !== null && given !== undefined && given !== "") asked.set(name, given);
  }
  const text = asked.toString();
  return `#/${path}${text ? `?${text}` : ""}`;
}

/** Return {names, query} of an address; a part that cannot be decoded is taken as it is. */
export function parsed(hash) {
  const text = hash.replace(/^#\/?/, "");
  const at = text.indexOf("?");
  const path = at < 0 ? text : text.slice(0, at);
  const names = path.split("/").filter(Boolean).map(decoded);
  return { names, query: Object.fromEntries(new URLSearchParams(at < 0 ? "" : text.slice(at + 1))) };
}

/** Note parameters in the address without opening the page anew. */
export function remember(names, query) {
  history.replaceState(null, "", link(names, query));
}

/** Return the view of an address and what it shows, null if there is none. */
export function routed({ names }) {
  const [first, run, part, ...rest] = names;
  if (!names.length || (names.length === 1 && first === "runs")) return { view: "runs" };
  if (first === "compare" && names.length === 1) return { view: "compare" };
  if (first !== "runs") return null;
  if (names.length === 2) return { view: "run", run };
  if (part === "kernels" && rest.length === 1) return { view: "kernel", run, kernel: rest[0] };
  if (part === "kernels" && rest.length === 2 && rest[1] === "spectrum")
    return { view: "spectrum", run, kernel: rest[0] };
  if (part === "samples" && rest.length === 2) return { view: "sample", run, split: rest[0], sample: rest[1] };
  return null;
}

function decoded(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}
