/** Numbers as people read them: formats, ticks, quantiles, smoothing. Pure functions. */

const UNKNOWN = "unknown";

/**
 * Three significant digits; powers of ten where zeros would have to be counted.
 * @param {number|null|undefined} value
 * @param {string} [unit]
 * @returns {string}
 */
export function format(value, unit = "") {
  if (value === null || value === undefined || !Number.isFinite(value)) return UNKNOWN;
  const size = Math.abs(value);
  let text;
  if (size === 0) text = "0";
  else if (size >= 1e5 || size < 1e-3)
    text = value
      .toExponential(2)
      .replace(/\.?0+e/, "e")
      .replace("e+", "e");
  else text = String(Number(value.toPrecision(3)));
  text = text.replace("-", "\u2212").replace("e-", "e\u2212");
  return unit ? `${text} ${unit}` : text;
}

/** @param {number} value @returns {string} an angle in radians and degrees */
export function formatAngle(value) {
  return Number.isFinite(value) && value !== null
    ? `${format(value)} rad (${format((value * 180) / Math.PI)}°)`
    : UNKNOWN;
}

/** @param {number} value @param {string} unit @returns {string} with degrees beside radians */
export function formatValue(value, unit) {
  return unit === "rad" ? formatAngle(value) : format(value, unit);
}

/** @param {number|null|undefined} value @returns {string} */
export function formatFactor(value) {
  return value === null || value === undefined || !Number.isFinite(value) ? UNKNOWN : `${format(value)}\u00d7`;
}

/** @param {number} value @returns {string} a whole number with separators of thousands */
export function formatCount(value) {
  return Math.round(value).toLocaleString("en-US");
}

/** @param {number} seconds @returns {string} */
export function formatDuration(seconds) {
  if (!Number.isFinite(seconds)) return UNKNOWN;
  if (Math.abs(seconds) < 120) return `${format(seconds)} s`;
  if (Math.abs(seconds) < 7200) return `${format(seconds / 60)} min`;
  return `${format(seconds / 3600)} h`;
}

/**
 * @param {ArrayLike<number>} sorted ascending, no NaN
 * @param {number} share 0 to 1
 * @returns {number}
 */
export function quantile(sorted, share) {
  if (!sorted.length) return NaN;
  const place = (sorted.length - 1) * share;
  const low = Math.floor(place);
  const high = Math.ceil(place);
  return sorted[low] + (sorted[high] - sorted[low]) * (place - low);
}

/**
 * Exponential smoothing without the bias of the start, as TensorBoard's scalars do it. NaN stay NaN and are passed over.
 * @param {ArrayLike<number>} values
 * @param {number} weight 0 to 1, 0: as they are
 * @returns {Float64Array}
 */
export function smooth(values, weight) {
  const result = new Float64Array(values.length);
  let last = 0;
  let seen = 0;
  for (let i = 0; i < values.length; i++) {
    const value = values[i];
    if (Number.isFinite(value)) {
      last = last * weight + (1 - weight) * value;
      seen += 1;
      result[i] = weight > 0 ? last / (1 - weight ** seen) : value;
    } else result[i] = NaN;
  }
  return result;
}

/**
 * @typedef {{value: number, text: string}} Tick
 * @param {number} low
 * @param {number} high
 * @param {number} most about how many
 * @returns {Tick[]}
 */
export function linearTicks(low, high, most) {
  if (!(high > low)) return Number.isFinite(low) ? [{ value: low, text: format(low) }] : [];
  const step = niceStep((high - low) / Math.max(1, most));
  const ticks = [];
  for (let n = Math.ceil(low / step - 1e-9); n * step <= high + step * 1e-9; n++) {
    const value = Number((n * step).toPrecision(12)) || 0;
    ticks.push({ value, text: format(value) });
  }
  return ticks;
}

/**
 * Ticks of a logarithmic axis: powers of ten, with 2 and 5 between where there is room; even ones if it is short.
 * @param {number} low positive
 * @param {number} high
 * @param {number} most
 * @returns {Tick[]}
 */
export function logTicks(low, high, most) {
  if (high < 3 * low) return linearTicks(low, high, most);
  const first = Math.floor(Math.log10(low));
  const last = Math.ceil(Math.log10(high));
  const inside = (value) => value >= low * 0.999 && value <= high * 1.001;
  for (const digits of [[1, 2, 3, 4, 5, 6, 7, 8, 9], [1, 2, 5], [1, 3], [1]]) {
    const ticks = [];
    for (let power = first; power <= last; power++) {
      for (const digit of digits) {
        const value = Number(`${digit}e${power}`);
        if (inside(value)) ticks.push({ value, text: format(value) });
      }
    }
    if (ticks.length <= most && (ticks.length > 1 || digits.length > 3)) return ticks;
    if (digits.length === 1) {
      const every = Math.ceil(ticks.length / most);
      return ticks.length > 1 ? ticks.filter((_, n) => n % every === 0) : linearTicks(low, high, most);
    }
  }
  return [];
}

/**
 * Ticks of the x axis: whole steps, or seconds, minutes or hours.
 * @param {[number, number]} range steps, or seconds
 * @param {boolean} relative whether it is time
 * @param {number} most
 * @returns {{ticks: Tick[], title: string}}
 */
export function xTicks([low, high], relative, most) {
  if (!relative) {
    const step = Math.max(1, Math.ceil(niceStep((high - low) / Math.max(1, most))));
    const ticks = [];
    for (let n = Math.ceil(low / step) || 0; n * step <= high; n++)
      ticks.push({ value: n * step, text: formatCount(n * step) });
    return { ticks, title: "step" };
  }
  const [unit, size] = high < 180 ? ["s", 1] : high < 3 * 3600 ? ["min", 60] : ["h", 3600];
  const ticks = linearTicks(low / size, high / size, most);
  return { ticks: ticks.map(({ value, text }) => ({ value: value * size, text })), title: `relative time (${unit})` };
}

function niceStep(rough) {
  const power = 10 ** Math.floor(Math.log10(rough));
  const share = rough / power;
  return power * (share <= 1 ? 1 : share <= 2 ? 2 : share <= 2.5 ? 2.5 : share <= 5 ? 5 : 10);
}
