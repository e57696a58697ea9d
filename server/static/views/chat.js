// The chat.
import { h } from "../dom.js";

export function mount(root) {
  root.append(h("div.page", {}, h("h1", {}, "Chat")));
}
