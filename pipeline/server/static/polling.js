// Asking again and again: less often while nothing changes, not at all while nobody looks.

import { pause } from "./api.js";

const FIRST = 1;
const LAST = 15;
const GROWTH = 1.5;

/**
 * Call `look` until it returns false or the page is left. It returns "changed" or "same".
 * An error makes the next call later; it is told to `failed`.
 */
export async function poll(look, signal, failed = () => {}) {
  let wait = FIRST;
  for (;;) {
    try {
      await pause(wait, signal);
      await seen(signal);
      const found = await look();
      if (found === false) return;
      wait = found === "changed" ? FIRST : Math.min(LAST, wait * GROWTH);
    } catch (error) {
      if (signal.aborted || error.name === "AbortError") return;
      failed(error);
      wait = Math.min(LAST, wait * GROWTH);
    }
  }
}

function seen(signal) {
  if (!document.hidden) return Promise.resolve();
  return new Promise((resolve, reject) => {
    const look = () => {
      if (document.hidden) return;
      document.removeEventListener("visibilitychange", look);
      resolve();
    };
    document.addEventListener("visibilitychange", look);
    signal.addEventListener("abort", () => {
      document.removeEventListener("visibilitychange", look);
      reject(new DOMException("left", "AbortError"));
    });
  });
}
