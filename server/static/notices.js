// What is told: an error as a sentence with its hint, or a short remark; both are read aloud, and go away.
//
//   tell(texts.chat.copied)            a remark for some seconds
//   tellError(error)                   stays until it is closed
//   problemBox(error)                  the same as a node, to stand where the failed thing would

import { h, iconButton } from "./dom.js";
import { texts } from "./texts.js";

const SECONDS = 4;
const MOST = 4;

export function tell(text) {
  const node = h("div.notice", { role: "status" }, text);
  show(node);
  setTimeout(() => node.remove(), SECONDS * 1000);
}

export function tellError(error) {
  if (error.name === "AbortError") return;
  const node = h("div.notice.notice-error", { role: "alert" }, ...sentences(error));
  node.append(iconButton("close", texts.close, () => node.remove()));
  show(node);
}

export function problemBox(error) {
  return h("div.problem", { role: "alert" }, h("div", {}, ...sentences(error)));
}

function sentences(error) {
  const hint = error.hint ? h("small", {}, `${texts.hint} ${error.hint}`) : null;
  return [h("p", {}, error.message), hint].filter(Boolean);
}

function show(node) {
  const place = document.getElementById("notices");
  while (place.childElementCount >= MOST) place.firstElementChild.remove();
  place.append(node);
}
