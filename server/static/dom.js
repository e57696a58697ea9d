// The document: elements and text nodes, and nothing that reads text as HTML.
//
//   h("a.quiet", { href: "#/fit", onclick: go }, "Fit ", h("b", name))
//
// Properties may be left out: a listener (`on…`), `style` (CSS properties, set one by one: the policy forbids the
// attribute), a boolean, or text. A child is a node, a text, a list of these, or null, undefined, false for none.
// A link that could run a script is left out. Buttons submit nothing, unless their `type` says so.

import { texts } from "./texts.js";

const SAFE_LINK = /^(https?:|mailto:|#|[a-z0-9/._-]*$)/i;
const ICONS = {
  send: "M12 19V5M5 12l7-7 7 7",
  stop: "M7 7h10v10H7z",
  plus: "M12 5v14M5 12h14",
  close: "M6 6l12 12M18 6L6 18",
  menu: "M4 7h16M4 12h16M4 17h16",
  left: "M15 5l-7 7 7 7",
  right: "M9 5l7 7-7 7",
  sliders: "M4 8h9m5 0h2M4 16h3m5 0h8M15.5 5.500v5M9.500 13.500v5",
  file: "M7 3h7l4 4v14H7zM14 3v4h4",
  trash: "M5 7h14M10 7V4h4v3M7 7l1 13h8l1-13",
};

export function h(shape, ...children) {
  const [tag, ...classes] = shape.split(".");
  const element = document.createElement(tag);
  if (classes.length) element.className = classes.join(" ");
  if (tag === "button") element.setAttribute("type", "button");
  const properties = children[0]?.constructor === Object ? children.shift() : {};
  for (const [name, value] of Object.entries(properties)) set(element, name, value);
  return add(element, children);
}

export function set(element, name, value) {
  if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
  else if (name === "style") for (const [key, each] of Object.entries(value)) element.style.setProperty(key, each);
  else if (name === "value" || name === "checked") element[name] = value;
  else if (value === null || value === undefined || value === false) element.removeAttribute(name);
  else if (name === "href" && !SAFE_LINK.test(String(value).trim())) element.removeAttribute(name);
  else element.setAttribute(name, value === true ? "" : String(value));
}

function add(element, children) {
  for (const child of children.flat(Infinity)) {
    if (child !== null && child !== undefined && child !== false) element.append(child);
  }
  return element;
}

// Everything in `element` for these children.
export function fill(element, ...children) {
  element.replaceChildren();
  return add(element, children);
}

// The text of an element, left alone where it is this one already: it would be read aloud again.
export function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

export function svg(tag, attributes, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return add(element, children);
}

export const icon = (name) =>
  svg("svg", { viewBox: "0 0 24 24", class: "icon", "aria-hidden": "true" }, svg("path", { d: ICONS[name] }));

// A button that shows an icon alone; its label is for screen readers and the tooltip.
export const iconButton = (name, label, onclick, more = {}) =>
  h("button.icon-button", { "aria-label": label, title: label, onclick, ...more }, icon(name));

export const button = (label, onclick, more = {}) => h("button.button", { onclick, ...more }, label);
export const textButton = (label, onclick, more = {}) => h("button.link.small", { onclick, ...more }, label);
export const submitButton = (label) => h("button.button.primary", { type: "submit" }, label);

// A small button of a row; `of` names the row to screen readers.
export const rowButton = (label, of, onclick, kind = "") =>
  button(label, onclick, { class: `button small ${kind}`, "aria-label": `${label}: ${of}` });

export const rowLink = (label, of, href) => h("a.button.small", { href, "aria-label": `${label}: ${of}` }, label);

// The page's own form: it calls, and the browser sends nothing.
export function form(shape, submit, ...children) {
  const onsubmit = (event) => {
    event.preventDefault();
    submit();
  };
  return h(`form.${shape}`, { onsubmit }, ...children);
}

let count = 0;

// A label above its field; the field gets an id.
export function labelled(label, field, help = "") {
  field.id ||= `field-${++count}`;
  const hint = help && h("small", { id: `${field.id}-help` }, help);
  if (help) field.setAttribute("aria-describedby", hint.id);
  return h("div.field", h("label", { for: field.id }, label), field, hint);
}

// A part of a view, with its title and what stands at the other end of that line.
export const panel = (title, beside, ...children) =>
  h("section.panel", { "aria-label": title }, h("div.row.spread", h("h2", title), beside), children);

export const folded = (title, ...children) => h("details.panel", h("summary", h("h2", title)), children);
// What the keys can scroll.
export const scrollable = (shape, label, ...children) =>
  h(shape, { tabindex: "0", role: "region", "aria-label": label }, children);

// A table, whose rows are cards where there is little room. A column is [title, kind]: "number", "whole" for one that
// has the width of a card and no title there, or nothing.
export function table(columns) {
  const head = ([title, kind]) =>
    h(kind === "number" ? "th.number" : "th", { scope: "col" }, title || h("span.hidden", texts.actions));
  const body = h("tbody");
  const node = h("div.scroller", h("table.table.wide", h("thead", h("tr", columns.map(head))), body));
  const cell = (content, at) => {
    const [title, kind = ""] = columns[at];
    return h(`td.${kind}`, { "data-label": kind === "whole" ? null : title }, content);
  };
  return { node, body, row: (properties, ...contents) => h("tr", properties, contents.map(cell)) };
}

// Let `place` hold a node for each item, in this order; a node stays as long as its key does, and so does the focus.
// `make(item)` returns { node, update }.
export function keyed(place, items, keyOf, make) {
  const before = place.kept ?? new Map();
  place.kept = new Map(items.map((item) => [keyOf(item), before.get(keyOf(item)) ?? make(item)]));
  for (const item of items) place.kept.get(keyOf(item)).update(item);
  const nodes = [...place.kept.values()].map((row) => row.node);
  if (nodes.length !== place.childElementCount || nodes.some((node, at) => place.children[at] !== node)) {
    place.replaceChildren(...nodes);
  }
}

// Ask before something that cannot be taken back; whether it is confirmed.
export function confirmed(title, text, act) {
  const choice = (value, label, kind) => h(`button.button.${kind}`, { type: "submit", value }, label);
  const choices = [choice("no", texts.keep, ""), choice("yes", act, "danger")];
  const dialog = h("dialog", { "aria-label": title }, h("h2", title), h("p", text));
  dialog.append(h("form.row.end", { method: "dialog" }, choices));
  document.body.append(dialog);
  dialog.showModal();
  return new Promise((done) => {
    dialog.addEventListener("close", () => {
      dialog.remove();
      done(dialog.returnValue === "yes");
    });
  });
}
