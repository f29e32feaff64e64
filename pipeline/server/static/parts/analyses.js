// What analyses left: their pictures, and files to look at.

import { address, ask, json, picture } from "../api.js";
import { el, put } from "../dom.js";
import { empty, problem, section } from "./states.js";
import { tabs } from "./tabs.js";

const LARGEST_TEXT = 200_000;

/** Show the analyses of a run as tabs. */
export function analyses(host, run, configured, signal) {
  if (!configured.length) return put(host, empty("No analysis was configured."));
  const show = (panel, name) =>
    section(
      panel,
      "the analysis",
      signal,
      () => json(address(["runs", run, "analyses", name]), { signal }),
      (found) => files(run, name, found.files, signal),
    );
  return put(
    host,
    tabs(
      "Analyses",
      configured.map((one) => ({ name: one.name || one.kind, open: (panel) => show(panel, one.name || one.kind) })),
    ),
  );
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
