/** Names, times and numbers as people read them. */

const clock = new Intl.DateTimeFormat(undefined, { hour: "numeric", minute: "2-digit" });
const date = new Intl.DateTimeFormat(undefined, { weekday: "long", day: "numeric", month: "long" });
const full = new Intl.DateTimeFormat(undefined, { dateStyle: "full", timeStyle: "medium" });
const segments = new Intl.Segmenter();

export const time = (at) => clock.format(new Date(at));
export const moment = (at) => full.format(new Date(at));

export function day(at) {
  const midnight = (when) => new Date(when).setHours(0, 0, 0, 0);
  const ago = Math.round((midnight(Date.now()) - midnight(at)) / 86_400_000);
  return ago === 0 ? "Today" : ago === 1 ? "Yesterday" : date.format(new Date(at));
}

/** A colour of its own for each name: an angle on the colour wheel (FNV-1a, spread by the golden angle). */
export function hue(name) {
  let hash = 0x811c9dc5;
  for (const byte of new TextEncoder().encode(name)) hash = Math.imul(hash ^ byte, 0x01000193);
  return Math.round(((hash >>> 0) * 137.508) % 360);
}

export function initials(name) {
  const letters = name.split(/\s+/).filter(Boolean).map((word) => [...segments.segment(word)][0].segment);
  return (letters.length > 1 ? letters[0] + letters.at(-1) : letters[0]).toLocaleUpperCase();
}

export function typing(names) {
  if (names.length === 0) return "";
  if (names.length === 1) return `${names[0]} is typing…`;
  if (names.length <= 3) return `${names.slice(0, -1).join(", ")} and ${names.at(-1)} are typing…`;
  return `${names[0]}, ${names[1]} and ${names.length - 2} others are typing…`;
}

export const here = (number) => (number === 1 ? "Just you" : `${number} here`);

export const count = (number) => (number > 99 ? "99+" : String(number));
