/** The row of cards: what a person wants to know first. */

import { fill, h } from "./dom.js";
import { commonPrefix, shorten } from "./kinds.js";
import { format, formatAngle, formatCount, formatFactor } from "./numbers.js";

/** States of a layer's equilibrium: key, class of its colour, words. */
const STATES = [
  ["settled", "settled", "settled"],
  ["transient", "transient", "on the way"],
  ["out of reach", "out", "not within this run"],
  ["unknown", "unknown", "unknown"],
];

/**
 * @param {HTMLElement} box
 * @param {{onlayer: (name: string) => void, onfindings: () => void}} actions
 * @returns {(sides: {letter: string, info: any}[]) => void} draws the cards of one run, or of two
 */
export function createCards(box, actions) {
  let signature = "";
  return (sides) => {
    const next = JSON.stringify(sides.map(({ letter, info }) => [letter, info.cards, info.findings]));
    if (next === signature) return;
    const held = document.activeElement?.dataset?.held;
    const card = (testid, title, hint, content, period = "") =>
      h(
        "section",
        { class: "card", testid, "aria-label": title },
        h("h2", { title: hint }, title, period && h("span", { class: "period" }, ` \u00b7 ${period}`)),
        ...sides.map(({ letter, info }) =>
          h(
            "div",
            { class: letter ? "half" : "one" },
            letter && h("span", { class: `side side-${letter.toLowerCase()}` }, letter),
            h("div", { class: "fill" }, ...content(info, letter)),
          ),
        ),
      );
    const last = (info) => `Medians over the last ${formatCount(info.cards.window)} sampled steps`;
    const period = `last ${formatCount(sides[0].info.cards.window)} steps`;
    const ofAll = sides[0].info.cards.speed_of_all;
    const whose = sides[0].info.cards.all_layers ? "all layers (none is invariant)" : "invariant layers";
    fill(
      box,
      card(
        "card-groups",
        "Invariant groups",
        "What is scale-invariant by itself, and whether the gradients confirm it",
        groups,
      ),
      card("card-effective-lr", "Effective lr", `${last(sides[0].info)}, then over ${whose}`, effective, period),
      card(
        "card-speed",
        "Speed of turning",
        `${last(sides[0].info)}; angle by which one step turns a layer${ofAll ? "; of all layers, too few are invariant" : ""}`,
        (info, letter) => speed(info, letter, actions.onlayer),
        `${ofAll ? "all" : "invariant"} layers, ${period}`,
      ),
      card(
        "card-equilibrium",
        "Layers in equilibrium",
        "Gradients lengthen a weight, decay shortens it: settled where both balance",
        equilibrium,
      ),
      card("card-findings", "Findings", "What deserves a look, with the numbers that say so", (info, letter) =>
        findings(info, letter, actions.onfindings),
      ),
    );
    signature = next;
    if (held) box.querySelector(`[data-held="${held}"]`)?.focus();
  };
}

function groups({ cards }) {
  const parts = [
    [cards.verified, "verified", "good", "\u2713"],
    [cards.contradicted, "contradicted", "bad", "\u2715"],
    [cards.eps_dominates, "eps dominates", "warn", "!"],
    [cards.unseen, "not yet seen", "muted", "\u2013"],
  ].filter(([count], n) => count || n === 0);
  return [
    line(big(formatCount(cards.groups)), ` in ${cards.invariant_layers} of ${cards.layers} layers`),
    h(
      "p",
      { class: "sub wrap words" },
      ...parts.map(([count, words, tone, sign]) => h("span", { class: tone }, `${sign} ${count} ${words}`)),
    ),
  ];
}

