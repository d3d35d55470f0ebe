/** Makes DOM elements. Text always becomes a text node, so nothing that a run says is read as HTML. */

/**
 * @param {string} tag
 * @param {Record<string, any>} [properties] attributes; `on...` are listeners, `testid` is data-testid, `class` the classes
 * @param {...(Node|string|number|null|undefined|false)} children
 * @returns {HTMLElement}
 */
export function h(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "testid") element.dataset.testid = value;
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...kept(children));
  return element;
}

/**
 * @param {Element} element
 * @param {...(Node|string|number|null|undefined|false)} children
 */
export function fill(element, ...children) {
  element.replaceChildren(...kept(children));
}

/**
 * Sets the text only if it differs, so that selections and screen readers are left alone.
 * @param {Element} element
 * @param {string} text
 */
export function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/**
 * Fills a select, only if its options differ from those that it has.
 * @param {HTMLSelectElement} select
 * @param {{label: string, options: {value: string, text: string, title?: string}[]}[]} groups a group without label is plain
 * @param {string} value the chosen one
 */
export function choose(select, groups, value) {
  const signature = JSON.stringify(groups);
  if (select.dataset.signature !== signature) {
    select.dataset.signature = signature;
    const parts = groups.map(({ label, options }) => {
      const made = options.map((option) => h("option", { value: option.value, title: option.title }, option.text));
      return label ? [h("optgroup", { label }, ...made)] : made;
    });
    fill(select, ...parts.flat());
  }
  if (select.value !== value) select.value = value;
}

/**
 * A few switches of which one is on, as radio buttons.
 * @param {{name: string, label: string, testid: string, options: [value: string, text: string, title: string][],
 *   onpick: (value: string) => void}} choice
 * @returns {{element: HTMLElement, set: (value: string, blocked?: Map<string, string>) => void}} `blocked`: value to why not
 */
export function segmented({ name, label, testid, options, onpick }) {
  const inputs = new Map();
  const element = h("fieldset", { class: "segmented", testid }, h("legend", {}, label));
  const box = h("div", { class: "segments" });
  for (const [value, text, title] of options) {
    const input = h("input", {
      type: "radio",
      name,
      value,
      testid: `${testid}-${value}`,
      onchange: () => onpick(value),
    });
    inputs.set(value, { input, title, part: h("label", { title }, input, h("span", {}, text)) });
    box.append(inputs.get(value).part);
  }
  element.append(box);
  const set = (value, blocked = new Map()) => {
    for (const [key, { input, title, part }] of inputs) {
      input.checked = key === value;
      input.disabled = blocked.has(key);
      part.title = blocked.get(key) ?? title;
    }
  };
  return { element, set };
}

function kept(children) {
  return children
    .filter((child) => child !== null && child !== undefined && child !== false)
    .map((child) => (typeof child === "number" ? String(child) : child));
}
