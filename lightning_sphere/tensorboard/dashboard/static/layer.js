/** The panel of an opened layer: what is known of it in words, and its curves. */

import { fill, h, say } from "./dom.js";
import { zoomed } from "./heatmap.js";
import { KIND_WORDS } from "./kinds.js";
import { format, formatCount } from "./numbers.js";
import { CONFIG } from "./plots.js";

const VERDICTS = new Map([
  ["verified", ["\u2713 verified", "good"]],
  ["contradicted", ["\u2715 contradicted", "bad"]],
  ["eps dominates", ["! eps dominates", "warn"]],
  ["not yet seen", ["\u2013 not yet seen", "muted"]],
]);

/**
 * @param {{onclose: () => void, onzoom: (range: [number, number]|null) => void}} actions
 * @returns {{element: HTMLElement, graph: HTMLElement, body: HTMLElement, describe: (row: any, sides: {letter: string, layer: any}[]) => void,
 *   draw: (Plotly: any, figure: {data: any[], layout: any}) => Promise<void>, tell: (content: Node|null) => void, note: (text: string) => void}}
 */
export function createDetail({ onclose, onzoom }) {
  const title = h("h2", { class: "detail-title" });
  const brief = h("span", { class: "brief" });
  const facts = h("div", {
    class: "facts",
    testid: "facts",
    tabindex: 0,
    role: "region",
    "aria-label": "About this layer",
  });
  const graph = h("div", { id: "detail-plot" });
  const hint = h("span", { class: "muted note", testid: "detail-note" });
  const cover = h("div", { class: "cover", hidden: true });
  const body = h("div", { class: "detail-plot-box" }, graph, cover);
  const element = h(
    "section",
    { class: "panel detail", testid: "detail", "aria-label": "Opened layer", hidden: true },
    h(
      "div",
      { class: "panel-head" },
      title,
      brief,
      h("span", { class: "push" }),
      hint,
      h(
        "button",
        {
          type: "button",
          class: "close",
          testid: "detail-close",
          "aria-label": "Close layer",
          title: "Close (Escape)",
          onclick: onclose,
        },
        "\u00d7",
      ),
    ),
    h("div", { class: "detail-body" }, facts, body),
  );
  let wired = false;
  let signature = "";

  function describe(row, sides) {
    const next = JSON.stringify([row.name, row.kind, sides]);
    if (next === signature) return;
    signature = next;
    fill(
      title,
      h("span", { class: `kind kind-${row.kind}`, "aria-hidden": true }, KIND_WORDS.get(row.kind).letter),
      h("bdi", {}, row.name),
    );
    title.title = row.name;
    const layer = sides.find((side) => side.layer).layer;
    const [verdict, tone] = VERDICTS.get(layer.verdict) ?? [null, ""];
    fill(
      brief,
      h("span", { class: "muted" }, KIND_WORDS.get(row.kind).words),
      verdict && sides.length === 1 ? h("span", { class: `tag ${tone}` }, verdict) : null,
    );
    fill(
      facts,
      ...sides.flatMap(({ letter, layer }) => [
        letter &&
          h(
            "h3",
            { class: "pane-name" },
            h("span", { class: `side side-${letter.toLowerCase()}` }, letter),
            layer ? "" : "does not have this layer",
          ),
        layer && factsOf(layer),
      ]),
    );
  }

  async function draw(Plotly, figure) {
    await Plotly.react(graph, figure.data, figure.layout, CONFIG);
    if (wired) return;
    wired = true;
    graph.on("plotly_relayout", (change) => zoomed(change, onzoom));
    graph.on("plotly_doubleclick", () => onzoom(null));
  }

  function tell(content) {
    cover.hidden = !content;
    fill(cover, content);
  }
  return { element, graph, body, describe, draw, tell, note: (text) => say(hint, text) };
}

function factsOf(layer) {
  const words = KIND_WORDS.get(layer.kind) ?? KIND_WORDS.get("none");
  const size = [
    layer.shape?.length ? layer.shape.join("\u00d7") : "",
    layer.blocks > 1
      ? `${formatCount(layer.blocks)} ${layer.kind === "none" ? "rows" : "groups"}`
      : layer.blocks === 1
        ? "one group"
        : "",
  ]
    .filter(Boolean)
    .join(", ");
  const [verdict, tone] = VERDICTS.get(layer.verdict) ?? [null, ""];
  const share = layer.verdict === "verified" ? layer.verified_share : 1 - layer.verified_share;
  const proof = [
    Number.isFinite(layer.verified_share) && layer.verified_share !== null
      ? `for ${Math.round(share * 100)}% of its groups`
      : "",
    layer.residual !== null && layer.residual !== undefined ? `residual |cos(g, x)| ${format(layer.residual)}` : "",
  ]
    .filter(Boolean)
    .join(", ");
  return h(
    "dl",
    {},
    ...fact("Why", layer.reason || words.words),
    ...fact(
      "Check by the gradients",
      verdict && h("span", {}, h("span", { class: tone }, verdict), proof ? ` ${proof}` : ""),
    ),
    ...fact("Equilibrium", layer.equilibrium ?? layer.equilibrium_state),
    ...fact("Norm that follows", layer.norm ?? "none"),
    ...fact("Weight", size),
    ...fact("Together with", layer.joint_with?.length ? layer.joint_with.join(", ") : null),
  );
}

function fact(term, content) {
  return content === null || content === undefined || content === "" ? [] : [h("dt", {}, term), h("dd", {}, content)];
}
