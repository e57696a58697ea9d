// Conversations in this browser: IndexedDB, or memory where there is none; export and import.

import { Conversation, newId } from "./tree.js";

const FORMAT = "lm-conversations";
const ROLES = ["user", "assistant", "tool", "system"];
const memory = new Map(); // conversations by id
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
  const kept = () => [...memory.values()].map((each) => each.head);
  const found = await transact("readonly", (store) => store.getAll(), kept);
  return found.sort((one, other) => other.updated - one.updated);
}

const rangeOf = (id) => IDBKeyRange.bound([id], [id, []]);

export async function open(id) {
  const head = await transact("readonly", (store) => store.get(id), () => memory.get(id)?.head);
  if (!head) return null;
  const kept = () => [...memory.get(id).messages.values()];
  const all = await transact("readonly", (_, store) => store.getAll(rangeOf(id)), kept);
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
  return transact("readwrite", write, () => memory.set(id, conversation));
}

export function remove(id) {
  const write = (store, inner) => {
    store.delete(id);
    inner.delete(rangeOf(id));
  };
  return transact("readwrite", write, () => memory.delete(id));
}

// The text of a file with all conversations.
export async function exported() {
  const conversations = [];
  for (const { id } of await heads()) {
    const { head, messages } = await open(id);
    conversations.push({ ...head, messages: [...messages.values()].map(({ conversation, ...rest }) => rest) });
  }
  return JSON.stringify({ format: FORMAT, version: 1, conversations }, null, 1);
}

// Add the conversations of such a file, beside those that are here; the number of them. Throws for another file.
export async function imported(text) {
  const file = JSON.parse(text);
  if (file?.format !== FORMAT) throw new Error("another format");
  const all = file.conversations.map(checked);
  for (const each of all) await save(each, [...each.messages.values()]);
  return all.length;
}

// A conversation of a file, under an id of its own; only what the page knows, and as the type that it should be.
function checked({ messages, title, model, settings, created, updated, leaf }) {
  const ids = new Set(messages.map((message) => String(message.id)));
  const own = messages.map((message) => {
    const { role, content, id, parent, time, state, form, thought, thinking, files, calls } = message;
    if (!ROLES.includes(role) || typeof content !== "string") throw new Error("a message without role or content");
    const objects = { stats: object(message.stats), tool: object(message.tool), error: object(message.error) };
    const lists = {
      files: list(files)?.map((file) => ({ name: String(file.name), text: String(file.text) })),
      calls: list(calls)?.filter((call) => call?.function?.name),
    };
    const above = ids.has(String(parent)) ? String(parent) : null;
    const own = { id: String(id), parent: above, model: string(message.model) };
    return { ...own, role, content, time, state, form, thought, thinking: string(thinking), ...objects, ...lists };
  });
  const times = { created: +created || Date.now(), updated: +updated || Date.now() };
  const head = { ...times, id: newId(), title: string(title) ?? "", model: string(model) ?? "", leaf: String(leaf) };
  return new Conversation({ ...head, settings: object(settings) ?? {} }, own);
}

const list = (value) => (Array.isArray(value) ? value : undefined);
const object = (value) => (value?.constructor === Object ? value : undefined);
const string = (value) => (value === undefined ? undefined : String(value));
