/** The kinds of invariance in words, letters and counts, and which layers a filter keeps. Pure functions. */

/** @type {Map<string, {letter: string, short: string, words: string}>} */
export const KIND_WORDS = new Map([
  ["row", { letter: "R", short: "row", words: "scale-invariant per row (filter)" }],
  ["group", { letter: "G", short: "group", words: "scale-invariant per group of rows" }],
  ["whole", { letter: "W", short: "whole", words: "scale-invariant as a whole" }],
  ["joint", { letter: "J", short: "joint", words: "scale-invariant only together with others" }],
  ["none", { letter: "\u2013", short: "none", words: "not scale-invariant by itself" }],
]);

/**
 * @param {string} filter text that occurs anywhere; `*` stands for anything between
 * @returns {(layer: {name: string, parameter?: string, reason?: string}) => boolean}
 */
export function matcher(filter) {
  const wish = filter.trim().toLowerCase();
  if (!wish) return () => true;
  const parts = wish.split("*");
  const fits = (text) => {
    const lower = text.toLowerCase();
    let at = 0;
    return parts.every((part) => {
      const found = lower.indexOf(part, at);
      at = found + part.length;
      return found >= 0;
    });
  };
  return ({ name, parameter, reason }) => [name, parameter, reason].some((text) => text && fits(text));
}

/**
 * What all names begin with, up to a dot: it is left out where space is short. What a number belongs to stays.
 * @param {string[]} names
 * @returns {string}
 */
export function commonPrefix(names) {
  if (names.length < 2) return "";
  let prefix = names[0];
  for (const name of names) while (!name.startsWith(prefix)) prefix = prefix.slice(0, -1);
  const whole = prefix.slice(0, prefix.lastIndexOf(".") + 1);
  const numbered = names.some((name) => /^\d/.test(name.slice(whole.length)));
  return numbered ? whole.slice(0, whole.lastIndexOf(".", whole.length - 2) + 1) : whole;
}

/**
 * @param {string} name
 * @param {string} prefix what to leave out
 * @param {number} most characters
 * @returns {string} where it is too long: the last parts between dots that fit, else begin and end
 */
export function shorten(name, prefix, most) {
  const whole = name.slice(prefix.length).replace(/\s+/gu, " ");
  const rest = [...whole];
  if (rest.length <= most) return whole;
  const parts = whole.split(".");
  while (parts.length > 1 && [...parts.join(".")].length > most - 1) parts.shift();
  const tail = [...parts.join(".")];
  if (tail.length < most && tail.length > most / 3) return `\u2026${tail.join("")}`;
  const end = Math.ceil((most - 1) * 0.55);
  return `${rest.slice(0, most - 1 - end).join("")}\u2026${rest.slice(-end).join("")}`;
}
