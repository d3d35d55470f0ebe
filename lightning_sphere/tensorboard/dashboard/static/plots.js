/** What both plots share: colours of the theme, and text that plotly does not take for HTML. */

/** Nothing of plotly's own around the plots; the page has its own controls. */
export const CONFIG = Object.freeze({
  displayModeBar: false,
  responsive: false,
  doubleClick: false,
  showTips: false,
  scrollZoom: false,
});

/**
 * Plotly reads a subset of HTML, links among it, and in templates `%{...}`.
 * @param {string} text
 * @returns {string}
 */
export function escaped(text) {
  return text
    .replaceAll("&", "&amp;")
    .replaceAll("<", "&lt;")
    .replaceAll(">", "&gt;")
    .replaceAll("%{", "%\u200b{")
    .replace(/\s+/gu, " ");
}

/** @returns {Record<"text"|"muted"|"line"|"panel"|"gap"|"a"|"b"|"rate"|"predicted", string>} of the present theme */
export function themeColours() {
  const style = getComputedStyle(document.documentElement);
  const names = ["text", "muted", "line", "panel", "gap", "a", "b", "rate", "predicted"];
  return Object.fromEntries(names.map((name) => [name, style.getPropertyValue(`--${name}`).trim()]));
}

/** @type {string} */
export const FONT =
  'system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "Noto Sans", "Liberation Sans", Arial, sans-serif';

/**
 * @param {string} colour "#rrggbb"
 * @param {number} alpha
 * @returns {string}
 */
export function faint(colour, alpha) {
  const part = (at) => parseInt(colour.slice(at, at + 2), 16);
  return `rgba(${part(1)},${part(3)},${part(5)},${alpha})`;
}

/** @param {string} title @param {string} unit @returns {string} */
export function withUnit(title, unit) {
  return unit ? `${title} (${unit})` : title;
}
