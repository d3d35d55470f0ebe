/** From samples at irregular steps to the columns of a heatmap. Pure functions. */

/**
 * @typedef {Object} Columns
 * @property {Float64Array} edges one more than columns
 * @property {Int32Array} from first sample of each column
 * @property {Int32Array} to one beyond its last sample; equal to `from` where nothing was sampled
 */

/**
 * Columns within a range: one per sample, or, where there are more samples than columns, equal parts of the range.
 * @param {ArrayLike<number>} xs increasing
 * @param {[number, number]} range
 * @param {number} most
 * @param {boolean} holes whether long pauses between samples stay empty
 * @returns {Columns}
 */
export function columns(xs, [low, high], most, holes) {
  let first = 0;
  let last = xs.length;
  while (first + 1 < last && xs[first + 1] <= low) first++;
  while (last - 1 > first && xs[last - 2] >= high) last--;
  const starts = [];
  const part = (high - low) / most;
  let bin = NaN;
  for (let i = first; i < last; i++) {
    const now = last - first > most ? Math.floor((xs[i] - low) / part) : i;
    if (now !== bin) starts.push(i);
    bin = now;
  }
  const edges = [];
  const from = [];
  const to = [];
  const reach = pauses(xs, first, last);
  starts.forEach((start, n) => {
    const before = start > first ? (xs[start] - xs[start - 1]) / 2 : reach.usual / 2;
    if (n === 0) edges.push(xs[start] - before);
    else if (holes && 2 * before > reach.longest(start)) {
      edges.push(xs[start - 1] + reach.usual / 2, xs[start] - reach.usual / 2);
      from.push(start);
      to.push(start);
    } else edges.push(xs[start] - before);
    from.push(start);
    to.push(starts[n + 1] ?? last);
  });
  if (starts.length) edges.push(xs[last - 1] + (last < xs.length ? (xs[last] - xs[last - 1]) / 2 : reach.usual / 2));
  return { edges: Float64Array.from(edges), from: Int32Array.from(from), to: Int32Array.from(to) };
}

/**
 * Per row and column the median of the known values.
 * @param {Float32Array|Float64Array} values [samples, width]
 * @param {number} width
 * @param {number[]} rows indices below width; -1: a row without values
 * @param {Columns} cells
 * @returns {Float64Array[]}
 */
export function cellMedians(values, width, rows, { from, to }) {
  const some = [];
  return rows.map((row) => {
    const line = new Float64Array(from.length).fill(NaN);
    if (row < 0) return line;
    for (let c = 0; c < from.length; c++) {
      if (to[c] - from[c] === 1) {
        line[c] = values[from[c] * width + row];
        continue;
      }
      some.length = 0;
      for (let i = from[c]; i < to[c]; i++) {
        const value = values[i * width + row];
        if (value === value) some.push(value);
      }
      some.sort((a, b) => a - b);
      const half = some.length >> 1;
      if (some.length) line[c] = some.length % 2 ? some[half] : (some[half - 1] + some[half]) / 2;
    }
    return line;
  });
}

/**
 * Leaves out the samples at which nothing was measured at all: between them, a rare quantity is not a gap.
 * @param {import("./api.js").Table} table
 * @returns {import("./api.js").Table}
 */
export function onlyMeasured(table) {
  const width = table.layers.length * table.stats.length;
  const kept = [];
  for (let i = 0; i < table.steps.length; i++) {
    for (let k = i * width; k < (i + 1) * width; k++) {
      if (table.values[k] === table.values[k]) {
        kept.push(i);
        break;
      }
    }
  }
  if (kept.length === table.steps.length) return table;
  const values = new Float32Array(kept.length * width);
  kept.forEach((i, n) => values.set(table.values.subarray(i * width, (i + 1) * width), n * width));
  const pick = (source) => Float64Array.from(kept, (i) => source[i]);
  return { ...table, steps: pick(table.steps), times: pick(table.times), values };
}

function pauses(xs, first, last) {
  const gap = (i) => xs[i] - xs[i - 1];
  const all = [];
  for (let i = Math.max(1, first); i < last; i++) all.push(gap(i));
  const usual = all.length ? all.sort((a, b) => a - b)[all.length >> 1] : 1;
  const longest = (i) => {
    const near = [];
    for (let k = Math.max(1, i - 5); k < Math.min(xs.length, i + 6); k++) if (k !== i) near.push(gap(k));
    near.sort((a, b) => a - b);
    return 20 * Math.max(usual, near[near.length >> 1] ?? usual);
  };
  return { usual, longest };
}
