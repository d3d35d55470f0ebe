/** What the server knows, asked for when it is needed, and again when a run has grown. */

import { getRun, getRuns, getValues } from "./api.js";
import { Cache } from "./cache.js";

/**
 * @typedef {Object} Session
 * @property {{quantities: Map<string, any>, runs: any[], plotly: string|null, install: string}|null} answer of /runs
 * @property {Error|null} error of the last question
 * @property {Date|null} goneSince when the server stopped to answer
 * @property {Date|null} updated when something new came last
 * @property {() => Promise<void>} poll asks whether something is new
 * @property {(run: string) => import("./cache.js").Entry} info answer of /run
 * @property {(run: string, quantity: string) => import("./cache.js").Entry} medians of all layers
 * @property {(run: string, quantity: string, layer: string) => import("./cache.js").Entry} layer all statistics of one layer
 * @property {() => void} retry
 */

/** @param {() => void} changed @returns {Session} */
export function createSession(changed) {
  const cache = new Cache(changed);
  let signature = "";
  let asking = null;
  const version = (run) => {
    const found = session.answer?.runs.find(({ name }) => name === run);
    return found ? JSON.stringify([found.last_step, found.last_wall_time, found.quantities, found.problem]) : "";
  };

  async function ask() {
    try {
      const raw = await getRuns();
      if (session.goneSince) cache.retry();
      session.error = session.goneSince = null;
      const next = JSON.stringify(raw);
      if (next !== signature) {
        signature = next;
        session.answer = { ...raw, quantities: new Map(Object.entries(raw.quantities)) };
        session.updated = new Date();
      }
    } catch (error) {
      session.error = error;
      session.goneSince ??= new Date();
    }
    changed();
  }

  const session = {
    answer: null,
    error: null,
    goneSince: null,
    updated: null,
    poll: () => (asking ??= ask().finally(() => (asking = null))),
    info: (run) => cache.get(["run", run], version(run), () => getRun(run)),
    medians: (run, quantity) => cache.get(["medians", run, quantity], version(run), () => getValues({ run, quantity })),
    layer: (run, quantity, layer) =>
      cache.get(["layer", run, quantity, layer], version(run), () => getValues({ run, quantity, layer, stat: "all" })),
    retry() {
      cache.retry();
      return session.poll();
    },
  };
  return session;
}
