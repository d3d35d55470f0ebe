/** The y axes of the curves: range, ticks, title. Pure functions. */

import { linearTicks, logTicks } from "./numbers.js";
import { escaped } from "./plots.js";

/** Two lines or three, where one would be longer than the axis. */
export function wrapped(text) {
  const lines = [""];
  for (const word of text.split(" ")) {
    if (lines[lines.length - 1].length + word.length > 20) lines.push("");
    lines[lines.length - 1] += `${lines[lines.length - 1] && " "}${word}`;
  }
  return lines.map(escaped).join("<br>");
}

/** Range and ticks that hold all that is drawn within the x range. */
export function yAxis(traces, [start, end], log, most, always = NaN) {
  let low = Infinity;
  let high = -Infinity;
  for (const { x, y, meta } of traces) {
    for (let i = 0; i < y.length; i++) {
      const value = y[i];
      if (!Number.isFinite(value) || value === null || (log && value <= 0)) continue;
      if (meta !== "reference" && (x[i] < start || x[i] > end)) continue;
      if (value < low) low = value;
      if (value > high) high = value;
    }
  }
  if (Number.isFinite(always)) [low, high] = [Math.min(low, always), Math.max(high, always)];
  if (!(low <= high)) [low, high] = log ? [0.1, 1] : [0, 1];
  let ends = log ? [Math.log10(low), Math.log10(high)] : [low, high];
  const slack = (ends[1] - ends[0]) * 0.05 || Math.abs(ends[1]) * 0.05 || 0.05;
  ends = [low === always ? low : ends[0] - slack, ends[1] + slack];
  const ticks = log ? logTicks(10 ** ends[0], 10 ** ends[1], most) : linearTicks(...ends, most);
  return {
    range: ends,
    autorange: false,
    tickmode: "array",
    tickvals: ticks.map((tick) => tick.value),
    ticktext: ticks.map((tick) => tick.text),
  };
}
