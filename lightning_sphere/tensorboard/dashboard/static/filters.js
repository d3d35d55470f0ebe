/** The filters above the list of layers: text, kinds, invariant layers only. */

import { h, say } from "./dom.js";
import { KIND_WORDS } from "./kinds.js";
import { DEFAULTS, KINDS } from "./state.js";

/**
 * @param {{set: (change: any) => void, get: () => import("./state.js").State}} store
 * @returns {{element: HTMLElement, draw: (state: import("./state.js").State, rows: import("./view.js").Row[], shown: number) => void}}
 */
export function createFilters(store) {
  const input = h("input", {
    type: "search",
    testid: "filter",
    placeholder: "Filter layers",
    "aria-label": "Filter layers by name, parameter or reason; * stands for anything",
    title: "Name, parameter or reason contains this; * stands for anything",
    oninput: () => store.set({ filter: input.value }),
  });
  const count = h("span", { class: "count muted", testid: "count", "aria-live": "polite" });
  const chips = new Map(
    KINDS.map((kind) => {
      const { letter, short, words } = KIND_WORDS.get(kind);
      const number = h("span", { class: "chip-count" });
      const chip = h(
        "button",
        { type: "button", class: "chip", testid: `kind-${kind}`, title: words, onclick: () => toggle(kind) },
        h("span", { class: `kind kind-${kind}`, "aria-hidden": true }, letter),
        short,
        number,
      );
      return [kind, { chip, number }];
    }),
  );
  const invariant = h("input", {
    type: "checkbox",
    testid: "only-invariant",
    onchange: () => store.set({ kind: invariant.checked ? KINDS.filter((kind) => kind !== "none") : KINDS }),
  });
  function toggle(kind) {
    const now = store.get().kind;
    store.set({ kind: KINDS.filter((other) => (other === kind) !== now.includes(other)) });
  }
  const element = h(
    "div",
    { class: "filters" },
    h("div", { class: "filter-line" }, input, count),
    h(
      "div",
      { class: "chips", role: "group", "aria-label": "Kinds of invariance that are shown" },
      ...[...chips.values()].map(({ chip }) => chip),
      h("label", { class: "check", title: "Hide the layers that are not invariant" }, invariant, "only invariant"),
    ),
  );
  return {
    element,
    draw(state, rows, shown) {
      if (input.value !== state.filter) input.value = state.filter;
      const counts = new Map(KINDS.map((kind) => [kind, rows.filter((row) => row.kind === kind).length]));
      for (const [kind, { chip, number }] of chips) {
        chip.setAttribute("aria-pressed", String(state.kind.includes(kind)));
        chip.hidden = !counts.get(kind);
        say(number, String(counts.get(kind)));
      }
      invariant.checked =
        !state.kind.includes("none") && KINDS.every((kind) => kind === "none" || state.kind.includes(kind));
      invariant.parentElement.hidden = !counts.get("none");
      say(
        count,
        shown === rows.length
          ? `${rows.length} ${rows.length === 1 ? "layer" : "layers"}`
          : `${shown} of ${rows.length} layers`,
      );
    },
  };
}

/** What clears all filters. */
export const NO_FILTERS = Object.freeze({ filter: DEFAULTS.filter, kind: DEFAULTS.kind });
