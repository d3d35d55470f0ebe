/** The list of findings, in a dialog over the page. */

import { fill, h } from "./dom.js";

const SEVERITIES = new Map([
  ["error", ["\u2715 Error", "bad"]],
  ["warning", ["! Warning", "warn"]],
  ["info", ["i Note", "note"]],
]);

/**
 * @param {{onlayer: (name: string) => void}} actions
 * @returns {{element: HTMLElement, open: (sides: {letter: string, info: any}[]) => void}}
 */
export function createFindings({ onlayer }) {
  const list = h("div", { class: "finding-list" });
  const element = h(
    "dialog",
    { class: "findings", testid: "findings", "aria-label": "Findings" },
    h(
      "div",
      { class: "panel-head" },
      h("h2", {}, "Findings"),
      h(
        "button",
        {
          type: "button",
          class: "close",
          testid: "findings-close",
          "aria-label": "Close findings",
          onclick: () => element.close(),
        },
        "\u00d7",
      ),
    ),
    list,
  );
  element.addEventListener("click", (event) => event.target === element && element.close());
  const open = (sides) => {
    fill(
      list,
      ...sides.flatMap(({ letter, info }) => [
        letter &&
          h("h3", { class: "pane-name" }, h("span", { class: `side side-${letter.toLowerCase()}` }, letter), info.name),
        ...(info.findings.length ? info.findings.map(one) : [h("p", { class: "muted" }, "Nothing stands out.")]),
      ]),
    );
    element.showModal();
  };
  function one({ title, severity, layers, evidence, meaning }) {
    const [word, tone] = SEVERITIES.get(severity) ?? SEVERITIES.get("info");
    const shown = layers.slice(0, 12);
    return h(
      "article",
      { class: "finding", testid: "finding" },
      h("h3", {}, h("span", { class: `tag ${tone}` }, word), title),
      h("p", {}, meaning),
      h("p", { class: "muted" }, evidence),
      layers.length
        ? h(
            "div",
            { class: "links" },
            ...shown.map((name) =>
              h(
                "button",
                {
                  type: "button",
                  class: "link",
                  title: `Open ${name}`,
                  onclick: () => {
                    element.close();
                    onlayer(name);
                  },
                },
                name,
              ),
            ),
            layers.length > shown.length && h("span", { class: "muted" }, `and ${layers.length - shown.length} more`),
          )
        : null,
    );
  }
  return { element, open };
}
