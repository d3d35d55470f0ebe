/** The buttons that take something out of the page: CSV, PNG, link. */

import { fileName, layerTable, save, shownTable, toCsv } from "./export.js";
import { heatmapFigure } from "./heatmap.js";
import { writeUrl } from "./host.js";
import { picture } from "./picture.js";
import { toTexts } from "./state.js";
import { measuredSide, xOf } from "./view.js";
import { withUnit } from "./plots.js";

/**
 * @param {{store: any, shown: () => any, say: (text: string) => void, plotly: () => any}} parts
 *   `shown`: what was drawn last, or null
 * @returns {{oncsv: () => void, onpng: () => Promise<void>, oncopy: () => Promise<void>}}
 */
export function createActions({ store, shown, say, plotly }) {
  const csv = (lines, ...name) =>
    save(new Blob([toCsv(lines)], { type: "text/csv;charset=utf-8" }), `${fileName(...name)}.csv`);

  function oncsv() {
    const now = shown();
    if (!now) return say("There is nothing to save yet.");
    const { quantity: name, zoom, layer, run, vs } = store.get();
    const { quantity, rows, relative } = now;
    const [a, b] = [now.a, now.b?.table ? now.b : null].map((side) => side && measuredSide(side, quantity));
    csv(
      shownTable({
        quantity: name,
        unit: quantity.unit,
        rows,
        a,
        b,
        xa: xOf(a, relative),
        xb: b && xOf(b, relative),
        zoom,
      }),
      "sphere",
      run,
      vs && "vs",
      vs,
      name,
    );
    if (now.curves) {
      csv(
        layerTable({ quantity: name, unit: quantity.unit, layer, curves: now.curves.curves, relative, zoom }),
        "sphere",
        run,
        vs && "vs",
        vs,
        name,
        layer,
      );
    }
    return say(
      now.curves ? "Saved two tables: all layers shown, and the opened layer." : "Saved the table of all layers shown.",
    );
  }

  async function onpng() {
    const now = shown();
    if (!now || !plotly() || !now.rows.length) return say("There is nothing to save yet.");
    const { run, vs, quantity: name, layer, zoom } = store.get();
    const { built, quantity, rows, relative } = now;
    const figure = heatmapFigure(built.panes, rows, quantity, built.range, 1400, rows.length * 14);
    const subtitle = `${vs ? `A: ${run}   B: ${vs}` : run}   \u00b7   ${rows.length} layers${zoom ? ", zoomed" : ""}   \u00b7   grey: no value`;
    const detail = now.curves && {
      title: `${layer}: ${withUnit(quantity.title, quantity.unit)}`,
      figure: now.curves.figure,
    };
    say("Drawing the picture\u2026");
    try {
      save(
        await picture(plotly(), {
          title: withUnit(quantity.title, quantity.unit),
          subtitle,
          figure,
          panes: built.panes,
          rows,
          quantity,
          range: built.range,
          relative,
          detail,
        }),
        `${fileName("sphere", run, vs && "vs", vs, name)}.png`,
      );
    } catch (error) {
      return say(`The picture could not be made: ${error.message}`);
    }
    return say("Saved the picture.");
  }

  async function oncopy() {
    const link = writeUrl(toTexts(store.get()));
    try {
      await navigator.clipboard.writeText(link);
    } catch {
      const area = document.createElement("textarea");
      area.value = link;
      document.body.append(area);
      area.select();
      const done = document.execCommand("copy");
      area.remove();
      if (!done) return say("The browser does not allow copying; the link is in the address bar.");
    }
    return say("Link copied.");
  }
  return { oncsv, onpng, oncopy };
}
