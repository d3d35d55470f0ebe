/** Asks the server and decodes what it answers. */

/**
 * @typedef {Object} Table values of one quantity; steps are strictly increasing
 * @property {Float64Array} steps
 * @property {Float64Array} times seconds since the epoch
 * @property {string[]} layers
 * @property {string[]} stats
 * @property {Float32Array} values [steps, layers, stats] in C order, NaN where unknown
 */

/** The server could not be reached, or refused. */
export class ApiError extends Error {
  /** @param {string} message @param {boolean} unreachable */
  constructor(message, unreachable) {
    super(message);
    this.unreachable = unreachable;
  }
}

const BASE = new URL("../", import.meta.url);

/** @returns {Promise<any>} versions, quantities and runs */
export async function getRuns() {
  return (await request("runs", {})).json();
}

/** @param {string} run @returns {Promise<any>} layers, cards and findings */
export async function getRun(run) {
  return (await request("run", { run })).json();
}

/**
 * @param {{run: string, quantity: string, layer?: string, stat?: "all"}} question
 * @returns {Promise<Table>}
 */
export async function getValues(question) {
  return mergeSteps(decode(await (await request("values", question)).arrayBuffer()));
}

/**
 * @param {ArrayBuffer} buffer header length, header, steps, times, values
 * @returns {Table}
 */
export function decode(buffer) {
  const size = new DataView(buffer).getUint32(0, true);
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, size)));
  const { steps: count, layers, stats } = header;
  const start = 4 + size;
  return {
    steps: new Float64Array(buffer, start, count),
    times: new Float64Array(buffer, start + 8 * count, count),
    layers,
    stats,
    values: new Float32Array(buffer, start + 16 * count, count * layers.length * stats.length),
  };
}

/**
 * Joins rows of the same step (several optimizers): of each cell, the last known value.
 * @param {Table} table
 * @returns {Table}
 */
export function mergeSteps(table) {
  const { steps, times, values } = table;
  const width = table.layers.length * table.stats.length;
  let last = -1;
  const to = Int32Array.from(steps, (step, n) => (n && step === steps[n - 1] ? last : ++last));
  const count = last + 1;
  if (count === steps.length) return table;
  const merged = {
    ...table,
    steps: new Float64Array(count),
    times: new Float64Array(count),
    values: new Float32Array(count * width).fill(NaN),
  };
  to.forEach((row, n) => {
    merged.steps[row] = steps[n];
    merged.times[row] = times[n];
    for (let k = 0; k < width; k++) {
      if (!Number.isNaN(values[n * width + k])) merged.values[row * width + k] = values[n * width + k];
    }
  });
  return merged;
}

let plotly;

/** @returns {Promise<any>} plotly.js, from the installed Python package */
export function loadPlotly() {
  plotly ??= new Promise((resolve, reject) => {
    if (window.Plotly) return resolve(window.Plotly);
    const script = document.createElement("script");
    script.src = new URL("plotly.js", BASE).href;
    script.onload = () => (window.Plotly ? resolve(window.Plotly) : reject(new Error("plotly.js did not start")));
    script.onerror = () => {
      plotly = undefined;
      script.remove();
      reject(new Error("plotly.js could not be loaded"));
    };
    document.head.append(script);
  });
  return plotly;
}

async function request(route, question) {
  const url = new URL(route, BASE);
  for (const [key, value] of Object.entries(question)) if (value !== undefined) url.searchParams.set(key, value);
  let answer;
  try {
    answer = await fetch(url, { cache: "no-cache", signal: AbortSignal.timeout(60_000) });
  } catch (error) {
    throw new ApiError(`The server does not answer (${error.message}).`, true);
  }
  if (answer.ok) return answer;
  const told = await answer.json().catch(() => ({}));
  throw new ApiError(told.error ?? `The server answered ${answer.status}.`, answer.status >= 500);
}
