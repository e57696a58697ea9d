// Who uses the page: the key of this tab, in sessionStorage, and what its role may do. `who()` is what the daemon says
// of the caller: `{ role, caller, version, … }`, or null as long as a key is wanted. The daemon decides anyway.

const PLACE = "lm-key";
const RANKS = { infer: 1, operator: 2, admin: 3 };
let listener = () => {};
let current = null;
let memory = "";

// Storage that a browser may refuse, which is no reason to stop.
export function guarded(work) {
  try {
    return work();
  } catch {
    return null;
  }
}

export const recall = (storage, name) => guarded(() => globalThis[storage].getItem(name));
export const keep = (storage, name, text) => guarded(() => globalThis[storage].setItem(name, text));
export const key = () => recall("sessionStorage", PLACE) ?? memory;

export function keepKey(text) {
  memory = text;
  keep("sessionStorage", PLACE, text);
}

export function forgetKey() {
  memory = "";
  guarded(() => sessionStorage.removeItem(PLACE));
  setWho(null);
}

export const who = () => current;
export const may = (role) => current !== null && RANKS[current.role] >= RANKS[role];

export function setWho(found) {
  const changed = found?.role !== current?.role;
  current = found;
  if (changed) listener();
}

// Call at each change of the role.
export function onWho(wanted) {
  listener = wanted;
}
