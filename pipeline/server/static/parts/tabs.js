// Tabs: arrow keys move between them, a panel is filled when it is first opened.

import { el } from "../dom.js";

let made = 0;

/** Items: {name, note, open: panel -> fills it}. */
export function tabs(label, items) {
  made += 1;
  const group = `tabs-${made}`;
  const panels = items.map((_, position) =>
    el("div", {
      role: "tabpanel",
      id: `${group}-panel-${position}`,
      "aria-labelledby": `${group}-${position}`,
      hidden: true,
    }),
  );
  const filled = new Set();
  const choose = (chosen, focus) => {
    buttons.forEach((button, position) => {
      button.setAttribute("aria-selected", String(position === chosen));
      button.tabIndex = position === chosen ? 0 : -1;
      panels[position].hidden = position !== chosen;
    });
    if (focus) buttons[chosen].focus();
    if (filled.has(chosen)) return;
    filled.add(chosen);
    items[chosen].open(panels[chosen]);
  };
  const key = (event, position) => {
    const to = { ArrowLeft: position - 1, ArrowRight: position + 1, Home: 0, End: items.length - 1 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    choose((to + items.length) % items.length, true);
  };
  const buttons = items.map((item, position) =>
    el(
      "button",
      {
        type: "button",
        role: "tab",
        id: `${group}-${position}`,
        "aria-controls": `${group}-panel-${position}`,
        on: { click: () => choose(position), keydown: (event) => key(event, position) },
      },
      item.name,
      item.note === undefined ? null : el("span", { class: "soft small" }, ` ${item.note}`),
    ),
  );
  choose(0);
  return el(
    "div",
    { class: "tabs" },
    el("div", { role: "tablist", "aria-label": label, class: "tablist" }, buttons),
    panels,
  );
}
