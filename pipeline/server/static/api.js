// Asking the service. Addresses are relative, so that the page works below any prefix; the token travels in a header only.

import { askToken } from "./parts/token.js";

const KEPT = "ntkpipe-token";
const TRIES = 4;
const LONGEST_WAIT = 10;
const EAGER_TRIES = 3;
const EAGER_SECONDS = 0.25;

/** What went wrong, as the service tells it (RFC 9457). */
export class Problem extends Error {
  constructor(status, told = {}) {
    super(told.detail || told.title || `The service answered ${status}.`);
    this.status = status;
    this.kind = told.kind || "error";
    this.blocks = Array.isArray(told.blocks) ? told.blocks : [];
    this.limit = told.limit;
    this.asked = told.asked;
  }
}

/** Join names to an address below /v1; each is escaped, empty parameters are left out. */
export function address(names, query = {}) {
  const path = names.map((name) => encodeURIComponent(name)).join("/");
  const asked = new URLSearchParams();
  for (const [name, given] of Object.entries(query)) {
    if (given !== null && given !== undefined && given !== "") asked.set(name, given);
  }
  const text = asked.toString();
  return `v1/${path}${text ? `?${text}` : ""}`;
}

export function token() {
  try {
    return sessionStorage.getItem(KEPT) || "";
  } catch {
    return "";
  }
}

export function keepToken(text) {
  if (text) sessionStorage.setItem(KEPT, text);
  else sessionStorage.removeItem(KEPT);
  document.dispatchEvent(new CustomEvent("token"));
}

/** Fetch; ask for the token where one is needed, and again where the service is busy. */
export async function ask(path, { signal, accept = "application/json" } = {}) {
  for (let tries = 1; ; tries += 1) {
    // The service tells how far it is rather than to keep a page waiting.
    const headers = { Accept: accept, Prefer: "respond-async" };
    const used = token();
    if (used) headers.Authorization = `Bearer ${used}`;
    let answer;
    try {
      answer = await fetch(path, { signal, headers });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Problem(0, { kind: "unreachable", detail: "The service does not answer." });
    }
    if (answer.ok) return answer;
    const problem = new Problem(answer.status, await told(answer));
    if (answer.status === 401) {
      // Another request may have got a new token meanwhile.
      if (token() === used) await askToken(used ? "The token was not accepted." : "", keepToken, signal);
      tries = 0;
    } else if ((answer.status === 429 || answer.status === 503) && problem.kind !== "storage" && tries < TRIES) {
      await pause(retryAfter(answer), signal);
    } else {
      throw problem;
    }
  }
}

export async function json(path, options) {
  return (await ask(path, options)).json();
}

/** Ask until the answer is ready (202 says how far it is). */
export async function ready(path, { signal, progress = () => {} }) {
  return (await finished(path, { signal }, async (answer) => progress(await answer.json()))).json();
}

/** Ask until the picture is ready. */
export async function picture(path, options) {
  return (await finished(path, { ...options, accept: "image/png" })).blob();
}

async function finished(path, options, early = async () => {}) {
  for (let tries = 1; ; tries += 1) {
    const answer = await ask(path, options);
    if (answer.status !== 202) return answer;
    await early(answer);
    // What is small is ready at once.
    await pause(tries <= EAGER_TRIES ? EAGER_SECONDS : retryAfter(answer), options.signal);
  }
}

/** Wait; an abort ends it. */
export function pause(seconds, signal) {
  return new Promise((resolve, reject) => {
    const ended = () => {
      clearTimeout(timer);
      reject(new DOMException("left", "AbortError"));
    };
    const timer = setTimeout(() => {
      signal?.removeEventListener("abort", ended);
      resolve();
    }, 1000 * seconds);
    if (signal?.aborted) ended();
    else signal?.addEventListener("abort", ended, { once: true });
  });
}

function retryAfter(answer) {
  const seconds = Number(answer.headers.get("Retry-After"));
  return Number.isFinite(seconds) && seconds > 0 ? Math.min(seconds, LONGEST_WAIT) : 1;
}

async function told(answer) {
  try {
    return (await answer.json()) ?? {};
  } catch {
    return {};
  }
}
