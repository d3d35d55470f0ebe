/** The heatmaps, and the opened layer below them, as one picture with title, names and units in it. */

import { paneTitle } from "./heatmap.js";
import { linearTicks, xTicks } from "./numbers.js";
import { escaped, FONT, themeColours } from "./plots.js";

const WIDTH = 1400;
const SCALE = 2;
const MOST_PIXELS = 12_000;

/**
 * @param {any} Plotly
 * @param {{title: string, subtitle: string, figure: {data: any[], layout: any}, panes: import("./view.js").Pane[],
 *   rows: import("./view.js").Row[], quantity: any, range: [number, number], relative: boolean,
 *   detail: {title: string, figure: {data: any[], layout: any}}|null}} what
 * @returns {Promise<Blob>} PNG
 */
export async function picture(Plotly, { title, subtitle, figure, panes, rows, quantity, range, relative, detail }) {
  const colours = themeColours();
  const rowHeight = Math.max(13, Math.min(24, 520 / Math.max(1, rows.length)));
  const height = rows.length * rowHeight + 130;
  const parts = [[labelled({ figure, panes, rows, quantity, range, relative, height, colours }), height]];
  if (detail) parts.push([detail.figure, 380]);
  const total = 64 + height + (detail ? 30 + 380 : 0) + 12;
  const scale = Math.min(SCALE, MOST_PIXELS / total);
  const images = [];
  for (const [{ data, layout }, tall] of parts) {
    const source = await Plotly.toImage(
      { data, layout: { ...layout, width: WIDTH, height: tall } },
      { format: "png", width: WIDTH, height: tall, scale },
    );
    images.push([await loaded(source), tall]);
  }
  const canvas = document.createElement("canvas");
  canvas.width = WIDTH * scale;
  canvas.height = total * scale;
  const pen = canvas.getContext("2d");
  pen.scale(scale, scale);
  pen.fillStyle = colours.panel;
  pen.fillRect(0, 0, WIDTH, total);
  const write = (text, size, weight, colour, y) => {
    pen.font = `${weight} ${size}px ${FONT}`;
    pen.fillStyle = colour;
    pen.fillText(text, 20, y, WIDTH - 40);
  };
  write(title, 19, 600, colours.text, 30);
  write(subtitle, 13, 400, colours.muted, 52);
  let y = 64;
  images.forEach(([image, tall], n) => {
    if (n) {
      write(detail.title, 15, 600, colours.text, y + 20);
      y += 30;
    }
    pen.drawImage(image, 0, y, WIDTH, tall);
    y += tall;
  });
  return new Promise((resolve, reject) =>
    canvas.toBlob((blob) => (blob ? resolve(blob) : reject(new Error("the picture is too large"))), "image/png"),
  );
}

function labelled({ figure, panes, rows, quantity, range, relative, height, colours }) {
  const { ticks, title } = xTicks(range, relative, Math.floor(9 / panes.length) + 1);
  const longest = Math.max(...rows.map((row) => Math.min(48, row.name.length)), 8);
  const margin = { l: Math.min(360, 26 + longest * 6.6), r: 20, t: 78, b: 52 };
  const inner = WIDTH - margin.l - margin.r;
  const layout = {
    ...figure.layout,
    height,
    margin,
    paper_bgcolor: colours.panel,
    plot_bgcolor: colours.gap,
    annotations: [],
  };
  layout.yaxis = {
    ...layout.yaxis,
    visible: true,
    showgrid: false,
    zeroline: false,
    tickmode: "array",
    tickvals: rows.map((_, n) => n),
    tickfont: { size: 11 },
    ticktext: rows.map(
      (row) => `${escaped(row.name.length > 48 ? `${row.name.slice(0, 20)}\u2026${row.name.slice(-27)}` : row.name)} `,
    ),
  };
  const inside = ticks.filter(
    ({ value }) => panes.length === 1 || Math.abs((value - range[0]) / (range[1] - range[0]) - 0.5) < 0.46,
  );
  const data = figure.data.map((trace, n) => {
    const key = n ? `xaxis${n + 1}` : "xaxis";
    layout[key] = {
      ...layout[key],
      visible: true,
      showgrid: false,
      zeroline: false,
      tickmode: "array",
      tickvals: inside.map((tick) => tick.value),
      ticktext: inside.map((tick) => tick.text),
      title: { text: title, font: { size: 12 } },
    };
    const [low, high] = layout[key].domain;
    const { colours: scale } = panes[n];
    const span = scale.high - scale.low;
    const marks = scale.ticks.length ? scale.ticks : linearTicks(0, 1, 2);
    return {
      ...trace,
      showscale: true,
      colorbar: {
        orientation: "h",
        x: low,
        xanchor: "left",
        y: 1,
        yanchor: "bottom",
        ypad: 6,
        xpad: 0,
        thickness: 10,
        len: Math.min(1, 420 / inner / (high - low)) * (high - low),
        outlinewidth: 0,
        title: {
          text: escaped(
            `${panes.length > 1 ? `${{ a: "A: ", b: "B: " }[panes[n].key] ?? ""}${panes[n].key === "difference" ? "" : `${panes[n].title}, `}` : ""}${paneTitle(panes[n], quantity)}${scale.log ? ", log scale" : ""}`,
          ),
          side: "top",
          font: { size: 12 },
        },
        tickmode: "array",
        tickvals: marks.map((tick) => scale.low + tick.value * span),
        ticktext: marks.map((tick) => tick.text),
        tickfont: { size: 11 },
      },
    };
  });
  return { data, layout };
}

function loaded(source) {
  return new Promise((resolve, reject) => {
    const image = new Image();
    image.onload = () => resolve(image);
    image.onerror = () => reject(new Error("the picture could not be drawn"));
    image.src = source;
  });
}
