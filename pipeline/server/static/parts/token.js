// The dialog that asks for the bearer token, once however many requests wait for it.

import { el } from "../dom.js";

let open = null;

/** Show the dialog; `keep` gets the token. */
export function askToken(why, keep, signal) {
  open ??= shown(why, keep).finally(() => {
    open = null;
  });
  return signal ? Promise.race([open, left(signal)]) : open;
}

function shown(why, keep) {
  return new Promise((resolve) => {
    const input = el("input", {
      type: "password",
      id: "token",
      name: "token",
      autocomplete: "off",
      required: true,
      spellcheck: "false",
    });
    const given = (event) => {
      event.preventDefault();
      const text = input.value.trim();
      if (!text) return;
      keep(text);
      dialog.close();
      dialog.remove();
      resolve();
    };
    const form = el(
      "form",
      { on: { submit: given } },
      el("h2", { id: "token-title" }, "This service asks for a token"),
      el(
        "p",
        {},
        "Its operator has it: the text of the file given to ",
        el("code", {}, "ntkpipe serve --token-file"),
        ". This tab keeps it until it is closed.",
      ),
      why ? el("p", { class: "bad", role: "alert" }, why) : null,
      el("label", { for: "token" }, "Token"),
      input,
      el("div", { class: "row end" }, el("button", { type: "submit", class: "main" }, "Open")),
    );
    const dialog = el(
      "dialog",
      { "aria-labelledby": "token-title", on: { cancel: (event) => event.preventDefault() } },
      form,
    );
    document.body.append(dialog);
    dialog.showModal();
    input.focus();
  });
}

function left(signal) {
  return new Promise((_, reject) => {
    signal.addEventListener("abort", () => reject(new DOMException("left", "AbortError")), { once: true });
  });
}
