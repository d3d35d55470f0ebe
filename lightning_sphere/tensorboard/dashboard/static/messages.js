/** What the page says when there is nothing to draw, or something went wrong: always with what to do. */

import { h } from "./dom.js";

const CODE = "from lightning_sphere import SphereMonitor\ntrainer = Trainer(callbacks=[SphereMonitor()])";

/** @returns {HTMLElement} there is no run with our data */
export function noRuns() {
  return state(
    "empty",
    "No run with sphere data yet",
    h(
      "p",
      {},
      "Add the callback to your training. Its numbers go into TensorBoard's own event files, every log_every_n_steps steps, " +
        "and appear here while it runs:",
    ),
    h("pre", {}, h("code", {}, CODE)),
    h(
      "p",
      { class: "muted" },
      "Is a training running already? Then check that TensorBoard's --logdir contains its folder.",
    ),
  );
}

/** @param {string} run @returns {HTMLElement} */
export function noSteps(run) {
  return state(
    "empty",
    "No steps yet",
    h("p", {}, `\u201c${run}\u201d has started, and nothing of it was measured yet.`),
    h(
      "p",
      { class: "muted" },
      "The first numbers are written after some steps; the page looks for them by itself while \u201cFollow\u201d is on.",
    ),
  );
}

/** @param {string} run @param {string} why @returns {HTMLElement} */
export function problem(run, why) {
  return state(
    "problem",
    "This run cannot be shown",
    h("p", {}, `\u201c${run}\u201d: ${why}`),
    h(
      "p",
      { class: "muted" },
      "Choose another run above. If the file is still being copied or written, it may become readable by itself.",
    ),
  );
}

/** @param {() => void} onclear @returns {HTMLElement} */
export function noMatch(onclear) {
  return state(
    "empty",
    "No layer matches the filter",
    h("p", {}, h("button", { type: "button", testid: "clear-filter", onclick: onclear }, "Clear the filter")),
  );
}

/** @param {string} install @returns {HTMLElement} */
export function noPlotly(install) {
  return state(
    "no-plotly",
    "The charts need plotly",
    h(
      "p",
      {},
      "They are drawn with the plotly package, which is not installed where TensorBoard runs. Install it, then start TensorBoard again:",
    ),
    h("pre", {}, h("code", {}, install)),
    h("p", { class: "muted" }, "Cards, findings and the layers with their reasons work without it."),
  );
}

/** @param {string} text @param {(() => void)|null} onretry @returns {HTMLElement} */
export function failed(text, onretry) {
  return state(
    "failed",
    "This could not be loaded",
    h("p", {}, text),
    onretry && h("p", {}, h("button", { type: "button", testid: "retry", onclick: onretry }, "Try again")),
  );
}

/** @param {string} testid @param {string} text @param {(() => void)|null} onclose @returns {HTMLElement} a line above the page */
export function notice(testid, text, onclose) {
  return h(
    "div",
    { class: "notice", testid, role: "status" },
    h("span", {}, text),
    onclose && h("button", { type: "button", class: "close", "aria-label": "Dismiss", onclick: onclose }, "\u00d7"),
  );
}

function state(testid, title, ...content) {
  return h("div", { class: "state", testid }, h("h2", {}, title), ...content);
}
