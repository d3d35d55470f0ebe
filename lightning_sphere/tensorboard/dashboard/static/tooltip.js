/** What stands beside the pointer over a heatmap: layer, step, values with units. */

import { fill, h } from "./dom.js";
import { KIND_WORDS, shorten } from "./kinds.js";
import { formatCount, formatDuration, formatFactor, formatValue } from "./numbers.js";

/**
 * @typedef {Object} Pointed
 * @property {import("./heatmap.js").Spot} spot
 * @property {number} x step, or seconds since the start
 * @property {MouseEvent} event
 * @property {import("./view.js").Row} row
 * @property {import("./view.js").Pane[]} panes
 * @property {string} title of the quantity
 * @property {boolean} relative
 */

/** @returns {{element: HTMLElement, show: (what: Pointed) => void, hide: () => void}} */
export function createTooltip() {
  const element = h("div", { class: "tooltip", testid: "tooltip", hidden: true });
  function show({ spot, x, event, row, panes, title, relative }) {
    const lines = panes.map((pane) => {
      const label = { a: panes.length > 1 ? "A" : title, b: "B", difference: pane.title }[pane.key];
      return h("tr", {}, h("th", {}, label), h("td", {}, valueAt(pane, spot.row, x)));
    });
    element.hidden = false;
    fill(
      element,
      h("strong", {}, shorten(row.name, "", 60)),
      h("div", { class: "muted" }, KIND_WORDS.get(row.kind).words),
      h("div", {}, stepsAt(spot.pane, x), relative ? `, after ${formatDuration(Math.max(0, x))}` : ""),
      h("table", {}, h("tbody", {}, ...lines)),
    );
    const { width, height } = element.getBoundingClientRect();
    const right = event.clientX + 16;
    const left = Math.max(4, right + width > innerWidth ? event.clientX - 16 - width : right);
    const top = Math.max(4, Math.min(innerHeight - height - 4, event.clientY + 14));
    element.style.transform = `translate(${left}px,${top}px)`;
  }
  return { element, show, hide: () => void (element.hidden = true) };
}

function valueAt(pane, row, x) {
  const column = columnAt(pane.cells.edges, x);
  const value = column < 0 ? NaN : pane.values[row][column];
  if (!Number.isFinite(value)) return "no value";
  return pane.key === "difference" && pane.colours.log ? formatFactor(value) : formatValue(value, pane.unit);
}

function columnAt(edges, x) {
  let low = 0;
  let high = edges.length - 1;
  if (high < 1 || x < edges[0] || x > edges[high]) return -1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (edges[middle] <= x) low = middle;
    else high = middle;
  }
  return low;
}

function stepsAt({ cells, steps }, x) {
  const column = columnAt(cells.edges, x);
  if (column < 0 || cells.to[column] === cells.from[column]) return "nothing recorded";
  const [first, last] = [steps[cells.from[column]], steps[cells.to[column] - 1]];
  const count = cells.to[column] - cells.from[column];
  return count === 1
    ? `step ${formatCount(first)}`
    : `steps ${formatCount(first)} to ${formatCount(last)}, median of ${count} samples`;
}
