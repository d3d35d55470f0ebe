/** Draws the page from state and answers, in one pass; what has not changed is not drawn again. */

import { h, say } from "./dom.js";
import { NO_FILTERS } from "./filters.js";
import { themeOf, writeUrl } from "./host.js";
import { failed, noMatch, noPlotly, noRuns, noSteps, notice, problem } from "./messages.js";
import { formatCount } from "./numbers.js";
import { createOpened } from "./opened.js";
import { settle } from "./settle.js";
import { toTexts } from "./state.js";
import { allRows, buildPanes, shownRows } from "./view.js";

/** Columns of a heatmap, whatever its width. */
const COLUMNS = { least: 50, most: 1200 };

/**
 * @param {Record<string, any>} parts of the page, see page.js
 * @returns {{draw: () => void, shown: () => any, news: () => string}} `shown`: what is drawn, null if nothing
 */
export function createDrawing(parts) {
  const { store, session, charts, controls, filters, panel, detail, cards, drawCards, notices, gone, message, remark } =
    parts;
  let last = null;
  let lastRun = "";
  let news = "";
  const memory = new Map();
  const fresh = (what, now) => {
    const before = memory.get(what);
    memory.set(what, now);
    return !before || before.length !== now.length || now.some((part, n) => part !== before[n]);
  };
  const drawOpened = createOpened(detail, session, fresh);

  /** Something instead of all panels, or null for the panels. */
  function instead(content) {
    message.hidden = !content;
    for (const element of [cards, panel.element]) element.hidden = Boolean(content);
    if (!content) return;
    if (message.firstChild?.textContent !== content.textContent) message.replaceChildren(content);
    detail.element.hidden = true;
    last = null;
    memory.clear();
  }

  function draw() {
    const theme = themeOf(store.get().theme);
    document.documentElement.dataset.theme = theme;
    const { answer, goneSince } = session;
    if (fresh("gone", [goneSince])) gone.replaceChildren(...(answer && goneSince ? [absence(goneSince)] : []));
    if (!answer) return session.error ? instead(failed(session.error.message, () => session.poll())) : undefined;
    if (lastRun && store.get().run !== lastRun) notices.replaceChildren();
    const any = settle(store, answer, remark);
    lastRun = store.get().run;
    controls.element.classList.toggle("idle", !any);
    if (!any) return instead(noRuns());
    const state = store.get();
    writeUrl(toTexts(state));
    controls.draw(state, answer);
    const run = answer.runs.find(({ name }) => name === state.run);
    if (run.last_step < 0) return instead(noSteps(run.name));
    if (run.problem) return instead(problem(run.name, run.problem));
    const quantity = answer.quantities.get(state.quantity);
    const [a, b] = [state.run, state.vs].map((name) => name && sideOf(name, state, quantity));
    if (!a.info && a.error) return instead(failed(a.error.message, () => session.retry()));
    if (!a.info || (b && !b.info && !b.error)) {
      cards.classList.add("loading");
      if (!last) panel.tell(waitingSign());
      return undefined;
    }
    if (b && !b.info && fresh("vs", [b.error])) remark(`\u201c${b.name}\u201d cannot be compared: ${b.error.message}`);
    instead(null);
    drawPanels(state, theme, quantity, a, b && b.info ? b : null);
    return undefined;
  }

  function sideOf(name, state, quantity) {
    const info = session.info(name);
    const recorded = session.answer.runs.find((run) => run.name === name).quantities.includes(state.quantity);
    const table = recorded ? session.medians(name, state.quantity) : null;
    const missing = recorded ? (table.error?.message ?? "") : `${quantity.title} was not recorded in this run`;
    return { name, info: info.value, table: table?.value, error: info.error, missing };
  }

  function drawPanels(state, theme, quantity, a, b) {
    const lettered = b
      ? [
          { letter: "A", info: a.info },
          { letter: "B", info: b.info },
        ]
      : [{ letter: "", info: a.info }];
    cards.classList.remove("loading");
    drawCards(lettered);
    const all = allRows(a.info, b && b.info);
    const row = all.find(({ name }) => name === state.layer) ?? null;
    if (state.layer && !row) {
      remark(`There is no layer \u201c${state.layer}\u201d in this run.`);
      store.set({ layer: "" });
      return;
    }
    const rows = shownRows(all, state);
    filters.draw(state, all, rows.length);
    detail.element.hidden = !row;
    const rowHeight = panel.drawRows(rows, state.layer, Boolean(b), a.info.unmeasured ?? []);
    const width = panel.width();
    if (fresh("layer", [state.layer])) {
      panel.reveal(state.layer);
      if (row) detail.element.scrollIntoView({ block: "nearest" });
    }
    const { plotly, error } = charts;
    const ready = (plotly || error) && a.table && (!b || b.table || b.missing);
    tellPanel(a, b, rows, ready);
    const relative = state.x === "relative";
    const { quantity: name, scale, x, kind, filter, zoom } = state;
    const made = [
      name,
      scale,
      x,
      kind,
      filter,
      zoom,
      theme,
      a.table,
      a.info,
      b?.table,
      b?.info,
      b?.missing,
      width,
      rowHeight,
      plotly,
    ];
    if (ready && width > 0 && fresh("heatmap", made)) {
      const most = Math.max(COLUMNS.least, Math.min(COLUMNS.most, Math.floor(width / (b ? 3 : 1))));
      const built = buildPanes({ state, quantity, a, b, rows, theme, most });
      last = { built, quantity, rows, a, b, relative };
      panel.draw(rows.length ? plotly : null, built, quantity, relative);
    }
    if (last) {
      const now = { state, theme, quantity, row, a, b, relative, lettered, range: last.built.range, charts };
      Object.assign(last, { lettered, curves: row ? drawOpened(now) : null });
    }
    if (fresh("news", [state.run, a.info])) {
      const time = (session.updated ?? new Date()).toLocaleTimeString();
      news = `Step ${formatCount(a.info.steps.last)} \u00b7 updated ${time}`;
      say(controls.status, news);
    }
  }

  /** What stands over the panel in the middle while there is no heatmap to see. */
  function tellPanel(a, b, rows, ready) {
    const noPlot = charts.error && !charts.plotly;
    const other = !last || last.a.name !== a.name || last.b?.name !== b?.name;
    panel.element.classList.toggle("plotless", Boolean(noPlot));
    panel.element.classList.toggle("busy", !ready);
    if (!rows.length) panel.tell(noMatch(() => store.set(NO_FILTERS)));
    else if (noPlot)
      panel.tell(session.answer.plotly ? failed(charts.error.message, null) : noPlotly(session.answer.install), true);
    else if (!a.table && a.missing) panel.tell(failed(a.missing, session.retry), true);
    else panel.tell(!ready && other ? waitingSign() : null, true);
  }

  return { draw, shown: () => last, news: () => news };
}

function waitingSign() {
  return h("div", { class: "spinner", testid: "loading" }, "Loading\u2026");
}

function absence(since) {
  const text = `The server has not answered since ${since.toLocaleTimeString()}. What was loaded stays; the page keeps trying.`;
  return notice("gone", text, null);
}
