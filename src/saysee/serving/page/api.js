// The server's HTTP API: one function a request. Every fault becomes an ApiError with a line for people.

const STORED = "saysee-token";
const TRIES = 5; // of a request that the server is too busy for
const PATIENCE = 60; // seconds; a server that asks for longer is asked by hand

export class ApiError extends Error {
  constructor(message, status) {
    super(message);
    this.status = status; // 0: no answer at all
  }
}

let token = stored();
let asked = null; // the promise of a new token, shared by all requests that wait for it
let askForToken = () => Promise.reject(new ApiError("This server asks for a token.", 401));

/** Say who asks the person for a token: `ask(refused)` gives a promise of it. */
export function tokenFrom(ask) {
  askForToken = ask;
}

/** Take the token from `#token=...` of the address, and take it out of the address: it is not to be shown or shared. */
export function takeTokenFromAddress() {
  const given = new URLSearchParams(location.hash.slice(1)).get("token");
  if (given === null) return;
  keep(given);
  history.replaceState(null, "", location.pathname + location.search);
}

/** What this server is: mode, number of items, limits. */
export const about = () => json("/api/about");

/** Ranked answers to a recording or picture. `narrow`: top, path, since, until. */
export const search = (blob, narrow, options) => json(`/api/search?${query(narrow)}`, { ...options, ...post(blob) });

/** What looks like this item. */
export const similar = (id, top, options) => json(`/api/items/${enc(id)}/similar?${query({ top })}`, options);

export const thumbnail = (id, options) => blobOf(`/api/items/${enc(id)}/thumbnail`, options);
export const picture = (id, options) => blobOf(`/api/items/${enc(id)}/picture`, options);

/**
 * Where the model looked in a picture during a recording.
 * @returns {Promise<{rows: number, columns: number, frames: number, from: number, step: number, weights: Uint8Array}>}
 *   `weights` frame by frame, row by row; 255 is the largest of all. `from` and `step` are seconds of the recording.
 */
export async function attention(id, blob, options) {
  const heat = await json(`/api/items/${enc(id)}/attention`, { ...options, ...post(blob) });
  return { ...heat, weights: Uint8Array.from(atob(heat.weights), (character) => character.charCodeAt(0)) };
}

/** What has been recorded so far. */
export const recorded = () => json("/api/record");

/** The next picture to speak of after one, or null when none is left. */
export async function nextPicture(speaker, language, after) {
  try {
    return await json(`/api/record/next?${query({ after, speaker, language })}`);
  } catch (error) {
    if (error.status === 404) return null;
    throw error;
  }
}

export const recordPicture = (id) => blobOf(`/api/record/pictures/${enc(id)}`);
export const recording = (id) => blobOf(`/api/record/recordings/${enc(id)}`);
export const forget = (id) => call(`/api/record/recordings/${enc(id)}`, { method: "DELETE" });

/** Keep a recording of a picture. */
export const record = (id, blob, speaker, language, options) =>
  json(`/api/record/pictures/${enc(id)}?${query({ speaker, language })}`, { ...options, ...post(blob) });

const enc = encodeURIComponent;
const post = (body) => ({ method: "POST", body });
const json = async (address, options) => (await call(address, options)).json();
const blobOf = async (address, options) => (await call(address, options)).blob();

function query(values) {
  return new URLSearchParams(Object.entries(values).filter(([, value]) => value !== undefined && value !== ""));
}

/**
 * Send a request; again after a new token, and again when the server says that it is busy.
 * @param {string} address
 * @param {object} options `method`, `body`, `signal`, and `waiting(seconds)`, called when a busy server is waited for,
 *   and with 0 when it is asked again.
 */
async function call(address, { method = "GET", body, signal, waiting } = {}) {
  for (let tries = 1; ; ) {
    const sent = token;
    const headers = sent ? { Authorization: `Bearer ${sent}` } : {};
    const response = await send(address, { method, body, signal, headers });
    if (response.ok) return response;
    const pause = Number(response.headers.get("Retry-After") ?? 2);
    if (response.status === 401) {
      if (token === sent) keep(await (asked ??= askForToken(Boolean(sent)).finally(() => (asked = null))));
    } else if ([429, 503].includes(response.status) && tries < TRIES && pause <= PATIENCE) {
      tries += 1;
      waiting?.(pause);
      await sleep(pause * 1000, signal);
      waiting?.(0);
    } else {
      throw new ApiError(await errorLine(response), response.status);
    }
  }
}

async function send(address, options) {
  try {
    return await fetch(address, { ...options, credentials: "omit" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("The server does not answer. Does it still run?", 0);
  }
}

async function errorLine(response) {
  const fallback = `The server answers ${response.status}.`;
  try {
    const { error } = await response.json();
    if (typeof error !== "string" || !error) return fallback;
    return error[0].toUpperCase() + error.slice(1) + (/[.!?]$/.test(error) ? "" : ".");
  } catch {
    return fallback;
  }
}

function sleep(milliseconds, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, milliseconds);
    signal?.addEventListener("abort", () => {
      clearTimeout(timer);
      reject(signal.reason);
    });
  });
}

function stored() {
  try {
    return sessionStorage.getItem(STORED);
  } catch {
    return null; // storage is forbidden: the token lives as long as the page
  }
}

function keep(value) {
  token = value;
  try {
    sessionStorage.setItem(STORED, value);
  } catch {
    // as above
  }
}
