/** Saves what is shown: a table as CSV, and files in general. */

import { column } from "./samples.js";
import { nearest } from "./compare.js";

/**
 * One cell: quoted where needed, and text that a spreadsheet would run as a formula is marked as text.
 * @param {string|number|null|undefined} value
 * @returns {string}
 */
export function cell(value) {
  if (value === null || value === undefined || (typeof value === "number" && !Number.isFinite(value))) return "";
  if (typeof value === "number") return String(value);
  const text = /^[=+\-@\t\r]/.test(value) ? `'${value}` : value;
  return /[",\r\n]/.test(text) || text !== value ? `"${text.replaceAll('"', '""')}"` : text;
}

/** @param {(string|number|null|undefined)[][]} rows @returns {string} as RFC 4180 has it */
export function toCsv(rows) {
  return rows.map((row) => row.map(cell).join(",")).join("\r\n") + "\r\n";
}

/**
 * The medians of all layers that are shown, one line per layer and sample, within the zoom.
 * @param {{quantity: string, unit: string, rows: import("./view.js").Row[], a: any, b: any, xa: ArrayLike<number>,
 *   xb: ArrayLike<number>|null, zoom: [number, number]|null}} what
 * @returns {(string|number|null)[][]}
 */
export function shownTable({ quantity, unit, rows, a, b, xa, xb, zoom }) {
  const name = unit ? `${quantity} (${unit})` : quantity;
  const head = ["run", "layer", "kind", "step", "wall_time", name];
  const lines = [b ? [...head, "run_b", "step_b", "wall_time_b", `${name} of run_b`, "difference (b - a)"] : head];
  const inside = (x) => !zoom || (x >= zoom[0] && x <= zoom[1]);
  const place = (side) => new Map(side.table.layers.map((layer, n) => [layer, n]));
  const placeA = place(a);
  const placeB = b && place(b);
  const at = (side, places, layer, i) =>
    places.has(layer) && i >= 0 ? side.table.values[i * side.table.layers.length + places.get(layer)] : NaN;
  const partners = b && nearest(xa, xb);
  for (const { name: layer, kind } of rows) {
    if (!placeA.has(layer)) {
      if (b && placeB.has(layer)) {
        for (let i = 0; i < xb.length; i++) {
          if (inside(xb[i]))
            lines.push([
              a.name,
              layer,
              kind,
              null,
              null,
              null,
              b.name,
              b.table.steps[i],
              b.table.times[i],
              number(at(b, placeB, layer, i)),
              null,
            ]);
        }
      }
      continue;
    }
    for (let i = 0; i < xa.length; i++) {
      if (!inside(xa[i])) continue;
      const one = at(a, placeA, layer, i);
      const line = [a.name, layer, kind, a.table.steps[i], a.table.times[i], number(one)];
      if (b) {
        const k = partners[i];
        const other = at(b, placeB, layer, k);
        line.push(
          b.name,
          k < 0 ? null : b.table.steps[k],
          k < 0 ? null : b.table.times[k],
          number(other),
          number(other - one),
        );
      }
      lines.push(line);
    }
  }
  return lines;
}

/**
 * All statistics of the opened layer.
 * @param {{quantity: string, unit: string, layer: string, curves: import("./curves.js").Curve[], relative: boolean, zoom: [number, number]|null}} what
 * @returns {(string|number|null)[][]}
 */
export function layerTable({ quantity, unit, layer, curves, relative, zoom }) {
  const stats = ["p10", "median", "p90", "rms"];
  const name = unit ? `${quantity} (${unit})` : quantity;
  const lines = [["run", "layer", "step", "wall_time", ...stats.map((stat) => `${stat} of ${name}`)]];
  for (const { name: run, values: table, start } of curves) {
    if (!table) continue;
    const columns = stats.map((stat) => column(table, stat));
    table.steps.forEach((step, i) => {
      const x = relative ? table.times[i] - start : step;
      if (!zoom || (x >= zoom[0] && x <= zoom[1]))
        lines.push([run, layer, step, table.times[i], ...columns.map((values) => (values ? number(values[i]) : null))]);
    });
  }
  return lines;
}

/**
 * @param {Blob} blob
 * @param {string} name
 */
export function save(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

/** @param {...string} parts @returns {string} a file name that every system takes */
export function fileName(...parts) {
  return parts
    .filter(Boolean)
    .map((part) => part.replace(/[^\p{L}\p{N}._-]+/gu, "_").slice(0, 60))
    .join("_");
}

/** Nine digits tell every float32 from its neighbours; fewer, where they do. */
function number(value) {
  if (!Number.isFinite(value)) return null;
  for (const digits of [7, 8]) {
    const short = Number(value.toPrecision(digits));
    if (Math.fround(short) === value) return short;
  }
  return Number(value.toPrecision(9));
}
