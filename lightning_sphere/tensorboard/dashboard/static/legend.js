/** Above each heatmap: whose it is and what its colours mean; below it: the x axis. */

import { h } from "./dom.js";
import { paneTitle } from "./heatmap.js";
import { xTicks } from "./numbers.js";

/**
 * @param {import("./view.js").Pane} pane
 * @param {{title: string, unit: string}} quantity
 * @param {boolean} alone whether there is one heatmap only
 * @returns {HTMLElement}
 */
export function legend(pane, quantity, alone) {
  const { colours } = pane;
  const stops = colours.colours.map(([at, colour]) => `${colour} ${at * 100}%`).join(",");
  const bar = h("div", { class: "bar", role: "img", "aria-label": spoken(pane, quantity) });
  bar.style.background = `linear-gradient(90deg,${stops})`;
  const ticks = h("div", { class: "bar-ticks", "aria-hidden": true });
  for (const { value, text } of colours.ticks) {
    const tick = h("span", {}, text);
    tick.style.left = `${value * 100}%`;
    ticks.append(tick);
  }
  const letter = { a: "A", b: "B" }[pane.key];
  const who = alone
    ? null
    : h(
        "div",
        { class: "pane-name", title: pane.title },
        letter && h("span", { class: `side side-${pane.key}` }, letter),
        h("span", { class: "cut" }, pane.key === "difference" ? "Difference" : pane.title),
      );
  const scale = colours.log ? "log scale" : "linear scale";
  return h(
    "div",
    { class: "legend", testid: `legend-${pane.key}` },
    who,
    h(
      "div",
      { class: "legend-title" },
      h("span", { class: "cut" }, paneTitle(pane, quantity)),
      h("span", { class: "muted" }, scale),
    ),
    h(
      "div",
      { class: "bar-box" },
      h(
        "span",
        { class: "clip", title: colours.below ? "Some values are lower: they have the first colour." : null },
        colours.below ? "\u2264" : "",
      ),
      h("div", { class: "bar-stack" }, bar, ticks),
      h(
        "span",
        { class: "clip", title: colours.above ? "Some values are higher: they have the last colour." : null },
        colours.above ? "\u2265" : "",
      ),
    ),
  );
}

/**
 * @param {HTMLElement} element
 * @param {[number, number]} range
 * @param {boolean} relative
 * @param {number} width pixels of it
 */
export function drawAxis(element, range, relative, width) {
  const { ticks, title } = xTicks(range, relative, Math.max(2, Math.floor(width / 90)));
  const room = 1 - (title.length * 6 + 50) / width;
  const marks = ticks
    .filter(({ value }) => (value - range[0]) / (range[1] - range[0]) < room)
    .map(({ value, text }) => {
      const share = (value - range[0]) / (range[1] - range[0]);
      const mark = h("span", { class: share < 0.03 ? "tick first" : "tick" }, text);
      mark.style.left = `${share * 100}%`;
      return mark;
    });
  element.replaceChildren(...marks, h("span", { class: "axis-title" }, title));
}

function spoken(pane, quantity) {
  const { ticks, log } = pane.colours;
  const ends = ticks.length ? `, from ${ticks[0].text} to ${ticks[ticks.length - 1].text}` : "";
  return `Colours: ${paneTitle(pane, quantity)}, ${log ? "logarithmic" : "linear"}${ends}`;
}
