/** Starts the page in TensorBoard's frame. */

import { h } from "./dom.js";
import { readUrl, themeOf } from "./host.js";
import { createPage } from "./page.js";
import { createStore, fromTexts } from "./state.js";

/** Called by TensorBoard, once the frame is there. */
export function render() {
  document.documentElement.lang = "en";
  const store = createStore(fromTexts(readUrl()));
  document.documentElement.dataset.theme = themeOf(store.get().theme);
  const style = h("link", { rel: "stylesheet", href: new URL("style.css", import.meta.url).href });
  for (const outcome of ["load", "error"]) style.addEventListener(outcome, () => createPage(store), { once: true });
  document.head.append(style, h("meta", { name: "viewport", content: "width=device-width" }));
}
