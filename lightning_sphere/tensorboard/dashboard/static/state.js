/** What the person chose: one object, who is told of changes, and its form in the URL. */

/** @type {readonly string[]} */
export const KINDS = Object.freeze(["row", "group", "whole", "joint", "none"]);

/**
 * @typedef {Object} State
 * @property {string} run empty: the newest
 * @property {string} vs the run to compare with; empty: none
 * @property {string} quantity
 * @property {string} layer the layer that is open; empty: none
 * @property {""|"log"|"linear"} scale empty: what suits the quantity
 * @property {"step"|"relative"} x
 * @property {number} smooth 0 to 0.99
 * @property {readonly string[]} kind the kinds that are shown
 * @property {string} filter
 * @property {"auto"|"light"|"dark"} theme
 * @property {[number, number]|null} zoom steps, or seconds since the run's start
 * @property {boolean} follow
 */

/** @type {State} */
export const DEFAULTS = Object.freeze({
  run: "",
  vs: "",
  quantity: "angular_step",
  layer: "",
  scale: "",
  x: "step",
  smooth: 0.6,
  kind: KINDS,
  filter: "",
  theme: "auto",
  zoom: null,
  follow: true,
});

const one =
  (...values) =>
  (text) =>
    values.includes(text) ? text : undefined;
const name = (text) => text;

/** @type {Record<keyof State, {read: (text: string) => any, write: (value: any) => string}>} */
const FORMS = {
  run: { read: name, write: name },
  vs: { read: name, write: name },
  quantity: { read: name, write: name },
  layer: { read: name, write: name },
  scale: { read: one("log", "linear"), write: name },
  x: { read: one("step", "relative"), write: name },
  smooth: {
    read: (text) => (text.trim() && Number(text) >= 0 && Number(text) <= 0.99 ? Number(text) : undefined),
    write: String,
  },
  kind: {
    read: (text) => {
      const kinds = KINDS.filter((kind) => text.split(",").includes(kind));
      return kinds.length || text === "no" ? kinds : undefined;
    },
    write: (kinds) => (kinds.length ? kinds.join(",") : "no"),
  },
  filter: { read: name, write: name },
  theme: { read: one("auto", "light", "dark"), write: name },
  zoom: {
    read: (text) => {
      const [low, high, ...rest] = text.split(",").map(Number);
      return rest.length === 0 && Number.isFinite(low) && Number.isFinite(high) && low < high ? [low, high] : undefined;
    },
    write: ([low, high]) => `${Number(low.toPrecision(9))},${Number(high.toPrecision(9))}`,
  },
  follow: { read: (text) => ({ 1: true, 0: false })[text], write: (on) => (on ? "1" : "0") },
};

/**
 * @param {Map<string, string>} texts key to text; what makes no sense is left out
 * @returns {Partial<State>}
 */
export function fromTexts(texts) {
  const result = {};
  for (const [key, { read }] of Object.entries(FORMS)) {
    const value = texts.has(key) ? read(texts.get(key)) : undefined;
    if (value !== undefined) result[key] = value;
  }
  return result;
}

/**
 * @param {State} state
 * @returns {Map<string, string>} only what differs from the defaults
 */
export function toTexts(state) {
  const texts = new Map();
  for (const [key, { write }] of Object.entries(FORMS)) {
    if (!same(state[key], DEFAULTS[key])) texts.set(key, write(state[key]));
  }
  return texts;
}

/**
 * @param {Partial<State>} start
 * @returns {{get: () => State, set: (change: Partial<State>) => void, subscribe: (listener: (state: State) => void) => void}}
 */
export function createStore(start) {
  let state = { ...DEFAULTS, ...start };
  const listeners = [];
  return {
    get: () => state,
    set(change) {
      if (Object.keys(change).every((key) => same(state[key], change[key]))) return;
      state = { ...state, ...change };
      for (const listener of listeners) listener(state);
    },
    subscribe: (listener) => void listeners.push(listener),
  };
}

function same(one, other) {
  return one === other || (Array.isArray(one) && Array.isArray(other) && JSON.stringify(one) === JSON.stringify(other));
}
