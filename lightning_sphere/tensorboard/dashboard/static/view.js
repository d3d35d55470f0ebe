/** What is shown, derived from the state and the answers: rows, panes, range. Pure functions. */

import { alignLayers, difference, nearest } from "./compare.js";
import { cellMedians, columns, onlyMeasured } from "./grid.js";
import { KIND_WORDS, matcher } from "./kinds.js";
import { colouring, drawnRows, scaleOf } from "./scales.js";

/**
 * @typedef {Object} Row one layer
 * @property {string} name
 * @property {number} a place in the first run's layers, -1 if it has none of this name
 * @property {number} b
 * @property {any} layer what the server says of it (of the first run that has it)
 * @property {string} kind
 *
 * @typedef {Object} Side
 * @property {string} name
 * @property {any} info answer of /run
 * @property {import("./api.js").Table|undefined} table medians of the quantity
 *
 * @typedef {Object} Pane one heatmap
 * @property {"a"|"b"|"difference"} key
 * @property {string} title
 * @property {string} unit of its numbers
 * @property {import("./grid.js").Columns} cells
 * @property {Float64Array[]} values per row and column
 * @property {Float64Array[]} drawn what is coloured
 * @property {import("./scales.js").Colouring} colours
 * @property {ArrayLike<number>} steps of the samples
 * @property {string|null} missing why there is nothing in it
 */

/**
 * @param {any} a answer of /run
 * @param {any} b of the second, or null
 * @returns {Row[]} all layers
 */
export function allRows(a, b) {
  const names = (info) => info.layers.map((layer) => layer.name);
  return alignLayers(names(a), b && names(b)).map((row) => {
    const layer = row.a >= 0 ? a.layers[row.a] : b.layers[row.b];
    return { ...row, layer, kind: KIND_WORDS.has(layer.kind) ? layer.kind : "none" };
  });
}

/**
 * @param {Row[]} rows
 * @param {import("./state.js").State} state
 * @returns {Row[]} those that the filters keep
 */
export function shownRows(rows, state) {
  const fits = matcher(state.filter);
  return rows.filter((row) => state.kind.includes(row.kind) && fits(row.layer));
}

/**
 * @param {Side} side
 * @param {boolean} relative
 * @returns {Float64Array} steps, or seconds since the start
 */
export function xOf({ table, info }, relative) {
  if (!relative) return table.steps;
  const start = info.first_wall_time ?? table.times[0];
  return table.times.map((time) => time - start);
}

/**
 * @param {Side} side
 * @param {any} quantity
 * @returns {Side} without the steps at which a rare quantity was not measured
 */
export function measuredSide(side, quantity) {
  return quantity.rare && side.table ? { ...side, table: onlyMeasured(side.table) } : side;
}

/**
 * @param {ArrayLike<number>[]} all x values of both runs
 * @returns {[number, number]}
 */
export function fullRange(all) {
  let low = Infinity;
  let high = -Infinity;
  for (const xs of all) {
    if (!xs.length) continue;
    const half = xs.length > 1 ? (xs[xs.length - 1] - xs[0]) / (xs.length - 1) / 2 : 0.5;
    low = Math.min(low, xs[0] - half);
    high = Math.max(high, xs[xs.length - 1] + half);
  }
  return low < high ? [low, high] : [0, 1];
}

/**
 * The heatmaps: one run, or two and their difference.
 * @param {{state: import("./state.js").State, quantity: any, a: Side, b: Side|null, rows: Row[],
 *   theme: "light"|"dark", most: number}} what `most`: columns of each
 * @returns {{panes: Pane[], full: [number, number], range: [number, number]}}
 */
export function buildPanes({ state, quantity, a, b, rows, theme, most }) {
  const relative = state.x === "relative";
  const { log } = scaleOf(state.quantity, quantity, state.scale);
  const sides = [a, b].filter(Boolean).map((side) => measuredSide(side, quantity));
  const keys = ["a", "b"];
  const drawn = sides.map((side, n) => {
    const places = side.table
      ? placesOf(
          side,
          rows.map((row) => row.name),
        )
      : [];
    return { side, key: keys[n], places, xs: side.table ? xOf(side, relative) : new Float64Array() };
  });
  const full = fullRange(drawn.map(({ xs }) => xs));
  const range = state.zoom ?? full;
  const panes = drawn.map(({ side, key, places, xs }) => {
    const cells = columns(xs, range, most, relative);
    const values = side.table
      ? cellMedians(side.table.values, side.table.layers.length, places, cells)
      : rows.map(() => new Float64Array());
    const missing = side.table ? null : (side.missing ?? "");
    return { key, title: side.name, unit: quantity.unit, cells, values, steps: side.table?.steps ?? [], missing };
  });
  const whole = drawn.flatMap(({ side, places, xs }) =>
    state.zoom && side.table
      ? cellMedians(side.table.values, side.table.layers.length, places, columns(xs, full, most, false))
      : [],
  );
  const centre = quantity.signed ? 0 : (quantity.reference ?? null);
  const shared = colouring(state.zoom ? whole : panes.flatMap((pane) => pane.values), { log, centre, theme });
  for (const pane of panes) Object.assign(pane, { colours: shared, drawn: drawnRows(pane.values, shared) });
  if (drawn.length === 2)
    panes.push(differencePane({ drawn, rows, range, most, log, relative, theme, unit: quantity.unit }));
  return { panes, full, range };
}

function differencePane({ drawn, rows, range, most, log, relative, theme, unit }) {
  const [one, other] = drawn;
  const base = {
    key: "difference",
    title: log ? "B / A" : "B \u2212 A",
    unit: log ? "" : unit,
    steps: one.side.table?.steps ?? [],
  };
  if (!one.side.table || !other.side.table) {
    const values = rows.map(() => new Float64Array());
    const cells = columns([], range, most, relative);
    return {
      ...base,
      cells,
      values,
      drawn: values,
      missing: "",
      colours: colouring([], { log, centre: log ? 1 : 0, theme }),
    };
  }
  const pairs = rows.map((row, n) => ({ a: one.places[n], b: other.places[n] }));
  const raw = difference(one.side.table, other.side.table, pairs, nearest(one.xs, other.xs), log);
  const cells = columns(one.xs, range, most, relative);
  const values = cellMedians(
    raw,
    rows.length,
    rows.map((_, n) => n),
    cells,
  );
  const colours = colouring(values, { log, centre: log ? 1 : 0, theme });
  return { ...base, cells, values, colours, drawn: drawnRows(values, colours), missing: null };
}

function placesOf({ table }, names) {
  const known = new Map(table.layers.map((name, n) => [name, n]));
  return names.map((name) => known.get(name) ?? -1);
}
