// What changes, from /v1/events: read for as long as the page is open, and read again when the connection is lost.

import { changed, state } from "./state.js";

const AGAIN_MS = 1_000;
const listeners = new Set();

/** Have `listener(name, data)` called for each event; return what ends that. */
export function listen(listener) {
  listeners.add(listener);
  return () => listeners.delete(listener);
}

/** Read the events until `stopped` says so. */
export async function follow(stopped) {
  let last = "";
  while (!stopped()) {
    try {
      const headers = last ? { "last-event-id": last } : {};
      const answer = await fetch("/v1/events", { headers });
      if (answer.status === 401) return;
      if (!answer.ok || !answer.body) throw new Error(String(answer.status));
      for await (const event of parsed(answer.body, stopped)) {
        if (event.id) last = event.id;
        online(event.name !== "problem");
        if (event.name === "problem") break;
        if (event.name === "idle") continue;
        for (const listener of listeners) listener(event.name, event.data);
      }
    } catch {
      // The gateway or the network is away: it is tried again.
    }
    online(false);
    await new Promise((resolve) => setTimeout(resolve, AGAIN_MS));
  }
}

async function* parsed(stream, stopped) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  try {
    while (!stopped()) {
      const { done, value } = await reader.read();
      if (done) return;
      text += value;
      for (let end = text.indexOf("\n\n"); end >= 0; end = text.indexOf("\n\n")) {
        const fields = {};
        for (const line of text.slice(0, end).split("\n")) {
          const [name, ...rest] = line.split(": ");
          fields[name] = rest.join(": ");
        }
        text = text.slice(end + 2);
        if (fields.event) yield { name: fields.event, id: fields.id, data: JSON.parse(fields.data) };
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

function online(is) {
  if (state.online !== is) {
    state.online = is;
    changed("online");
  }
}
