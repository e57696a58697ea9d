// The list of conversations, and the ways in and out of this browser.

import { fill, h, icon, iconButton } from "../dom.js";
import { ago } from "../format.js";
import { tell, tellError } from "../notices.js";
import { texts } from "../texts.js";
import { exported, heads, imported, remove } from "./store.js";

const words = texts.chat;

export class Sidebar {
  constructor(removed) {
    this.removed = removed;
    this.current = null;
    this.list = h("ul.conversations");
    const picker = h("input", { type: "file", accept: ".json,application/json", hidden: true, "aria-label": words.import });
    picker.addEventListener("change", () => this.bringIn(picker));
    this.node = h(
      "aside.sidebar",
      { "aria-label": words.conversations },
      h("a.button", { href: "#/chat" }, icon("plus"), words.new),
      this.list,
      h("div.row", {}, h("button.link.small", { type: "button", onclick: () => this.save() }, words.exportAll), h("button.link.small", { type: "button", onclick: () => picker.click() }, words.import), picker),
    );
  }

  async draw(current) {
    this.current = current;
    const all = await heads();
    fill(this.list, all.map((head) => this.row(head)));
    if (!all.length) fill(this.list, h("li.quiet.small", {}, words.none));
  }

  row(head) {
    const here = head.id === this.current;
    const link = h("a", { href: `#/chat?id=${head.id}`, "aria-current": here ? "true" : null }, h("span", {}, head.title || words.untitled), h("small", {}, `${head.model} · ${ago(head.updated)}`));
    return h("li", {}, link, iconButton("trash", words.delete(head.title), () => this.delete(head)));
  }

  async delete(head) {
    if (!confirm(words.deleteSure(head.title))) return;
    await remove(head.id);
    this.removed(head.id);
    await this.draw(this.current);
  }

  async save(ids) {
    const chosen = ids ?? (await heads()).map((head) => head.id);
    const url = URL.createObjectURL(new Blob([await exported(chosen)], { type: "application/json" }));
    const link = document.createElement("a");
    link.href = url;
    link.download = `lm-conversations-${new Date().toISOString().slice(0, 10)}.json`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(url), 10_000);
  }

  async bringIn(picker) {
    const [file] = picker.files;
    picker.value = "";
    if (!file) return;
    try {
      tell(words.imported(await imported(await file.text())));
      await this.draw(this.current);
    } catch {
      tellError({ message: words.noExport(file.name), hint: words.noExportHint });
    }
  }
}
