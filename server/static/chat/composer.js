// The box in which a question is written, with the files that go along as text.

import { fill, form, h, icon, iconButton, tellError, texts } from "../kit.js";

const MOST_BYTES = 2_000_000;
const words = texts.chat;

// `send(text, files)` and `stop()`; the composer's `busy` says which of them its button does.
export function composer(send, stop) {
  let files = [];
  let busy = false;
  const labels = { placeholder: words.placeholder, "aria-label": words.placeholder, "aria-keyshortcuts": "/" };
  const field = h("textarea", { rows: 1, id: "question", ...labels, onkeydown, onpaste });
  const chips = h("div.chips");
  const go = h("button.icon-button.go", { type: "submit" });
  const { node: attach, picker } = filePicker(iconButton("file", words.attach), { multiple: true }, take);
  const node = form("composer", submit, chips, h("div.box", attach, field, go), picker);

  function setBusy(value) {
    busy = value;
    go.title = value ? words.stop : words.send;
    go.setAttribute("aria-label", go.title);
    fill(go, icon(value ? "stop" : "send"));
  }

  function onkeydown(event) {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    if (!busy) submit();
  }

  function onpaste(event) {
    take([...event.clipboardData.files]);
  }

  function submit() {
    if (busy) return stop();
    const text = field.value.trim();
    if (!text && !files.length) return field.focus();
    if (!send(text, files)) return;
    field.value = "";
    files = [];
    draw();
  }

  // Files as text. One that is too large, or no text, is told and left out.
  async function take(more) {
    for (const file of more) {
      const { name } = file;
      if (file.size > MOST_BYTES) tellError({ message: words.tooLarge(name) });
      else {
        const text = await asText(file).catch(() => null);
        if (text === null) tellError({ message: words.noText(name), hint: words.noTextHint });
        else files.push({ name, text });
      }
    }
    draw();
  }

  function draw() {
    const leaveOut = (file) => {
      files = files.filter((each) => each !== file);
      draw();
    };
    const chip = (file) => iconButton("close", words.leaveOut(file.name), () => leaveOut(file));
    fill(chips, files.map((file) => h("span.badge", file.name, chip(file))));
  }

  // Files that are dropped anywhere on `place`.
  function dropsOn(place) {
    const over = (event) => {
      if (!event.dataTransfer.types.includes("Files")) return;
      event.preventDefault();
      place.classList.toggle("dropping", event.type === "dragenter" || event.type === "dragover");
      if (event.type === "drop") take([...event.dataTransfer.files]);
    };
    for (const type of ["dragenter", "dragover", "dragleave", "drop"]) place.addEventListener(type, over);
  }

  setBusy(false);
  return { node, field, dropsOn, get busy() { return busy; }, set busy(value) { setBusy(value); } };
}

// A field for files, which a button opens; `take(files)` gets them.
export function filePicker(opener, properties, take) {
  const label = opener.textContent || opener.title;
  const picker = h("input", { type: "file", hidden: true, "aria-label": label, ...properties });
  picker.addEventListener("change", () => {
    const files = [...picker.files]; // a copy, because the list empties with the field
    picker.value = "";
    take(files);
  });
  opener.addEventListener("click", () => picker.click());
  return { node: opener, picker };
}

async function asText(file) {
  const text = new TextDecoder("utf-8", { fatal: true }).decode(await file.arrayBuffer());
  return text.includes("\0") ? null : text;
}
