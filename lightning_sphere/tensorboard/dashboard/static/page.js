/** Makes the page's parts, connects them with the state, and keeps it up to date. */

import { createActions } from "./actions.js";
import { loadPlotly } from "./api.js";
import { createCards } from "./cards.js";
import { createControls } from "./controls.js";
import { h, say } from "./dom.js";
import { createDrawing } from "./drawing.js";
import { createFilters } from "./filters.js";
import { createFindings } from "./findings.js";
import { isVisible, listen, watchTheme } from "./host.js";
import { createDetail } from "./layer.js";
import { failed, notice } from "./messages.js";
import { createPanel } from "./panel.js";
import { createSession } from "./session.js";

/** Milliseconds between two questions whether a run has grown. */
const EVERY = 10_000;
/** Milliseconds for which a word on an action stays. */
const BRIEFLY = 5000;

/** @param {ReturnType<typeof import("./state.js").createStore>} store */
export function createPage(store) {
  const charts = { plotly: null, error: null };
  let waiting = false;
  const schedule = () => {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => {
      waiting = false;
      try {
        drawing.draw();
      } catch (error) {
        console.error(error);
        message.hidden = false;
        message.replaceChildren(failed(`The page could not be drawn: ${error.message}`, schedule));
      }
    });
  };
  const session = createSession(schedule);

  const open = (layer) => store.set({ layer });
  const zoom = (range) => store.set({ zoom: range });
  const close = () => {
    const inside = detail.element.contains(document.activeElement);
    store.set({ layer: "" });
    if (inside) panel.list.focus();
  };
  const tell = (text) => {
    say(controls.status, text);
    setTimeout(() => controls.status.textContent === text && say(controls.status, drawing.news()), BRIEFLY);
  };
  const shown = () => drawing.shown();
  const actions = createActions({ store, shown, say: tell, plotly: () => charts.plotly });
  const controls = createControls(store, actions);
  const filters = createFilters(store);
  const panel = createPanel({ filters: filters.element, onopen: open, onzoom: zoom });
  const detail = createDetail({ onclose: close, onzoom: zoom });
  const findings = createFindings({ onlayer: open });
  const cards = h("div", { class: "cards", testid: "cards" });
  const onfindings = () => shown() && findings.open(shown().lettered);
  const drawCards = createCards(cards, { onlayer: open, onfindings });
  const notices = h("div", { class: "notices" });
  const gone = h("div", { class: "gone" });
  const message = h("div", { class: "message", hidden: true });
  const heading = h("h1", { class: "unseen" }, "Sphere: weights of normalized layers over time");
  const parts = [heading, controls.element, gone, notices, message, cards, panel.element, detail.element];
  document.body.replaceChildren(h("main", { class: "page" }, ...parts), findings.element, panel.tooltip);

  const remark = (text) => {
    const line = notice("notice", text, () => line.remove());
    notices.append(line);
  };
  const drawing = createDrawing({
    store,
    session,
    charts,
    controls,
    filters,
    panel,
    detail,
    cards,
    drawCards,
    notices,
    gone,
    message,
    remark,
  });

  loadPlotly()
    .then((found) => (charts.plotly = found))
    .catch((error) => (charts.error = error))
    .finally(schedule);
  store.subscribe(schedule);
  watchTheme(schedule);
  new ResizeObserver(schedule).observe(document.body);
  document.addEventListener("keydown", (event) => {
    const elsewhere = findings.element.open || event.target.type === "search";
    if (event.key === "Escape" && store.get().layer && !elsewhere) close();
  });
  const follow = () => store.get().follow && session.poll();
  const types = ["experimental.DataReloaded", "experimental.RunsChanged"];
  listen(new Map(types.map((type) => [type, follow])));
  setInterval(() => isVisible() && follow(), EVERY);
  document.addEventListener("visibilitychange", () => isVisible() && follow());
  session.poll();
}
