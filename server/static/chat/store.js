// Conversations in this browser: IndexedDB, or memory where there is none. They leave it as a file that the user saves.

import { Conversation, newId } from "./tree.js";

const FORMAT = "lm-conversations";
const ROLES = new Set(["user", "assistant", "tool", "system"]);
let opened = null;

function database() {
  opened ??= new Promise((done, fail) => {
    const request = indexedDB.open("lm-chat", 1);
    request.onupgradeneeded = () => {
      request.result.createObjectStore("heads", { keyPath: "id" });
      request.result.createObjectStore("messages", { keyPath: ["conversation", "id"] });
    };
    request.onsuccess = () => done(request.result);
    request.onerror = () => fail(request.error);
  }).catch(() => null);
  return opened;
}

const memory = { heads: new Map(), messages: new Map() };

// One transaction on both stores; `work` gets them, and may return a request whose result is the answer.
async function transact(mode, work, instead) {
  const base = await database();
  if (base === null) return instead();
  return new Promise((done, fail) => {
    const transaction = base.transaction(["heads", "messages"], mode);
    const request = work(transaction.objectStore("heads"), transaction.objectStore("messages"));
    transaction.oncomplete = () => done(request?.result);
    transaction.onerror = transaction.onabort = () => fail(transaction.error);
  });
}

export async function heads() {
  const found = await transact("readonly", (store) => store.getAll(), () => [...memory.heads.values()]);
  return found.sort((one, other) => other.updated - one.updated);
}

const rangeOf = (id) => IDBKeyRange.bound([id], [id, []]);

export async function open(id) {
  const head = await transact("readonly", (store) => store.get(id), () => memory.heads.get(id));
  if (!head) return null;
  const all = await transact("readonly", (_, store) => store.getAll(rangeOf(id)), () => memory.messages.get(id) || []);
  // An answer that was coming when the page went away is as long as it got.
  for (const message of all) if (message.state === "coming") message.state = "stopped";
  return new Conversation(head, all);
}

// Keep the head, and these messages.
export function save(conversation, messages) {
  const { id } = conversation.head;
  const write = (store, inner) => {
    store.put({ ...conversation.head });
    for (const message of messages) inner.put({ ...message, conversation: id });
  };
  return transact("readwrite", write, () => {
    memory.heads.set(id, conversation.head);
    memory.messages.set(id, [...conversation.messages.values()]);
  });
}

export function remove(id) {
  const write = (store, inner) => {
    store.delete(id);
    inner.delete(rangeOf(id));
  };
  return transact("readwrite", write, () => memory.heads.delete(id));
}

// The text of a file with these conversations.
export async function exported(ids) {
  const conversations = [];
  for (const id of ids) {
    const found = await open(id);
    if (found) conversations.push({ ...found.head, messages: [...found.messages.values()].map(({ conversation, ...rest }) => rest) });
  }
  return JSON.stringify({ format: FORMAT, version: 1, conversations }, null, 1);
}

// Add the conversations of such a file, beside those that are here; the number of them. Throws for another file.
export async function imported(text) {
  const file = JSON.parse(text);
  if (file?.format !== FORMAT || !Array.isArray(file.conversations)) throw new Error("another format");
  const all = file.conversations.map(checked);
  for (const each of all) await save(each, [...each.messages.values()]);
  return all.length;
}

// A conversation of a file, under ids of its own; only what the page knows, and as the type that it should be.
function checked({ messages, title, model, settings, created, updated, leaf }) {
  if (!Array.isArray(messages)) throw new Error("no messages");
  const ids = new Map(messages.map((message) => [String(message.id), String(message.id)]));
  const own = messages.map((message) => {
    if (!ROLES.has(message.role) || typeof message.content !== "string") throw new Error("a message without role or content");
    const parent = ids.get(String(message.parent)) ?? null;
    const objects = { stats: objectOr(message.stats), tool: objectOr(message.tool), error: objectOr(message.error) };
    return { ...message, id: String(message.id), parent, ...objects, ...lists(message) };
  });
  const head = { id: newId(), title: String(title ?? ""), model: String(model ?? ""), settings: objectOr(settings) ?? {} };
  return new Conversation({ ...head, created: +created || Date.now(), updated: +updated || Date.now(), leaf: String(leaf) }, own);
}

const objectOr = (value) => (value !== null && typeof value === "object" && !Array.isArray(value) ? value : undefined);

function lists(message) {
  const files = Array.isArray(message.files) ? message.files.map(({ name, text }) => ({ name: String(name), text: String(text) })) : undefined;
  const calls = Array.isArray(message.calls) ? message.calls.filter((call) => call?.function?.name) : undefined;
  const text = (value) => (value === undefined ? undefined : String(value));
  return { files, calls, thinking: text(message.thinking), model: text(message.model) };
}
