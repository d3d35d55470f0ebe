/** Draws the panel of the opened layer: asks for its numbers, and redraws only if something changed. */

import { curvesFigure } from "./curves.js";
import { h } from "./dom.js";
import { failed } from "./messages.js";
import { scaleOf } from "./scales.js";

/**
 * @param {ReturnType<typeof import("./layer.js").createDetail>} detail
 * @param {import("./session.js").Session} session
 * @param {(what: string, parts: any[]) => boolean} fresh whether the parts differ from those of the last call
 * @returns {(now: any) => {curves: import("./curves.js").Curve[], figure: any}|null} draws; what is shown, null while it is not there
 */
export function createOpened(detail, session, fresh) {
  let shown = null;
  return ({ state, theme, quantity, row, a, b, relative, lettered, range, charts }) => {
    const { plotly, error: plotlyError } = charts;
    const layers = [row.a >= 0 ? a.info.layers[row.a] : null, row.b >= 0 && b ? b.info.layers[row.b] : null];
    detail.describe(
      row,
      lettered.map(({ letter }, n) => ({ letter, layer: layers[n] })),
    );
    const entries = [];
    const read = (side, name) => {
      const run = session.answer.runs.find((other) => other.name === side.name);
      if (!name || !run.quantities.includes(name)) return undefined;
      entries.push(session.layer(side.name, name, state.layer));
      return entries[entries.length - 1].value;
    };
    const curves = [a, b].flatMap((side, n) =>
      side && layers[n]
        ? [
            {
              key: n ? "b" : "a",
              name: side.name,
              start: side.info.first_wall_time,
              single: layers[n].blocks <= 1,
              values: read(side, state.quantity),
              predicted: read(side, quantity.prediction),
              rate: state.quantity === "lr" ? undefined : read(side, "lr"),
            },
          ]
        : [],
    );
    const band = curves.every(({ single }) => single)
      ? "one group only: no band"
      : "band: p10 to p90 over the layer's groups";
    const without = quantity.of_invariant && !layers.some((layer) => layer?.invariant);
    detail.note(without ? `not scale-invariant: its ${quantity.title} has no meaning; ${band}` : band);
    const cover = (content) => {
      detail.tell(content);
      return null;
    };
    if (plotlyError && !plotly) return cover(h("p", { class: "muted" }, "The curve needs plotly, see above."));
    const error = entries.find((entry) => entry.error && !entry.value)?.error;
    if (error) return cover(failed(error.message, () => session.retry()));
    if (!plotly || entries.some((entry) => entry.pending && entry.value === undefined)) {
      return cover(h("div", { class: "spinner" }, "Loading\u2026"));
    }
    cover(null);
    const { log } = scaleOf(state.quantity, quantity, state.scale);
    const { clientWidth: width, clientHeight: height } = detail.body;
    const parts = [
      state.layer,
      state.quantity,
      log,
      state.smooth,
      theme,
      relative,
      ...range,
      width,
      height,
      ...curves.flatMap((curve) => [curve.key, curve.name, curve.values, curve.predicted, curve.rate]),
    ];
    if (!width || !fresh("opened", parts)) return shown;
    const prediction = session.answer.quantities.get(quantity.prediction);
    const figure = curvesFigure(curves, {
      quantity,
      prediction,
      log,
      relative,
      weight: state.smooth,
      range,
      width,
      height,
    });
    shown = { curves, figure };
    detail.draw(plotly, figure);
    return shown;
  };
}
