// Calls of the gateway, and the log of them.

import { changed, state } from "./state.js";

const LOGGED = 200;

/** An answer that is not 2xx, with its problem details (RFC 9457). */
export class Refusal extends Error {
  constructor(status, problem, replayed) {
    super(problem.detail);
    this.status = status;
    this.problem = problem;
    this.replayed = replayed;
  }
}

/** A random id for a request that changes something. */
export function newKey() {
  return "web-" + crypto.randomUUID();
}

/**
 * Call the gateway.
 *
 * @param {string} verb
 * @param {string} path
 * @param {{body?: object, key?: string, as?: string, unheard?: boolean, quiet?: boolean}} options `as`: in development, in whose name,
 *     like cashier:li; `unheard`: the reply is thrown away, as if the network had lost it; `quiet`: it is not in the log.
 * @returns {Promise<{body: any, replayed: boolean}>}
 */
export async function call(verb, path, { body, key, as, unheard, quiet } = {}) {
  const headers = {};
  if (body !== undefined) headers["content-type"] = "application/json";
  if (key) headers["idempotency-key"] = key;
  if (as) headers.authorization = "Bearer " + (await tokenOf(as));
  const began = performance.now();
  const entry = { at: Date.now(), verb, path, body, key, as, status: 0, replayed: false, reason: "", ms: 0 };
  if (!quiet) log(entry);
  try {
    const answer = await fetch(path, { method: verb, headers, body: body === undefined ? undefined : JSON.stringify(body) });
    const text = await answer.text();
    if (unheard) throw new TypeError("the reply was lost");
    const document = text ? JSON.parse(text) : null;
    entry.status = answer.status;
    entry.replayed = answer.headers.get("idempotency-replayed") === "true";
    if (!answer.ok) {
      entry.reason = document?.reason ?? "";
      if (answer.status === 401 && !as) signedOut();
      throw new Refusal(answer.status, document ?? { detail: answer.statusText }, entry.replayed);
    }
    return { body: document, replayed: entry.replayed };
  } finally {
    entry.ms = Math.round(performance.now() - began);
    if (!quiet) changed("requests");
  }
}

/** The command of curl that repeats a request. */
export function curlOf(entry) {
  const parts = ["curl -sS", entry.verb === "GET" ? "" : "-X " + entry.verb, `'${location.origin}${entry.path}'`];
  parts.push(`-H "Authorization: Bearer $TOKEN"`);
  if (entry.key) parts.push(`-H 'Idempotency-Key: ${entry.key}'`);
  if (entry.body !== undefined) parts.push(`--json '${JSON.stringify(entry.body).replaceAll("'", "'\\''")}'`);
  return parts.filter(Boolean).join(" ");
}

const tokens = new Map();

async function tokenOf(name) {
  const known = tokens.get(name);
  if (known && known.until > Date.now()) return known.token;
  const answer = await fetch("/session/token", {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ as: name }),
  });
  const document = await answer.json();
  if (!answer.ok) throw new Refusal(answer.status, document, false);
  tokens.set(name, { token: document.token, until: Number(document.expiresAtMs) - 60_000 });
  return document.token;
}

function signedOut() {
  state.caller = null;
  changed("session");
}

function log(entry) {
  state.requests.unshift(entry);
  state.requests.length = Math.min(state.requests.length, LOGGED);
  changed("requests");
}
