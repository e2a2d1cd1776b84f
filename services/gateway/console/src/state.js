// What the pages share, and how they hear that it has changed.

import { useEffect, useState } from "preact/hooks";

export const state = {
  /** Who is signed in; null: no caller; undefined: not known yet. */
  caller: undefined,
  /** In development, whom the page may act as. */
  people: [],
  /** The last requests, the newest first. */
  requests: [],
  /** Whether the events are being read. */
  online: true, // until a connection fails
  language: remembered("language", navigator.language.startsWith("zh") ? "zh" : "en"),
  theme: remembered("theme", matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light"),
};

const waiting = new Map();

/** Have the parts of the page that use a topic drawn again. */
export function changed(topic) {
  for (const draw of waiting.get(topic) ?? []) draw();
}

/** Draw this component again when one of the topics changes. */
export function useTopics(...topics) {
  const [, count] = useState(0);
  useEffect(() => {
    const draw = () => count((number) => number + 1);
    for (const topic of topics) {
      if (!waiting.has(topic)) waiting.set(topic, new Set());
      waiting.get(topic).add(draw);
    }
    return () => topics.forEach((topic) => waiting.get(topic).delete(draw));
  }, topics);
}

/** Choose the language or the theme, now and at the next visit. */
export function choose(name, value) {
  state[name] = value;
  try {
    localStorage.setItem(name, value);
  } catch {
    // It is not remembered.
  }
  changed("looks");
}

function remembered(name, otherwise) {
  try {
    return localStorage.getItem(name) ?? otherwise;
  } catch {
    return otherwise;
  }
}
