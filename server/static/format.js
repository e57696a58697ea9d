// Numbers as people read them, and addresses of the page's views.

const UNITS = ["B", "kB", "MB", "GB", "TB"];

// A size: decimal, as `lm list` shows it.
export function bytes(count) {
  if (!Number.isFinite(count)) return "–";
  let unit = 0;
  let value = count;
  for (; value >= 999.5 && unit < UNITS.length - 1; unit += 1) value /= 1000;
  return `${unit && value < 99.95 ? value.toFixed(1) : Math.round(value)} ${UNITS[unit]}`;
}

export function duration(seconds) {
  if (!Number.isFinite(seconds)) return "–";
  if (seconds < 1) return `${Math.round(seconds * 1000)} ms`;
  if (seconds < 60) return `${seconds.toFixed(seconds < 10 ? 1 : 0)} s`;
  const minutes = Math.floor(seconds / 60);
  if (minutes < 60) return `${minutes} min ${Math.round(seconds % 60)} s`;
  return `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

export const number = (value) => (Number.isFinite(value) ? Math.round(value).toLocaleString("en") : "–");
export const rate = (value) => (Number.isFinite(value) && value < 10 ? value.toFixed(1) : number(value));
export const percent = (share) => `${Math.round(share * 100)}\u00a0%`;

// How long ago a moment is; `moment` in ms since 1970, or a text of a date.
export function ago(moment) {
  const minutes = Math.floor((Date.now() - new Date(moment)) / 60_000);
  if (!Number.isFinite(minutes)) return "–";
  if (minutes < 1) return "just now";
  if (minutes < 60) return `${minutes} min ago`;
  if (minutes < 1440) return `${Math.floor(minutes / 60)} h ago`;
  if (minutes < 30 * 1440) return `${Math.floor(minutes / 1440)} d ago`;
  return new Date(moment).toISOString().slice(0, 10);
}

export const routeTo = (view, name) => `#/${view}/${encodeURIComponent(name)}`;
