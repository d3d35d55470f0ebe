/** One layer over time as plotly draws it: quantity, band, prediction, and the learning rate below. */

import { onlyMeasured } from "./grid.js";
import { smooth, xTicks } from "./numbers.js";
import { wrapped, yAxis } from "./axes.js";
import { column, lonely, polygon, together } from "./samples.js";
import { escaped, faint, FONT, themeColours, withUnit } from "./plots.js";

/**
 * @typedef {Object} Curve one run's numbers of the layer
 * @property {"a"|"b"} key
 * @property {string} name of the run
 * @property {import("./api.js").Table|undefined} values all statistics of the quantity
 * @property {import("./api.js").Table|undefined} predicted medians of its prediction
 * @property {import("./api.js").Table|undefined} rate the nominal learning rate
 * @property {number} start wall time of the run's first step
 * @property {boolean} single whether the layer is one group only, so that there is no band
 */

/**
 * @param {Curve[]} curves one, or two that are compared
 * @param {{quantity: any, prediction: any, log: boolean, relative: boolean, weight: number, range: [number, number],
 *   width: number, height: number}} how
 * @returns {{data: any[], layout: any}}
 */
export function curvesFigure(curves, { quantity, prediction, log, relative, weight, range, width, height }) {
  const colours = themeColours();
  const compared = curves.length > 1;
  const hasRate = curves.some(({ rate }) => rate);
  const { ticks, title } = xTicks(range, relative, Math.max(2, Math.floor(width / 100)));
  const axis = {
    gridcolor: colours.line,
    zeroline: false,
    linecolor: colours.line,
    tickfont: { color: colours.muted, size: 11 },
    title: { font: { size: 12, color: colours.muted }, standoff: 6 },
  };
  const layout = {
    width,
    height,
    margin: { l: 74, r: 14, t: 28, b: 38 },
    dragmode: "zoom",
    uirevision: "stay",
    hovermode: "x unified",
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: FONT, color: colours.text, size: 12 },
    hoverlabel: {
      bgcolor: colours.panel,
      bordercolor: colours.line,
      font: { color: colours.text, family: FONT, size: 12 },
      namelength: 60,
    },
    legend: {
      orientation: "h",
      x: 0,
      y: 1,
      yanchor: "bottom",
      xanchor: "left",
      font: { size: 12 },
      bgcolor: "rgba(0,0,0,0)",
    },
    xaxis: {
      ...axis,
      range: [...range],
      autorange: false,
      title: { ...axis.title, text: title },
      anchor: hasRate ? "y2" : "y",
      tickmode: "array",
      tickvals: ticks.map((tick) => tick.value),
      ticktext: ticks.map((tick) => tick.text),
      hoverformat: relative ? ".0f" : ",d",
      unifiedhovertitle: { text: relative ? "%{x} s" : "step %{x}" },
    },
    yaxis: {
      ...axis,
      domain: hasRate ? [0.36, 1] : [0, 1],
      type: log ? "log" : "linear",
      fixedrange: true,
      title: { ...axis.title, text: wrapped(withUnit(quantity.title, quantity.unit)) },
    },
  };
  if (hasRate)
    layout.yaxis2 = { ...axis, domain: [0, 0.24], fixedrange: true, title: { ...axis.title, text: "nominal lr" } };
  const data = curves.flatMap((curve) =>
    tracesOf(curve, { colours, compared, quantity, prediction, relative, weight }),
  );
  if (quantity.reference !== null && quantity.reference !== undefined) {
    data.push(
      lineTrace({
        x: range,
        y: [quantity.reference, quantity.reference],
        name: `prediction: ${quantity.reference}`,
        line: { color: colours.predicted, width: 1.6, dash: "dash" },
        meta: "reference",
        hoverinfo: "skip",
      }),
    );
  }
  const upright = (key) => data.filter((trace) => trace.yaxis === key);
  Object.assign(layout.yaxis, yAxis(upright("y"), range, log, 6));
  if (hasRate) Object.assign(layout.yaxis2, yAxis(upright("y2"), range, false, 3, 0));
  return { data, layout };
}

function tracesOf(curve, { colours, compared, quantity, prediction, relative, weight }) {
  const who = compared ? `${curve.key.toUpperCase()} ` : "";
  const colour = colours[curve.key];
  const xs = (table) => (relative ? table.times.map((time) => time - curve.start) : table.steps);
  const traces = [];
  if (curve.values) {
    const table = quantity.rare ? onlyMeasured(curve.values) : together(curve.values);
    const x = xs(table);
    const [low, median, high] = ["p10", "median", "p90"].map((stat) => column(table, stat));
    if (!curve.single && low && high) {
      const band = polygon(x, low, high);
      traces.push(
        lineTrace({
          ...band,
          name: `${who}p10\u2013p90 of groups`,
          mode: "lines",
          fill: "toself",
          fillcolor: faint(colour, compared ? 0.13 : 0.18),
          line: { width: 0 },
          meta: `band-${curve.key}`,
          hoverinfo: "skip",
        }),
      );
    }
    const raw = weight > 0;
    const label = `${who}median`;
    traces.push(
      lineTrace({
        x,
        y: median,
        name: label,
        line: { color: raw ? faint(colour, 0.35) : colour, width: raw ? 1 : 1.8 },
        meta: `raw-${curve.key}`,
        showlegend: !raw,
        ...(raw ? {} : lonely(median, colour)),
      }),
    );
    if (raw)
      traces.push(
        lineTrace({
          x,
          y: smooth(median, weight),
          name: `${label}, smoothed`,
          line: { color: colour, width: 2 },
          meta: `smooth-${curve.key}`,
          ...lonely(median, colour),
        }),
      );
  }
  if (curve.predicted) {
    const table = together(curve.predicted);
    const y = column(table, "median");
    if (y.some(Number.isFinite)) {
      traces.push(
        lineTrace({
          x: xs(table),
          y,
          name: `${who}${escaped(prediction?.title ?? "predicted in equilibrium")}`,
          line: { color: compared ? colour : colours.predicted, width: 1.6, dash: "dash" },
          meta: `predicted-${curve.key}`,
        }),
      );
    }
  }
  if (curve.rate) {
    const table = together(curve.rate);
    const y = column(table, "median");
    traces.push(
      lineTrace({
        x: xs(table),
        y,
        ...lonely(y, compared ? colour : colours.rate),
        yaxis: "y2",
        name: `${who}nominal lr`,
        showlegend: false,
        line: { color: compared ? colour : colours.rate, width: 1.6 },
        meta: `rate-${curve.key}`,
      }),
    );
  }
  return traces;
}

function lineTrace(parts) {
  return {
    type: "scatter",
    mode: "lines",
    connectgaps: false,
    hovertemplate: "%{y:.4~g}",
    xaxis: "x",
    yaxis: "y",
    ...parts,
  };
}
