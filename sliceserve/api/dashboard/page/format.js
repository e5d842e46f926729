// Numbers as people read them. null is what cannot be told yet.

const NOTHING = "–";
const WHOLE = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });

export function whole(n) {
  return n == null ? NOTHING : WHOLE.format(n);
}

/** Three digits that count. */
export function number(n) {
  if (n == null) return NOTHING;
  if (n === 0 || Math.abs(n) >= 999.5) return WHOLE.format(n);
  const digits = Math.max(0, 2 - Math.floor(Math.log10(Math.abs(n)) + 1e-9));
  return n.toFixed(Math.min(digits, 2));
}

export function percent(share) {
  if (share == null) return NOTHING;
  const n = 100 * share;
  return `${n > 0 && n < 9.95 ? n.toFixed(1) : n.toFixed(0)} %`;
}

export function seconds(s) {
  if (s == null) return NOTHING;
  if (s < 0.0009995) return `${number(s * 1e6)} µs`;
  return s < 0.9995 ? `${number(s * 1e3)} ms` : `${number(s)} s`;
}

export function bytes(n) {
  if (n == null) return NOTHING;
  const units = ["B", "kB", "MB", "GB", "TB"];
  let unit = 0;
  while (n >= 999.5 && unit < units.length - 1) {
    n /= 1000;
    unit += 1;
  }
  return `${unit ? number(n) : n < 99.95 && n % 1 ? n.toFixed(1) : WHOLE.format(n)} ${units[unit]}`;
}

/** A long time: its two largest units. */
export function duration(s) {
  const units = [["d", 86400], ["h", 3600], ["min", 60], ["s", 1]];
  const first = units.findIndex(([, size]) => s >= size);
  if (first < 0) return "0 s";
  const parts = [];
  for (const [name, size] of units.slice(first, first + 2)) {
    parts.push(`${Math.floor(s / size)} ${name}`);
    s %= size;
  }
  return parts.join(" ");
}

export function plural(n, noun) {
  return `${whole(n)} ${noun}${n === 1 ? "" : "s"}`;
}
