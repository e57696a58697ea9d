// The box in which a question is written, with the files that go along as text.

import { fill, h, icon, iconButton } from "../dom.js";
import { tellError } from "../notices.js";
import { texts } from "../texts.js";

const MOST_BYTES = 2_000_000;
const words = texts.chat;

// `send(text, files)` and `stop()`. The composer's `busy` says which of them its button does.
export class Composer {
  constructor(send, stop) {
    Object.assign(this, { send, stop, files: [], isBusy: false });
    this.field = h("textarea", { rows: "1", id: "question", placeholder: words.placeholder, "aria-label": words.placeholder, "aria-keyshortcuts": "/" });
    this.chips = h("div.chips");
    const picker = h("input", { type: "file", multiple: true, hidden: true, "aria-label": words.attach });
    picker.addEventListener("change", () => {
      this.take([...picker.files]); // a copy, because the list empties with the field
      picker.value = "";
    });
    this.go = h("button.icon-button.primary.go", { type: "submit" });
    const form = (event) => {
      event.preventDefault();
      this.submit();
    };
    const bar = h("div.box", {}, iconButton("file", words.attach, () => picker.click()), this.field, this.go);
    this.node = h("form.composer", { onsubmit: form }, this.chips, bar, picker);
    this.field.addEventListener("keydown", (event) => this.key(event));
    this.field.addEventListener("paste", (event) => {
      if (event.clipboardData.files.length) this.take([...event.clipboardData.files]);
    });
    this.busy = false;
  }

  get busy() {
    return this.isBusy;
  }

  set busy(value) {
    this.isBusy = value;
    const label = value ? words.stop : words.send;
    fill(this.go, icon(value ? "stop" : "send"));
    this.go.title = label;
    this.go.setAttribute("aria-label", label);
  }

  set text(value) {
    this.field.value = value;
  }

  key(event) {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    if (!this.busy) this.submit();
  }

  submit() {
    if (this.busy) return this.stop();
    const text = this.field.value.trim();
    if (!text && !this.files.length) return this.field.focus();
    if (!this.send(text, this.files)) return null;
    this.field.value = "";
    this.files = [];
    this.draw();
    return null;
  }

  // Files as text. One that is too large, or no text, is told and left out.
  async take(files) {
    for (const file of files) {
      try {
        if (file.size > MOST_BYTES) throw new Error(words.tooLarge(file.name));
        const text = new TextDecoder("utf-8", { fatal: true }).decode(await file.arrayBuffer());
        if (text.includes("\0")) throw new Error("zeros");
        this.files.push({ name: file.name, text });
      } catch (error) {
        tellError(file.size > MOST_BYTES ? error : { message: words.noText(file.name), hint: words.noTextHint });
      }
    }
    this.draw();
  }

  draw() {
    const chip = (file, at) => h("span.badge", {}, file.name, iconButton("close", words.leaveOut(file.name), () => {
      this.files.splice(at, 1);
      this.draw();
    }));
    fill(this.chips, this.files.map(chip));
  }

  // Files that are dropped anywhere on `place`.
  dropsOn(place) {
    const over = (event) => {
      if (!event.dataTransfer.types.includes("Files")) return;
      event.preventDefault();
      place.classList.toggle("dropping", event.type !== "drop" && event.type !== "dragleave");
      if (event.type === "drop") this.take([...event.dataTransfer.files]);
    };
    for (const type of ["dragenter", "dragover", "dragleave", "drop"]) place.addEventListener(type, over);
  }
}
