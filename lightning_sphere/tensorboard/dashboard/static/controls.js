/** The controls above the page: what is shown, how, and what to take out of it. */

import { choose, h, say, segmented } from "./dom.js";
import { withUnit } from "./plots.js";
import { scaleOf } from "./scales.js";

const MAIN = ["angular_step", "effective_lr", "norm", "equilibrium_ratio", "gradient_norm", "invariance_residual"];

/**
 * @param {{set: (change: any) => void, get: () => import("./state.js").State}} store
 * @param {{oncsv: () => void, onpng: () => void, oncopy: () => void}} actions
 * @returns {{element: HTMLElement, draw: (state: import("./state.js").State, runs: any) => void, status: HTMLElement}}
 */
export function createControls(store, { oncsv, onpng, oncopy }) {
  const pick = (key) => (event) => store.set({ [key]: event.target.value });
  const run = h("select", { testid: "run", onchange: (event) => store.set({ run: event.target.value }) });
  const vs = h("select", { testid: "vs", onchange: pick("vs") });
  const quantity = h("select", {
    testid: "quantity",
    "aria-describedby": "meaning",
    onchange: (event) => store.set({ quantity: event.target.value, scale: "" }),
  });
  const scale = segmented({
    name: "scale",
    label: "Colours",
    testid: "scale",
    onpick: (value) => store.set({ scale: value }),
    options: [
      ["log", "Log", "Equal factors look equal"],
      ["linear", "Linear", "Equal differences look equal"],
    ],
  });
  const x = segmented({
    name: "x",
    label: "X axis",
    testid: "x-axis",
    onpick: (value) => store.set({ x: value, zoom: null }),
    options: [
      ["step", "Step", "The optimizer steps of the run"],
      ["relative", "Time", "Time since the run's first step"],
    ],
  });
  const smooth = h("input", {
    type: "range",
    min: 0,
    max: 0.99,
    step: 0.01,
    testid: "smooth",
    oninput: (event) => store.set({ smooth: Number(event.target.value) }),
  });
  const weight = h("output", { class: "weight" });
  const follow = h("input", {
    type: "checkbox",
    testid: "follow",
    onchange: (event) => store.set({ follow: event.target.checked }),
  });
  const theme = h("select", { testid: "theme", onchange: pick("theme") });
  choose(
    theme,
    [
      {
        label: "",
        options: [
          ["auto", "Auto"],
          ["light", "Light"],
          ["dark", "Dark"],
        ].map(([value, text]) => ({ value, text })),
      },
    ],
    "auto",
  );
  const meaning = h("p", { class: "meaning", id: "meaning", testid: "meaning" });
  const status = h("span", { class: "status", role: "status", "aria-live": "polite", testid: "status" });
  const button = (testid, text, title, onclick) => h("button", { type: "button", testid, title, onclick }, text);

  const element = h(
    "header",
    { class: "controls" },
    h(
      "div",
      { class: "bar-row" },
      field("Run", run, "wide"),
      field("Compare with", vs, "wide"),
      field("Quantity", quantity, "wide"),
      h(
        "div",
        { class: "how" },
        scale.element,
        x.element,
        field(
          "Chart smoothing",
          h("span", { class: "slider" }, smooth, weight),
          "",
          "Of the curve of an opened layer; the heatmap shows values as they are",
        ),
      ),
      h("span", { class: "push" }),
      h(
        "div",
        { class: "group", role: "group", "aria-label": "Export" },
        button("export-csv", "CSV", "Save what is shown as a table", oncsv),
        button("export-png", "PNG", "Save what is shown as a picture", onpng),
        button("copy-link", "Copy link", "A link that opens the page as it is now", oncopy),
      ),
      field("Theme", theme),
    ),
    h(
      "div",
      { class: "second-row" },
      meaning,
      h(
        "span",
        { class: "live" },
        status,
        h(
          "label",
          { class: "switch", title: "Ask every ten seconds whether the run has grown" },
          follow,
          h("span", { class: "track", "aria-hidden": true }),
          "Follow",
        ),
      ),
    ),
  );

  function draw(state, answer) {
    const names = answer.runs.map(({ name, problem, last_step: last }) => ({
      value: name,
      text: last < 0 ? `${name} (no steps yet)` : problem ? `${name} (cannot be read)` : name,
    }));
    choose(run, [{ label: "", options: names }], state.run);
    choose(
      vs,
      [
        {
          label: "",
          options: [
            { value: "", text: "\u2013 no other run \u2013" },
            ...names.filter(({ value }) => value !== state.run),
          ],
        },
      ],
      state.vs,
    );
    const all = answer.quantities;
    const recorded = answer.runs.find(({ name }) => name === state.run)?.quantities ?? [];
    const options = (keep) =>
      recorded
        .filter((name) => all.has(name) && keep(name))
        .map((name) => ({
          value: name,
          text: withUnit(all.get(name).title, all.get(name).unit),
          title: all.get(name).meaning,
        }));
    const context = (name) => all.get(name).context;
    choose(
      quantity,
      [
        { label: "Main", options: MAIN.flatMap((name) => options((other) => other === name)) },
        { label: "More", options: options((name) => !MAIN.includes(name) && !context(name)) },
        { label: "Settings and predictions", options: options(context) },
      ].filter((group) => group.options.length),
      state.quantity,
    );
    const chosen = all.get(state.quantity);
    if (chosen) {
      const { log, blocked } = scaleOf(state.quantity, chosen, state.scale);
      scale.set(log ? "log" : "linear", blocked);
      say(meaning, chosen.meaning);
      meaning.title = [
        chosen.meaning,
        chosen.equation && `${chosen.symbol} = ${chosen.equation}`,
        chosen.range && `Range: ${chosen.range}`,
      ]
        .filter(Boolean)
        .join("\n");
    }
    x.set(state.x);
    if (Number(smooth.value) !== state.smooth) smooth.value = state.smooth;
    say(weight, state.smooth.toFixed(2));
    follow.checked = state.follow;
    theme.value = state.theme;
  }
  return { element, draw, status };
}

function field(label, control, extra = "", title = null) {
  return h("label", { class: `field ${extra}`, title }, h("span", { class: "label" }, label), control);
}