function effective({ cards }, letter) {
  if (!known(cards.effective_lr)) return [unknownYet()];
  const { lr_ratio_start: start, lr_ratio_lowest: lowest, lr_ratio_highest: highest } = cards;
  const span = lowest && highest && !letter ? ` (${brief(lowest.ratio)} to ${brief(highest.ratio)})` : "";
  const told = [
    "Effective over nominal learning rate: a schedule does not move it, norms and second moments do.",
    lowest && `Lowest ${formatFactor(lowest.ratio)} at step ${formatCount(lowest.step)}`,
    highest && `highest ${formatFactor(highest.ratio)} at step ${formatCount(highest.step)}`,
  ];
  return [
    line(big(format(cards.effective_lr))),
    known(cards.lr_ratio) && sub(`${formatFactor(cards.lr_ratio)} nominal lr ${format(cards.nominal_lr)}`),
    known(start) && sub(`${brief(start)} at the start${span}`, told.filter(Boolean).join("\n"), "sub wrap"),
  ];
}

function speed({ cards, layers }, letter, onlayer) {
  const prefix = commonPrefix(layers.map((layer) => layer.name));
  if (!cards.fastest || !cards.slowest) return [unknownYet()];
  const entry = (word, which) =>
    h(
      "button",
      {
        type: "button",
        class: "speed",
        testid: `${word}${letter ? `-${letter.toLowerCase()}` : ""}`,
        "data-held": `${word}-${letter}`,
        title: `${which.layer}\nOpen this layer`,
        onclick: () => onlayer(which.layer),
      },
      h("span", { class: "muted word" }, word),
      h("span", { class: "layer-name cut" }, shorten(which.layer, prefix, letter ? 20 : 28)),
      h("span", { class: "angle" }, formatAngle(which.angular_step)),
    );
  return [entry("fastest", cards.fastest), entry("slowest", cards.slowest)];
}

function equilibrium({ cards }) {
  const counts = cards.equilibrium;
  if (!counts.total) return [line(h("strong", { class: "big none" }, "no invariant layers"))];
  const bar = h("div", { class: "shares", "aria-hidden": true });
  const words = [];
  for (const [key, tone, text] of STATES) {
    if (!counts[key]) continue;
    const part = h("span", { class: `share ${tone}` });
    part.style.flexGrow = counts[key];
    bar.append(part);
    words.push(h("span", {}, h("span", { class: `swatch ${tone}`, "aria-hidden": true }), `${counts[key]} ${text}`));
  }
  return [
    line(big(`${Math.round((100 * counts.settled) / counts.total)}%`), ` ${counts.settled} of ${counts.total} settled`),
    bar,
    h("p", { class: "sub wrap words" }, ...words),
  ];
}

function findings({ findings: list }, letter, onfindings) {
  if (!list.length) return [line(big("0"), " nothing stands out")];
  const count = (severity) => list.filter((finding) => finding.severity === severity).length;
  const parts = [
    ["error", "\u2715", "bad"],
    ["warning", "!", "warn"],
    ["info", "i", "note"],
  ].filter(([severity]) => count(severity));
  return [
    h(
      "button",
      {
        type: "button",
        class: "findings-button",
        testid: `open-findings${letter ? `-${letter.toLowerCase()}` : ""}`,
        "data-held": `findings-${letter}`,
        "aria-haspopup": "dialog",
        onclick: onfindings,
      },
      h(
        "span",
        { class: "first" },
        big(String(list.length)),
        ...parts.map(([severity, sign, tone]) =>
          h("span", { class: `tag ${tone}`, title: severity }, `${sign} ${count(severity)}`),
        ),
        h("span", { class: "more" }, "show"),
      ),
      h("span", { class: "sub cut" }, list[0].title),
    ),
  ];
}

function line(...parts) {
  return h("p", { class: "main" }, ...parts);
}

function big(text) {
  return h("strong", { class: "big" }, text);
}

function sub(text, title = null, tone = "sub") {
  return h("p", { class: tone, title }, text);
}

function unknownYet() {
  return line(h("strong", { class: "big none" }, "not known yet"));
}

function known(value) {
  return value !== null && value !== undefined;
}

/** Two digits do where space is short. */
function brief(factor) {
  return formatFactor(known(factor) ? Number(factor.toPrecision(2)) : null);
}
