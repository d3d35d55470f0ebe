/** Colours of numbers: which scale suits a quantity, its range, its colours, its legend. Pure functions. */

import { linearTicks, logTicks, quantile } from "./numbers.js";

const VIRIDIS = [
  "#440154",
  "#482878",
  "#3e4a89",
  "#31688e",
  "#26828e",
  "#1f9e89",
  "#35b779",
  "#6ece58",
  "#b5de2b",
  "#fde725",
];
const DIVERGING = {
  light: ["#5e3c99", "#8073ac", "#b2abd2", "#d8daeb", "#f7f7f7", "#fee0b6", "#fdb863", "#e08214", "#b35806"],
  dark: ["#c9b8ff", "#a08de0", "#7562b8", "#4b3f7a", "#2b2a33", "#6b4416", "#a8651a", "#dd8d2f", "#ffc57d"],
};
const ALWAYS_LINEAR = ["path_length", "drift", "straightness"];
const SPREAD = ["angular_step", "equilibrium_angle", "invariance_residual"];

/**
 * @typedef {Object} Colouring
 * @property {boolean} log whether numbers are drawn by their logarithm
 * @property {number} low of what is drawn (the logarithm, if `log`)
 * @property {number} high
 * @property {[number, string][]} colours plotly's colour scale
 * @property {import("./numbers.js").Tick[]} ticks places between 0 and 1
 * @property {boolean} below whether some numbers are below the range
 * @property {boolean} above
 */

/**
 * @param {string} name
 * @param {{signed: boolean, range: string}} quantity
 * @param {string} wish "log", "linear", or empty
 * @returns {{log: boolean, blocked: Map<string, string>}}
 */
export function scaleOf(name, quantity, wish) {
  if (quantity.signed)
    return { log: false, blocked: new Map([["log", "This quantity has negative values: no logarithm."]]) };
  const suits = SPREAD.includes(name) || (quantity.range.startsWith(">") && !ALWAYS_LINEAR.includes(name));
  return { log: wish ? wish === "log" : suits, blocked: new Map() };
}

/**
 * @param {Iterable<ArrayLike<number>>} rows what is coloured
 * @param {{log: boolean, centre: number|null, theme: "light"|"dark"}} how `centre`: in the middle of a diverging scale
 * @returns {Colouring}
 */
export function colouring(rows, { log, centre, theme }) {
  const drawn = log ? (value) => (value > 0 ? Math.log10(value) : NaN) : (value) => value;
  const all = [];
  let zeros = false;
  for (const row of rows) {
    for (let i = 0; i < row.length; i++) {
      const value = drawn(row[i]);
      if (Number.isFinite(value)) all.push(value);
      else if (log && row[i] === 0) zeros = true;
    }
  }
  const sorted = Float64Array.from(all).sort();
  let low = quantile(sorted, 0.005);
  let high = quantile(sorted, 0.995);
  const middle = centre === null ? null : drawn(centre);
  if (middle !== null && sorted.length) {
    const reach = Math.max(Math.abs(low - middle), Math.abs(high - middle));
    [low, high] = [middle - reach, middle + reach];
  }
  if (!sorted.length) [low, high] = log ? [-1, 0] : [0, 1];
  if (!(high > low) && low === 0 && middle === null && !log) high = 1;
  if (!(high > low)) {
    const around = Math.max(Math.abs(low) * 0.05, log ? 0.05 : 1e-12);
    [low, high] = [low - around, high + around];
  }
  const list = middle === null ? VIRIDIS : DIVERGING[theme];
  const place = (value) => (value - low) / (high - low);
  const raw = log ? logTicks(10 ** low, 10 ** high, 6) : linearTicks(low, high, 5);
  const slack = (high - low) * 1e-3;
  return {
    log,
    low,
    high,
    colours: list.map((colour, n) => [n / (list.length - 1), colour]),
    ticks: raw.map(({ value, text }) => ({ value: place(log ? Math.log10(value) : value), text })),
    below: zeros || sorted[0] < low - slack,
    above: sorted[sorted.length - 1] > high + slack,
  };
}

/**
 * @param {Float64Array[]} rows
 * @param {Colouring} colours
 * @returns {Float64Array[]} what plotly colours; zero has the lowest colour of a logarithmic scale
 */
export function drawnRows(rows, { log, low }) {
  if (!log) return rows;
  return rows.map((row) => row.map((value) => (value > 0 ? Math.log10(value) : value === 0 ? low : NaN)));
}
