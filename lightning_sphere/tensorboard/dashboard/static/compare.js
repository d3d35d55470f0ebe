/** Two runs side by side: which layers and samples belong together, and how they differ. Pure functions. */

/**
 * The layers of both runs by name, in the order of the first; what only the second has follows its predecessor there.
 * @param {string[]} first
 * @param {string[]|null} second null: there is no second run
 * @returns {{name: string, a: number, b: number}[]} indices, -1: not in this run
 */
export function alignLayers(first, second) {
  const rows = first.map((name, a) => ({ name, a, b: -1 }));
  if (!second) return rows;
  const known = new Map(rows.map((row) => [row.name, row]));
  let before = null;
  second.forEach((name, b) => {
    let row = known.get(name);
    if (row) row.b = b;
    else {
      row = { name, a: -1, b };
      rows.splice(before ? rows.indexOf(before) + 1 : 0, 0, row);
      known.set(name, row);
    }
    before = row;
  });
  return rows;
}

/**
 * For each place of the first run the nearest sample of the second.
 * @param {ArrayLike<number>} xs increasing
 * @param {ArrayLike<number>} others increasing
 * @returns {Int32Array} indices; -1 where the second run has nothing near
 */
export function nearest(xs, others) {
  const result = new Int32Array(xs.length).fill(-1);
  if (!others.length) return result;
  const reach = 2 * Math.max(spacing(xs), spacing(others));
  let k = 0;
  for (let i = 0; i < xs.length; i++) {
    while (k + 1 < others.length && Math.abs(others[k + 1] - xs[i]) <= Math.abs(others[k] - xs[i])) k++;
    const wide = Math.max(
      reach,
      k > 0 ? others[k] - others[k - 1] : 0,
      k + 1 < others.length ? others[k + 1] - others[k] : 0,
    );
    const inside = xs[i] >= others[0] - reach && xs[i] <= others[others.length - 1] + reach;
    if (inside && Math.abs(others[k] - xs[i]) <= wide) result[i] = k;
  }
  return result;
}

/**
 * Second run less the first, or over the first, at the samples of the first.
 * @param {{values: Float32Array, layers: string[]}} first table of medians
 * @param {{values: Float32Array, layers: string[]}} second
 * @param {{a: number, b: number}[]} rows
 * @param {Int32Array} partners from `nearest`
 * @param {boolean} factor B / A instead of B - A
 * @returns {Float64Array} [samples of the first, rows]
 */
export function difference(first, second, rows, partners, factor) {
  const result = new Float64Array(partners.length * rows.length).fill(NaN);
  for (let i = 0; i < partners.length; i++) {
    if (partners[i] < 0) continue;
    for (let n = 0; n < rows.length; n++) {
      const { a, b } = rows[n];
      if (a < 0 || b < 0) continue;
      const one = first.values[i * first.layers.length + a];
      const other = second.values[partners[i] * second.layers.length + b];
      const value = factor ? (one > 0 && other > 0 ? other / one : NaN) : other - one;
      result[i * rows.length + n] = value;
    }
  }
  return result;
}

function spacing(xs) {
  const gaps = Array.from({ length: Math.max(0, xs.length - 1) }, (_, i) => xs[i + 1] - xs[i]).sort((a, b) => a - b);
  return gaps.length ? gaps[gaps.length >> 1] : 1;
}
