// Numbers as people read them.

const UNITS = ["B", "kB", "MB", "GB", "TB"];

// A size: decimal, as `lm list` shows it.
export function bytes(count) {
  if (!Number.isFinite(count)) return "–";
  let unit = 0;
  let value = count;
  while (value >= 999.5 && unit < UNITS.length - 1) {
    value /= 1000;
    unit += 1;
  }
  return `${unit && value < 99.95 ? value.toFixed(1) : Math.round(value)} ${UNITS[unit]}`;
}

export function duration(seconds) {
  if (!Number.isFinite(seconds)) return "–";
  if (seconds < 1) return `${Math.round(seconds * 1000)} ms`;
  if (seconds < 60) return `${seconds.toFixed(seconds < 10 ? 1 : 0)} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ${Math.round(seconds % 60)} s`;
  return `${Math.floor(seconds / 3600)} h ${Math.floor((seconds % 3600) / 60)} min`;
}

export const number = (value) => (Number.isFinite(value) ? Math.round(value).toLocaleString("en") : "–");
export const rate = (value) => (Number.isFinite(value) ? (value < 10 ? value.toFixed(1) : number(value)) : "–");
export const percent = (share) => `${Math.round(share * 100)}\u00a0%`;

// How long ago a moment is; `moment` in ms since 1970, or a text of a date.
export function ago(moment, now = Date.now()) {
  const seconds = (now - new Date(moment)) / 1000;
  if (!Number.isFinite(seconds)) return "–";
  if (seconds < 60) return "just now";
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ago`;
  if (seconds < 86400) return `${Math.floor(seconds / 3600)} h ago`;
  if (seconds < 30 * 86400) return `${Math.floor(seconds / 86400)} d ago`;
  return new Date(moment).toISOString().slice(0, 10);
}
