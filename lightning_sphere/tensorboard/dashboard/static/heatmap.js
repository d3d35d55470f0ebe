/** The heatmaps as plotly draws them, one figure with one to three parts; and what the pointer does there. */

import { CONFIG, escaped, FONT, themeColours, withUnit } from "./plots.js";

/** Milliseconds within which a second click makes a double one. */
const DOUBLE_CLICK = 300;
/** Pixels between heatmaps that stand side by side. */
export const GAP = 16;

/**
 * @param {import("./view.js").Pane[]} panes
 * @param {import("./view.js").Row[]} rows
 * @param {{title: string, unit: string}} quantity
 * @param {[number, number]} range
 * @param {number} width pixels
 * @param {number} height
 * @returns {{data: any[], layout: any}}
 */
export function heatmapFigure(panes, rows, quantity, range, width, height) {
  const part = (width - GAP * (panes.length - 1)) / panes.length;
  const colours = themeColours();
  const layout = {
    width,
    height,
    margin: { l: 0, r: 0, t: 0, b: 0 },
    dragmode: "zoom",
    showlegend: false,
    uirevision: "stay",
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    hoverdistance: 1,
    font: { family: FONT, color: colours.text, size: 12 },
    yaxis: { range: [rows.length - 0.5, -0.5], fixedrange: true, visible: false },
  };
  const data = panes.map((pane, n) => {
    const at = n ? `x${n + 1}` : "x";
    layout[n ? `xaxis${n + 1}` : "xaxis"] = {
      domain: [(n * (part + GAP)) / width, Math.min(1, (n * (part + GAP) + part) / width)],
      range: [...range],
      visible: false,
      autorange: false,
      anchor: "y",
      ...(n ? { matches: "x" } : {}),
    };
    return {
      type: "heatmap",
      xaxis: at,
      yaxis: "y",
      name: escaped(pane.title),
      x: pane.cells.edges,
      y: rows.map((_, k) => k),
      z: pane.drawn,
      zmin: pane.colours.low,
      zmax: pane.colours.high,
      zauto: false,
      colorscale: pane.colours.colours,
      showscale: false,
      hoverinfo: "none",
      hoverongaps: true,
      meta: { layers: rows.map((row) => escaped(row.name)), pane: pane.key, log: pane.colours.log },
      colorbar: { title: { text: escaped(paneTitle(pane, quantity)) } },
    };
  });
  return { data, layout };
}

/**
 * @param {import("./view.js").Pane} pane
 * @param {{title: string, unit: string}} quantity
 * @returns {string} what its colours mean
 */
export function paneTitle(pane, quantity) {
  if (pane.key !== "difference") return withUnit(quantity.title, pane.unit);
  return pane.colours.log ? `${quantity.title}, factor B / A` : withUnit(`${quantity.title}, B \u2212 A`, pane.unit);
}

/**
 * @typedef {{pane: import("./view.js").Pane, row: number, column: number}} Spot
 * @param {HTMLElement} graph
 * @param {{onhover: (spot: Spot|null, x: number, event: MouseEvent|null) => void, onclick: (spot: Spot) => void,
 *   onzoom: (range: [number, number]|null) => void}} listeners
 * @returns {(Plotly: any, panes: import("./view.js").Pane[], figure: {data: any[], layout: any}) => Promise<void>} draws
 */
export function createHeatmap(graph, { onhover, onclick, onzoom }) {
  let shown = [];
  let wired = false;
  const spot = (point) => {
    const [row, column] = point.pointIndex ?? point.pointNumber;
    return { pane: shown[point.curveNumber], row, column };
  };
  return async (Plotly, panes, figure) => {
    shown = panes;
    await Plotly.react(graph, figure.data, figure.layout, CONFIG);
    if (wired) return;
    wired = true;
    graph.on("plotly_hover", ({ points, event }) => points.length && onhover(spot(points[0]), points[0].x, event));
    graph.on("plotly_unhover", () => onhover(null, NaN, null));
    let click = 0;
    let doubled = -Infinity;
    graph.on("plotly_click", ({ points }) => {
      clearTimeout(click);
      if (!points.length || performance.now() - doubled < DOUBLE_CLICK) return; // plotly tells of its second half, too
      const clicked = spot(points[0]);
      click = setTimeout(() => onclick(clicked), DOUBLE_CLICK);
    });
    graph.on("plotly_doubleclick", () => {
      clearTimeout(click);
      doubled = performance.now();
      onzoom(null);
    });
    graph.on("plotly_relayout", (change) => zoomed(change, onzoom));
  };
}

/**
 * @param {Record<string, any>} change what plotly reports
 * @param {(range: [number, number]|null) => void} onzoom
 */
export function zoomed(change, onzoom) {
  for (const axis of ["xaxis", "xaxis2", "xaxis3"]) {
    if (change[`${axis}.autorange`]) return onzoom(null);
    const low = change[`${axis}.range[0]`] ?? change[`${axis}.range`]?.[0];
    const high = change[`${axis}.range[1]`] ?? change[`${axis}.range`]?.[1];
    if (Number.isFinite(low) && Number.isFinite(high)) return onzoom(low < high ? [low, high] : [high, low]);
  }
}
