/** From one layer's table to what a chart draws: columns, gaps, single points, the outline of a band. Pure functions. */

import { onlyMeasured } from "./grid.js";

/** @param {import("./api.js").Table} table @param {string} stat @returns {Float64Array|null} of the only layer */
export function column(table, stat) {
  const at = table.stats.indexOf(stat);
  if (at < 0) return null;
  return Float64Array.from(table.steps, (_, i) => table.values[i * table.stats.length + at]);
}

/**
 * A layer that takes part in every other step only (two optimizers that take turns) has no gaps between its own steps.
 * @param {import("./api.js").Table} table
 * @returns {import("./api.js").Table}
 */
export function together(table) {
  const measured = onlyMeasured(table);
  const values = column(table, "median");
  const alone = values.filter(
    (value, i) => Number.isFinite(value) && !Number.isFinite(values[i - 1]) && !Number.isFinite(values[i + 1]),
  );
  return alone.length > measured.steps.length / 2 ? measured : table;
}

/** Known values between two unknown ones would be lines of no length: they get dots. */
export function lonely(values, colour) {
  const known = (i) => Number.isFinite(values[i]);
  const size = Array.from(values, (_, i) => (known(i) && !known(i - 1) && !known(i + 1) ? 4 : 0));
  return size.some(Boolean) ? { mode: "lines+markers", marker: { size, color: colour, line: { width: 0 } } } : {};
}

/** One closed outline for each stretch without gaps. */
export function polygon(xs, low, high) {
  const x = [];
  const y = [];
  let start = 0;
  const close = (end) => {
    if (end > start) {
      for (let i = start; i < end; i++) (x.push(xs[i]), y.push(high[i]));
      for (let i = end - 1; i >= start; i--) (x.push(xs[i]), y.push(low[i]));
      (x.push(null), y.push(null));
    }
  };
  for (let i = 0; i <= xs.length; i++) {
    if (i === xs.length || !Number.isFinite(low[i]) || !Number.isFinite(high[i])) {
      close(i);
      start = i + 1;
    }
  }
  return { x, y };
}
