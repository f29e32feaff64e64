// Small forms: every control has a label of its own.

import { el, put } from "../dom.js";

let made = 0;

/** A choice. Options: texts, or [value, text]. */
export function choice(title, options, chosen, changed) {
  const id = fresh();
  const items = options.map((option) => {
    const [value, text] = Array.isArray(option) ? option : [option, option];
    return el("option", { value, selected: value === chosen }, text);
  });
  const select = el("select", { id, on: { change: (event) => changed(event.target.value) } }, items);
  return el("div", { class: "field" }, el("label", { for: id }, title), select);
}

/** Several choices at once. */
export function checks(title, options, chosen, changed) {
  const boxes = options.map(([value, text]) =>
    el(
      "input",
      {
        type: "checkbox",
        value,
        checked: chosen.includes(value),
        on: { change: () => changed(boxes.filter((box) => box.checked).map((box) => box.value)) },
      },
      text,
    ),
  );
  return el(
    "fieldset",
    { class: "field" },
    el("legend", {}, title),
    el(
      "div",
      { class: "row" },
      boxes.map((box, position) => el("label", { class: "check" }, box, options[position][1])),
    ),
  );
}

/** A number that may be left out. `wrong`: the id of what is said against it. */
export function number(title, value, placeholder, changed, wrong = null) {
  const id = fresh();
  const input = el("input", {
    id,
    type: "number",
    step: "any",
    value: value ?? "",
    placeholder,
    class: "number",
    "aria-invalid": wrong ? "true" : null,
    "aria-describedby": wrong,
    on: { change: (event) => changed(event.target.value === "" ? null : Number(event.target.value)) },
  });
  return el("div", { class: "field" }, el("label", { for: id }, title), input);
}

/** Fill a host with controls anew: whoever was at one of them is at the new one of its kind, or at the first. */
export function renew(host, ...controls) {
  const before = host.contains(document.activeElement) ? place(document.activeElement) : null;
  put(host, ...controls);
  if (!before) return;
  const all = [...host.querySelectorAll("select, input, button, summary")];
  (all.find((control) => place(control) === before) ?? all[0])?.focus();
}

/** Which control it is, in words that a new one of its kind has, too. */
function place(control) {
  if (control.matches("button")) return control.textContent;
  const title = control.closest(".field")?.querySelector("label, legend, summary")?.textContent;
  return title ? `${title} ${control.type === "checkbox" ? control.value : ""}` : null;
}

/** A button with a sign, whose name is said. */
export function signButton(sign, name, pressed) {
  return el("button", { type: "button", class: "sign", "aria-label": name, title: name, on: { click: pressed } }, sign);
}

function fresh() {
  made += 1;
  return `field-${made}`;
}
