/** The list of layers beside the heatmap: a listbox, so that the keyboard does all that the pointer does. */

import { fill, h } from "./dom.js";
import { commonPrefix, KIND_WORDS, shorten } from "./kinds.js";

/**
 * @param {HTMLElement} list
 * @param {{onopen: (name: string) => void, onactive: (row: number) => void}} listeners `onactive`: pointed at, -1: none
 * @returns {{draw: (rows: import("./view.js").Row[], selected: string, compared: boolean, rowHeight: number) => void,
 *   point: (row: number) => void, place: (name: string) => number}}
 */
export function createLayers(list, { onopen, onactive }) {
  let rows = [];
  let selected = "";
  let active = -1;
  let signature = "";
  let typed = "";
  let typedAt = 0;
  let following = 0;
  list.setAttribute("role", "listbox");
  list.setAttribute("aria-label", "Layers, in network order");
  list.tabIndex = 0;

  const option = (row) => list.children[row];
  const place = (name) => rows.findIndex((row) => row.name === name);

  function mark(row, { scroll = false } = {}) {
    option(active)?.classList.remove("active");
    active = row >= 0 && row < rows.length ? row : -1;
    if (active < 0) list.removeAttribute("aria-activedescendant");
    else {
      list.setAttribute("aria-activedescendant", option(active).id);
      option(active).classList.add("active");
      if (scroll) option(active).scrollIntoView({ block: "nearest" });
    }
  }

  function move(row) {
    if (!rows.length) return;
    mark(Math.max(0, Math.min(rows.length - 1, row)), { scroll: true });
    onactive(active);
    clearTimeout(following);
    if (selected) following = setTimeout(() => active >= 0 && onopen(rows[active].name), 150);
  }

  list.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const page = Math.max(1, Math.floor(10));
    const jump = {
      ArrowDown: active + 1,
      ArrowUp: active - 1,
      Home: 0,
      End: rows.length - 1,
      PageDown: active + page,
      PageUp: active - page,
    }[event.key];
    const searching = Date.now() - typedAt < 800 && typed;
    if (jump !== undefined) move(jump);
    else if (event.key === "Enter" || (event.key === " " && !searching)) active >= 0 && onopen(rows[active].name);
    else if (event.key.length === 1) search(event.key.toLowerCase());
    else return;
    event.preventDefault();
  });
  list.addEventListener("focus", () => {
    if (active < 0) mark(Math.max(0, place(selected)));
    onactive(active);
  });
  list.addEventListener("blur", () => onactive(-1));
  list.addEventListener("click", (event) => {
    const row = [...list.children].indexOf(event.target.closest("[role=option]"));
    if (row >= 0) {
      mark(row);
      onopen(rows[row].name);
    }
  });
  list.addEventListener("pointerover", (event) =>
    onactive([...list.children].indexOf(event.target.closest("[role=option]"))),
  );
  list.addEventListener("pointerleave", () => onactive(document.activeElement === list ? active : -1));

  function search(letter) {
    typed = Date.now() - typedAt < 800 ? typed + letter : letter;
    typedAt = Date.now();
    const prefix = commonPrefix(rows.map((row) => row.name));
    const from = typed.length > 1 ? Math.max(active, 0) : active + 1;
    const order = rows.map((_, n) => (from + n) % rows.length);
    const begins = (n) =>
      [rows[n].name, rows[n].name.slice(prefix.length)].some((name) => name.toLowerCase().startsWith(typed));
    const found = order.find(begins) ?? order.find((n) => rows[n].name.toLowerCase().includes(typed));
    if (found !== undefined) move(found);
  }

  return {
    place,
    point(row) {
      for (const other of list.querySelectorAll(".pointed")) other.classList.remove("pointed");
      option(row)?.classList.add("pointed");
    },
    draw(now, chosen, compared, rowHeight) {
      list.style.setProperty("--row", `${rowHeight}px`);
      const next = JSON.stringify([
        compared,
        now.map(({ name, kind, a, b, layer }) => [name, kind, a < 0, b < 0, layer.reason]),
      ]);
      if (next !== signature) {
        signature = next;
        const kept = rows[active]?.name;
        const top = list.parentElement.parentElement.scrollTop;
        rows = now;
        const prefix = commonPrefix(rows.map((row) => row.name));
        fill(list, ...rows.map((row, n) => made(row, n, rows.length, prefix, compared)));
        list.parentElement.parentElement.scrollTop = top;
        mark(kept === undefined ? -1 : place(kept));
      }
      rows = now;
      if (chosen !== selected || !list.querySelector("[aria-selected=true]")) {
        selected = chosen;
        [...list.children].forEach((element, n) =>
          element.setAttribute("aria-selected", String(rows[n].name === chosen)),
        );
      }
    },
  };
}

function made(row, n, count, prefix, compared) {
  const { letter, words } = KIND_WORDS.get(row.kind);
  const only = !compared ? "" : row.b < 0 ? "only in A" : row.a < 0 ? "only in B" : "";
  return h(
    "li",
    {
      role: "option",
      id: `layer-${n}`,
      "aria-selected": "false",
      "aria-posinset": n + 1,
      "aria-setsize": count,
      class: row.kind === "none" ? "layer plain" : "layer",
      title: `${row.name}\n${words}${row.layer.reason ? `\n${row.layer.reason}` : ""}`,
      "data-layer": row.name,
      "aria-label": `${row.name}, ${words}${only ? `, ${only}` : ""}`,
    },
    h("span", { class: `kind kind-${row.kind}`, "aria-hidden": true }, letter),
    h("span", { class: "layer-name" }, shorten(row.name, prefix, only ? 22 : 32)),
    only && h("span", { class: "only" }, only),
  );
}
