// What is told: an error as a sentence with its hint, or a short remark; both are read aloud, and go away.

import { fill, h, iconButton } from "./dom.js";
import { texts } from "./texts.js";

const SECONDS = 4;
const MOST = 4;

// A remark, for some seconds.
export function tell(text) {
  const node = h("div.notice", { role: "status" }, text);
  show(node);
  setTimeout(() => node.remove(), SECONDS * 1000);
}

// An error, until it is closed.
export function tellError(error) {
  if (error.name === "AbortError") return;
  const close = iconButton("close", texts.close, () => node.remove());
  const node = h("div.notice.notice-error", { role: "alert" }, sentences(error), close);
  show(node);
}

// An error that stands where the failed thing would.
export const problemBox = (error) => h("div.problem", { role: "alert" }, sentences(error));

// Do something, and tell what is wrong with it; whether it went well.
export async function attempt(work) {
  try {
    await work();
    return true;
  } catch (error) {
    tellError(error);
    return false;
  }
}

// Do something that fills a place; what is wrong with it stands there instead.
export async function filling(place, work) {
  try {
    await work();
  } catch (error) {
    if (error.name !== "AbortError") fill(place, problemBox(error));
  }
}

const sentences = ({ message, hint }) => [h("p", message), hint && h("small", `${texts.hint} ${hint}`)];

function show(node) {
  const place = document.getElementById("notices");
  while (place.childElementCount >= MOST) place.firstElementChild.remove();
  place.append(node);
}
