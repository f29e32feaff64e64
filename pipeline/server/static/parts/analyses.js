// What analyses left: their pictures, and files to look at.

import { address, ask, json, picture } from "../api.js";
import { el, put } from "../dom.js";
import { problem, section } from "./states.js";
import { tabs } from "./tabs.js";

const LARGEST_TEXT = 200_000;

/** The analyses of a run as tabs: those that are made, all of them if that is null; the others are named. */
export function analyses(run, configured, made, signal) {
  const show = (panel, name) =>
    section(
      panel,
      "the analysis",
      signal,
      () => json(address(["runs", run, "analyses", name]), { signal }),
      (found) => files(run, name, found.files, signal),
    );
  const ready = configured.filter((name) => !made || made.has(name));
  return [
    ready.length
      ? tabs(
          "Analyses",
          ready.map((name) => ({ name, open: (panel) => show(panel, name) })),
        )
      : null,
    configured
      .filter((name) => !ready.includes(name))
      .map((name) => el("p", { class: "soft" }, `${name}: not finished yet.`)),
  ];
}

function files(run, name, found, signal) {
  const names = found.map((file) => file.split("/").pop());
  const of = (file) => address(["runs", run, "analyses", name, file]);
  return [
    names.filter((file) => file.endsWith(".png")).map((file) => drawn(of(file), `${name}: ${file}`, signal)),
    names
      .filter((file) => !file.endsWith(".png"))
      .map((file) => {
        const body = el("div");
        let asked = false;
        const open = () => {
          if (asked) return;
          asked = true;
          section(
            body,
            file,
            signal,
            async () => (await ask(of(file), { signal, accept: "*/*" })).text(),
            (text) =>
              el(
                "pre",
                { tabindex: 0, "aria-label": file },
                text.slice(0, LARGEST_TEXT),
                text.length > LARGEST_TEXT ? "\n…" : "",
              ),
          );
        };
        return el("details", { on: { toggle: open } }, el("summary", {}, file), body);
      }),
  ];
}

function drawn(path, name, signal) {
  const frame = el("figure", { class: "paper" });
  picture(path, { signal }).then(
    (blob) => {
      const source = URL.createObjectURL(blob);
      signal.addEventListener("abort", () => URL.revokeObjectURL(source));
      put(frame, el("img", { src: source, alt: name }));
    },
    (error) => error.name !== "AbortError" && put(frame, problem(error)),
  );
  return frame;
}
