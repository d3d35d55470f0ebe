/** The page's surroundings: TensorBoard's messages, its URL, its theme. */

const PREFIX = "p.lightning_sphere.";

/** @returns {Window} the window whose URL people see; this one, if the other may not be touched */
function outside() {
  try {
    return window.parent.location.href && window.parent;
  } catch {
    return window;
  }
}

/** @returns {Map<string, string>} our part of the URL's query */
export function readUrl() {
  const found = new Map();
  for (const [key, value] of new URLSearchParams(outside().location.search)) {
    if (key.startsWith(PREFIX)) found.set(key.slice(PREFIX.length), value);
  }
  return found;
}

/**
 * Our part of the query is replaced; all else in the URL stays as it is, letter by letter.
 * @param {Map<string, string>} texts
 * @returns {string} the new URL
 */
export function writeUrl(texts) {
  const { location, history } = outside();
  const foreign = location.search
    .slice(1)
    .split("&")
    .filter((part) => part && !decoded(part).startsWith(PREFIX));
  const own = [...texts].map(([key, value]) => `${PREFIX}${key}=${encodeURIComponent(value)}`);
  const query = [...foreign, ...own].join("&");
  const url = `${location.pathname}${query ? `?${query}` : ""}${location.hash}`;
  if (url !== `${location.pathname}${location.search}${location.hash}`) history.replaceState(history.state, "", url);
  return new URL(url, location.href).href;
}

/**
 * Listens to TensorBoard's experimental plugin API, as a guest.
 * @param {Map<string, () => void>} listeners by type of message
 */
export function listen(listeners) {
  if (window.parent === window) return;
  const { port1, port2 } = new MessageChannel();
  port1.onmessage = ({ data }) => {
    const message = JSON.parse(data);
    if (message.isReply) return;
    listeners.get(message.type)?.();
    port1.postMessage(
      JSON.stringify({ type: message.type, id: message.id, payload: null, error: null, isReply: true }),
    );
  };
  window.parent.postMessage("experimental.bootstrap", window.location.origin, [port2]);
}

/** @param {"auto"|"light"|"dark"} wish @returns {"light"|"dark"} */
export function themeOf(wish) {
  if (wish !== "auto") return wish;
  const other = outside();
  if (other !== window && other.document.body)
    return other.document.body.classList.contains("dark-mode") ? "dark" : "light";
  return window.matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
}

/** @param {() => void} changed called when TensorBoard or the system changes its theme */
export function watchTheme(changed) {
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", changed);
  const other = outside();
  if (other === window || !other.document.body) return;
  new MutationObserver(changed).observe(other.document.body, { attributes: true, attributeFilter: ["class"] });
}

/** @returns {boolean} whether a person can see the page: TensorBoard hides the frames of other tabs */
export function isVisible() {
  return document.visibilityState === "visible" && document.documentElement.clientWidth > 0;
}

function decoded(part) {
  try {
    return decodeURIComponent(part.replaceAll("+", " "));
  } catch {
    return part;
  }
}
