// What changes models, from any view.

import { attempt, form, get, h, rowButton, send, stream, submitButton, tell, tellError, texts } from "../kit.js";

const words = texts.models;

// Bring a model in. Resolves once the daemon has taken it on, or throws its refusal; `ended` is called at its end.
export async function pull(model, ended = () => {}) {
  const lines = stream("POST", "/api/pull", { model, detach: true, stream: true });
  const first = await lines.next();
  const follow = async () => {
    let last = first.value ?? {};
    try {
      for await (const line of lines) last = line;
      if (last.status === "success") tell(words.here(last.name ?? model));
    } catch (error) {
      if (error.code !== "stopping") tellError(error);
    }
    ended();
  };
  follow();
}

// The models that are here by a name of their own.
export const modelsHere = async (signal) => (await get("/api/tags", signal)).models.filter((model) => !model.alias);

// Whether a model can answer.
export const answers = ({ problem, base, capabilities }) => !problem && !base && capabilities?.includes("completion");

// A button that unloads a model.
export function unloader(name) {
  const work = async () => {
    const { models } = await send("POST", "/lm/stop", { model: name });
    tell(words.stopped[models[0]?.state] ?? words.stopped.stopped);
  };
  return rowButton(words.unload, name, () => attempt(work));
}

// The form in which a model is named; `submit(name)`.
export function nameForm(id, label, help, act, submit, ...more) {
  const plain = { spellcheck: "false", autocomplete: "off", autocapitalize: "none" };
  const field = h("input", { id, placeholder: words.example, required: true, list: `${id}s`, ...plain });
  const parts = [h("label", { for: id }, label), h("div.row", field, submitButton(act), more), h("small", help)];
  const node = form("pull-form", () => submit(field.value.trim()), parts);
  return { node, field };
}
