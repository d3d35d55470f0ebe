/** Makes the state fit what the server has: a link may name what is not there. */

const FIRST = ["angular_step", "effective_lr"];

/**
 * @param {{get: () => import("./state.js").State, set: (change: any) => void}} store
 * @param {{runs: any[], quantities: Map<string, any>}} answer
 * @param {(text: string) => void} remark tells the person
 * @returns {boolean} whether there is any run
 */
export function settle(store, answer, remark) {
  if (!answer.runs.length) return false;
  const find = (name) => answer.runs.find((run) => run.name === name);
  const { run: asked, vs } = store.get();
  if (!find(asked)) {
    const chosen = newest(answer.runs);
    if (asked) remark(`There is no run \u201c${asked}\u201d here. This is \u201c${chosen.name}\u201d.`);
    store.set({ run: chosen.name });
  }
  const run = find(store.get().run);
  if (vs && (!find(vs) || vs === run.name)) {
    if (vs !== run.name) remark(`There is no run \u201c${vs}\u201d to compare with.`);
    store.set({ vs: "" });
  }
  const other = vs && find(vs);
  if (other && (other.problem || !other.quantities.length)) {
    remark(`\u201c${vs}\u201d cannot be compared: ${other.problem ?? "nothing of it was measured yet."}`);
    store.set({ vs: "" });
  }
  const { quantity } = store.get();
  const known = run.quantities.filter((name) => answer.quantities.has(name));
  if (known.length && !known.includes(quantity)) {
    const next = FIRST.find((name) => known.includes(name)) ?? known[0];
    if (!FIRST.includes(quantity))
      remark(`\u201c${answer.quantities.get(quantity)?.title ?? quantity}\u201d was not recorded in this run.`);
    store.set({ quantity: next, scale: "" });
  }
  return true;
}

function newest(runs) {
  const usable = runs.filter((run) => !run.problem && run.quantities.length && run.last_step >= 0);
  return (usable.length ? usable : runs).reduce((best, run) => (run.last_wall_time > best.last_wall_time ? run : best));
}
