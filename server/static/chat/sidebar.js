// The list of conversations, and the ways in and out of this browser.

import { filePicker } from "./composer.js";
import { exported, heads, imported, remove } from "./store.js";
import { ago, confirmed, fill, h, icon, iconButton, tell, tellError, textButton, texts } from "../kit.js";

const words = texts.chat;

// `removed(id)` is called when a conversation is deleted; `draw(id)` shows the list, with this one as the current one.
export function sidebar(removed) {
  let current = null;
  const list = h("ul.conversations");
  const json = { accept: ".json,application/json" };
  const bring = filePicker(textButton(words.import), json, bringIn);
  const ways = h("div.row", textButton(words.exportAll, save), bring.node, bring.picker);
  const begin = h("a.button", { href: "#/chat" }, icon("plus"), words.new);
  const node = h("aside.sidebar", { "aria-label": words.conversations }, begin, list, ways);

  async function draw(id = current) {
    current = id;
    const all = await heads();
    fill(list, all.length ? all.map(row) : h("li.quiet.small", words.none));
  }

  function row({ id, title, model, updated }) {
    const here = id === current ? "true" : null;
    const texts = [h("span", title || words.untitled), h("small", `${model} · ${ago(updated)}`)];
    const link = h("a", { href: `#/chat?id=${id}`, "aria-current": here }, texts);
    return h("li", link, iconButton("trash", words.delete(title), () => drop(id, title)));
  }

  async function drop(id, title) {
    if (!(await confirmed(words.delete(title), words.onlyCopy, words.remove))) return;
    await remove(id);
    removed(id);
    await draw();
  }

  async function save() {
    const href = URL.createObjectURL(new Blob([await exported()], { type: "application/json" }));
    const link = document.createElement("a"); // `h` makes no link to a blob
    link.href = href;
    link.download = `lm-conversations-${new Date().toISOString().slice(0, 10)}.json`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(href), 10_000);
  }

  async function bringIn([file]) {
    try {
      tell(words.imported(await imported(await file.text())));
      await draw();
    } catch {
      tellError({ message: words.noExport(file.name), hint: words.noExportHint });
    }
  }

  return { node, draw };
}
