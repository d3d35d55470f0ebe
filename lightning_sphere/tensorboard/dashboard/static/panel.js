/** The panel in the middle: filters, list of layers, heatmaps, legends and axis. */

import { fill, h } from "./dom.js";
import { createHeatmap, GAP, heatmapFigure } from "./heatmap.js";
import { createLayers } from "./layers.js";
import { drawAxis, legend } from "./legend.js";
import { formatCount } from "./numbers.js";
import { createTooltip } from "./tooltip.js";

const ROW = { least: 14, most: 30 };

/**
 * @param {{filters: HTMLElement, onopen: (name: string) => void, onzoom: (range: [number, number]|null) => void}} parts
 */
export function createPanel({ filters, onopen, onzoom }) {
  const list = h("ul", { class: "layers", testid: "layers" });
  const graph = h("div", { id: "heatmap-plot" });
  const hatch = h("div", { class: "hatches", "aria-hidden": true });
  const pointed = h("div", { class: "marker pointed-row", hidden: true });
  const chosen = h("div", { class: "marker chosen-row", hidden: true });
  const plot = h("div", { class: "plot-area" }, hatch, graph, pointed, chosen);
  const lines = h("div", { class: "lines" }, list, plot);
  const cover = h("div", { class: "cover", testid: "map-cover", hidden: true });
  const unmeasured = h("details", { class: "unmeasured", testid: "unmeasured", hidden: true });
  const body = h("div", { class: "map-body" }, lines, unmeasured);
  const legends = h("div", { class: "legends" });
  const reset = h(
    "button",
    {
      type: "button",
      class: "reset",
      testid: "reset-zoom",
      title: "Show the whole run again (or double-click the heatmap)",
      disabled: true,
      onclick: () => onzoom(null),
    },
    "Reset zoom",
  );
  const help = h("p", { class: "help muted" }, "Click a row to open the layer. Drag to zoom.");
  const axes = h("div", { class: "axes", "aria-hidden": true });
  const hint = h(
    "div",
    { class: "axis-left muted" },
    h("span", { class: "gap-swatch", "aria-hidden": true }),
    "no value: skipped or unmeasured",
  );
  const tooltip = createTooltip();
  const element = h(
    "section",
    { class: "panel map", testid: "heatmap", "aria-label": "Layers by steps" },
    h("div", { class: "map-head" }, filters, h("div", { class: "legend-side" }, legends, help, reset)),
    h("div", { class: "map-frame" }, body, cover),
    h("div", { class: "map-axis" }, hint, axes),
  );

  let rows = [];
  let rowHeight = ROW.most;
  let context = { relative: false, title: "", panes: [] };
  const point = (row) => {
    place(pointed, row);
    layers.point(row);
  };
  const layers = createLayers(list, { onopen, onactive: (row) => point(row) });
  const drawHeatmap = createHeatmap(graph, {
    onzoom,
    onclick: ({ row }) => rows[row] && onopen(rows[row].name),
    onhover: (spot, x, event) => {
      point(spot ? spot.row : -1);
      if (spot && rows[spot.row]) tooltip.show({ spot, x, event, row: rows[spot.row], ...context });
      else tooltip.hide();
    },
  });

  function place(marker, row) {
    marker.hidden = row < 0 || row >= rows.length;
    marker.style.transform = `translateY(${row * rowHeight}px)`;
    marker.style.height = `${rowHeight}px`;
  }

  return {
    element,
    tooltip: tooltip.element,
    graph,
    list,
    layers,
    point,
    /** @returns {number} pixels for the heatmaps */
    width: () => plot.clientWidth,
    /** @param {import("./view.js").Row[]} now @param {string} layer @param {boolean} compared @param {{parameter: string, reason: string}[]} skipped @returns {number} height of a row */
    drawRows(now, layer, compared, skipped) {
      rows = now;
      drawUnmeasured(unmeasured, skipped);
      rowHeight = Math.max(
        ROW.least,
        Math.min(ROW.most, Math.floor((body.clientHeight - unmeasured.offsetHeight) / Math.max(1, rows.length))),
      );
      layers.draw(rows, layer, compared, rowHeight);
      plot.style.height = `${rowHeight * rows.length}px`;
      place(chosen, layers.place(layer));
      place(pointed, -1);
      return rowHeight;
    },
    /** Scrolls to a layer, if it is out of sight. @param {string} layer */
    reveal(layer) {
      const row = layers.place(layer);
      if (row < 0) return;
      const top = row * rowHeight;
      if (top < body.scrollTop || top + rowHeight > body.scrollTop + body.clientHeight)
        body.scrollTop = top - (body.clientHeight - rowHeight) / 2;
    },
    /** @param {any} Plotly @param {{panes: any[], range: [number, number]}} built @param {any} quantity @param {boolean} relative */
    async draw(Plotly, built, quantity, relative) {
      const { panes, range, full } = built;
      reset.disabled = range === full;
      context = { panes, relative, title: quantity.title };
      for (const box of [legends, hatch, axes]) box.style.gridTemplateColumns = `repeat(${panes.length},minmax(0,1fr))`;
      for (const box of [legends, hatch, axes]) box.style.columnGap = `${GAP}px`;
      help.hidden = panes.length > 1;
      fill(legends, ...panes.map((pane) => legend(pane, quantity, panes.length === 1)));
      fill(
        hatch,
        ...panes.map((pane) =>
          h("div", { class: "hatch" }, pane.missing && h("span", { class: "missing" }, pane.missing)),
        ),
      );
      const width = plot.clientWidth;
      axes.style.width = `${width}px`;
      fill(axes, ...panes.map(() => h("div", { class: "axis" })));
      for (const axis of axes.children)
        drawAxis(axis, range, relative, (width - GAP * (panes.length - 1)) / panes.length);
      tooltip.hide();
      if (Plotly)
        await drawHeatmap(Plotly, panes, heatmapFigure(panes, rows, quantity, range, width, rowHeight * rows.length));
    },
    /** @param {Node|null} content over list and heatmap, or over the heatmap only @param {boolean} beside */
    tell(content, beside = false) {
      cover.hidden = !content;
      cover.classList.toggle("beside", beside);
      fill(cover, content);
    },
  };
}

function drawUnmeasured(element, skipped) {
  element.hidden = !skipped.length;
  const signature = JSON.stringify(skipped);
  if (element.dataset.signature === signature) return;
  element.dataset.signature = signature;
  fill(
    element,
    h(
      "summary",
      {},
      `${formatCount(skipped.length)} ${skipped.length === 1 ? "weight is" : "weights are"} not measured`,
    ),
    h("ul", {}, ...skipped.map(({ parameter, reason }) => h("li", {}, h("strong", {}, parameter), ` ${reason}`))),
  );
}
