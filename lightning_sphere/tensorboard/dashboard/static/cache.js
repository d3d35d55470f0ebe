/** Keeps answers of the server. What is old is shown until the new one is there. */

/**
 * @typedef {{value: any, error: Error|null, pending: boolean, version: string|null}} Entry
 */

export class Cache {
  /** @param {() => void} changed called after each answer */
  constructor(changed) {
    this.changed = changed;
    /** @type {Map<string, Entry>} */
    this.entries = new Map();
  }

  /**
   * The answer as far as it is known; asks if the version that is here is another.
   * @param {string[]} key
   * @param {string} version changes when the server has something new
   * @param {() => Promise<any>} ask
   * @returns {Entry}
   */
  get(key, version, ask) {
    const text = JSON.stringify(key);
    let entry = this.entries.get(text);
    if (!entry) {
      entry = { value: undefined, error: null, pending: false, version: null };
      this.entries.set(text, entry);
      if (this.entries.size > 60) this.#forget();
    }
    if (entry.version !== version && !entry.pending) this.#ask(entry, version, ask);
    return entry;
  }

  async #ask(entry, version, ask) {
    entry.pending = true;
    try {
      entry.value = await ask();
      entry.error = null;
    } catch (error) {
      entry.error = error;
    }
    entry.version = version;
    entry.pending = false;
    this.changed();
  }

  /** Asks again for whatever failed. */
  retry() {
    for (const entry of this.entries.values()) if (entry.error) entry.version = null;
  }

  #forget() {
    for (const [text, entry] of this.entries) {
      if (this.entries.size <= 40) return;
      if (!entry.pending) this.entries.delete(text);
    }
  }
}
