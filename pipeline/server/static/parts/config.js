// A configuration as text a person can read and copy.

import { el, put } from "../dom.js";

/** Write a document as YAML; texts are quoted where they could be taken for something else. */
function yaml(document, depth = 0) {
  const pad = "  ".repeat(depth);
  if (Array.isArray(document)) {
    if (!document.length) return `${pad}[]`;
    if (document.every((item) => !nested(item))) return document.map((item) => `${pad}- ${scalar(item)}`).join("\n");
    return document.map((item) => `${pad}- ${yaml(item, depth + 1).trimStart()}`).join("\n");
  }
  if (!nested(document)) return `${pad}${scalar(document)}`;
  const entries = Object.entries(document);
  if (!entries.length) return `${pad}{}`;
  return entries
    .map(([key, item]) => {
      const full = nested(item) && Object.keys(item).length > 0;
      return full ? `${pad}${scalar(key)}:\n${yaml(item, depth + 1)}` : `${pad}${scalar(key)}: ${yaml(item)}`;
    })
    .join("\n");
}

/** Sections that open and close, and a button that copies all of it. */
export function configView(config) {
  const whole = `${yaml(config)}\n`;
  const said = el("span", { class: "soft small", role: "status" });
  const copy = async () => {
    try {
      await navigator.clipboard.writeText(whole);
      put(said, "Copied.");
    } catch {
      put(said, "This browser does not let a page copy here: select the text instead.");
    }
  };
  const plain = Object.entries(config).filter(([, item]) => !nested(item));
  const sections = Object.entries(config).filter(([, item]) => nested(item) && Object.keys(item).length);
  return el(
    "div",
    { class: "config" },
    el("div", { class: "row" }, el("button", { type: "button", on: { click: copy } }, "Copy as YAML"), said),
    plain.length ? el("pre", {}, yaml(Object.fromEntries(plain))) : null,
    sections.map(([name, item]) =>
      el(
        "details",
        {},
        el("summary", {}, name, el("span", { class: "soft small" }, ` ${summary(item)}`)),
        el("pre", { tabindex: 0, "aria-label": `Section ${name}` }, yaml(item)),
      ),
    ),
  );
}

function summary(item) {
  if (!Array.isArray(item))
    return item.kind ? String(item.kind) : Object.keys(item).length > 4 ? "" : Object.keys(item).join(", ");
  return item
    .map((one) => (nested(one) ? one.name || one.kind || "" : one))
    .filter(Boolean)
    .join(", ");
}

function nested(item) {
  return typeof item === "object" && item !== null;
}

function scalar(item) {
  if (item === null) return "null";
  if (typeof item !== "string") return String(item);
  const plain =
    /^[A-Za-z_][\w./@+-]*( [\w./@+-]+)*$/.test(item) && !/^(null|true|false|yes|no|on|off|y|n)$/i.test(item);
  return plain ? item : JSON.stringify(item);
}
