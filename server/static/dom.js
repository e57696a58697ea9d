// The document: elements and text nodes, and nothing that reads text as HTML.
//
//   h("a.quiet", { href: "#/fit", onclick: go, title: text.open }, "Fit ", h("b", {}, name))
//
// A child is a node, a text, a number, a list of these, or null and false for none. A property is a listener (`on…`),
// `style` (an object of CSS properties, set one by one: the policy forbids attributes of style), a boolean, or text.
// A link that could run a script is left out.

const SVG = "http://www.w3.org/2000/svg";
const SAFE_LINK = /^(https?:|mailto:|#|[a-z0-9/._-]*$)/i;
const ICONS = {
  send: "M12 19V5M5 12l7-7 7 7",
  stop: "M7 7h10v10H7z",
  plus: "M12 5v14M5 12h14",
  close: "M6 6l12 12M18 6L6 18",
  menu: "M4 7h16M4 12h16M4 17h16",
  left: "M15 5l-7 7 7 7",
  right: "M9 5l7 7-7 7",
  down: "M5 9l7 7 7-7",
  sliders: "M4 8h9m5 0h2M4 16h3m5 0h8M15.5 5.500v5M9.500 13.500v5",
  file: "M7 3h7l4 4v14H7zM14 3v4h4",
  trash: "M5 7h14M10 7V4h4v3M7 7l1 13h8l1-13",
  key: "M14 10a4 4 0 1 1-1.200-2.800M13 9l7 7v3h-3v-2h-2v-2",
  more: "M6 12h.01M12 12h.01M18 12h.01",
};

export function h(shape, properties = {}, ...children) {
  const [tag, ...classes] = shape.split(".");
  const element = document.createElement(tag || "div");
  if (classes.length) element.className = classes.join(" ");
  for (const [name, value] of Object.entries(properties)) set(element, name, value);
  add(element, children);
  return element;
}

export function set(element, name, value) {
  if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
  else if (name === "style") for (const [key, each] of Object.entries(value)) element.style.setProperty(key, each);
  else if (name === "value" || name === "checked") element[name] = value;
  else if (value === null || value === undefined || value === false) element.removeAttribute(name);
  else if (name === "href" && !SAFE_LINK.test(String(value).trim())) element.removeAttribute(name);
  else element.setAttribute(name, value === true ? "" : String(value));
}

export function add(element, children) {
  for (const child of children.flat(Infinity)) {
    if (child === null || child === undefined || child === false) continue;
    element.append(child instanceof Node ? child : String(child));
  }
}

// Everything in `element` for these children.
export function fill(element, ...children) {
  element.replaceChildren();
  add(element, children);
  return element;
}

export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", "0 0 24 24");
  svg.setAttribute("class", "icon");
  svg.setAttribute("aria-hidden", "true");
  const path = document.createElementNS(SVG, "path");
  path.setAttribute("d", ICONS[name]);
  svg.append(path);
  return svg;
}

// A button that shows an icon alone; its label is for screen readers and the tooltip.
export function iconButton(name, label, onclick, more = {}) {
  return h("button.icon-button", { type: "button", "aria-label": label, title: label, onclick, ...more }, icon(name));
}

export function button(label, onclick, more = {}) {
  return h(`button.button`, { type: "button", onclick, ...more }, label);
}

let count = 0;

// A label above its field; the field gets an id.
export function labelled(label, field, help = "") {
  field.id ||= `field-${++count}`;
  const hint = help && h("small", { id: `${field.id}-help` }, help);
  if (help) field.setAttribute("aria-describedby", `${field.id}-help`);
  return h("div.field", {}, h("label", { for: field.id }, label), field, hint);
}
