// Building elements. What is given as text stays text: nothing here is ever parsed as HTML.

const SVG = "http://www.w3.org/2000/svg";

/**
 * Build an HTML element.
 * Attributes: `class`, `on` ({event: listener}), `css` ({property: value}), `data` ({name: value}); true sets an empty
 * attribute, false, null and undefined leave one out. Children: nodes, texts, numbers, and lists of them.
 */
export function el(name, attributes, ...children) {
  return filled(document.createElement(name), attributes, children);
}

/** Build an SVG element; see `el`. */
export function svg(name, attributes, ...children) {
  return filled(document.createElementNS(SVG, name), attributes, children);
}

/** Replace what is in an element. */
export function put(node, ...children) {
  node.replaceChildren(...flat(children));
  return node;
}

function filled(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value === false || value === null || value === undefined) continue;
    if (name === "on") for (const [event, heard] of Object.entries(value)) node.addEventListener(event, heard);
    // Styles are set as properties: the policy of the page allows no style attribute.
    else if (name === "css") for (const [key, one] of Object.entries(value)) node.style.setProperty(key, one);
    else if (name === "data") Object.assign(node.dataset, value);
    else node.setAttribute(name, value === true ? "" : String(value));
  }
  node.append(...flat(children));
  return node;
}

function flat(children) {
  return children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false);
}
