// Who uses the page: the key of this tab, and what its role may do.
//
// The key lives in sessionStorage: it ends with the tab, and is in no URL and no cookie. `who()` is what the daemon says
// of the caller: `{ role, caller, version, … }`, or null as long as a key is wanted. `may("operator")` tells what to
// offer; the daemon decides anyway. `onWho(listener)` calls at each change.

const PLACE = "lm-key";
const RANKS = { infer: 1, operator: 2, admin: 3 };
let listener = () => {};
let current = null;
let memory = "";

// Storage that a browser may refuse, which is no reason to stop.
export function recall(storage, name) {
  try {
    return globalThis[storage].getItem(name);
  } catch {
    return null;
  }
}

export function keep(storage, name, text) {
  try {
    if (text) globalThis[storage].setItem(name, text);
    else globalThis[storage].removeItem(name);
  } catch {
    // it is in memory alone, then
  }
}

export const key = () => recall("sessionStorage", PLACE) ?? memory;

export function keepKey(text) {
  memory = text;
  keep("sessionStorage", PLACE, text);
}

export function forgetKey() {
  keepKey("");
  setWho(null);
}

export const who = () => current;

export function setWho(found) {
  const changed = found?.role !== current?.role;
  current = found;
  if (changed) listener();
}

export const may = (role) => current !== null && RANKS[current.role] >= RANKS[role];

export function onWho(wanted) {
  listener = wanted;
}
