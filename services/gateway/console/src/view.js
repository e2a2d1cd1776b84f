// Small parts that the pages share.

import { h } from "preact";
import { useState } from "preact/hooks";
import htm from "htm";

import { Refusal } from "./api.js";
import { moment, word } from "./words.js";

export const html = htm.bind(h);

/** A state as a coloured label. */
export function State({ of }) {
  const name = String(of ?? "").replace(/^[A-Z]+_STATE_/, "");
  return html`<span class="state ${name.toLowerCase()}">${name}</span>`;
}

/** What came of a request: nothing yet, under way, an answer, a refusal, or no reply. */
export function Outcome({ of }) {
  if (!of) return html`<p class="outcome empty" aria-live="polite"></p>`;
  return html`<p class="outcome ${of.kind}" role="status" aria-live="polite">
    ${of.text}
    ${of.replayed && html`<span class="mark" title=${word("replayedHelp")}>${word("replayed")}</span>`}
  </p>`;
}

/** Do what a request asks for; return what came of it, as `Outcome` shows it. */
export async function outcomeOf(request, said) {
  try {
    const answer = await request();
    return { kind: "done", text: said(answer.body), replayed: answer.replayed, body: answer.body };
  } catch (error) {
    if (!(error instanceof Refusal)) return { kind: "unheard", text: word("noReply") };
    const { reason, metadata, detail } = error.problem;
    if (reason === "ORDER_ALREADY_PAID" && metadata?.clerk) {
      const at = moment(Date.parse(metadata.settled_at ?? "") || Number(metadata.settled_at_ms ?? 0));
      const values = { clerk: metadata.clerk, role: word(metadata.role), at };
      return { kind: "lost", text: word("alreadyPaid", values), replayed: error.replayed };
    }
    return { kind: "refused", text: `${word("refused")}: ${detail} (${reason})`, replayed: error.replayed };
  }
}

/** A table with a caption; each row is a list of cells. */
export function Table({ caption, columns, rows }) {
  return html`<div class="scroll" tabindex="0" role="region" aria-label=${caption}>
    <table>
      <caption>${caption}</caption>
      <thead><tr>${columns.map((each) => html`<th scope="col">${each}</th>`)}</tr></thead>
      <tbody>${rows.map((row) => html`<tr>${row.map((cell) => html`<td>${cell}</td>`)}</tr>`)}</tbody>
    </table>
    ${rows.length === 0 && html`<p class="empty">${word("none")}</p>`}
  </div>`;
}

/** A button that copies a text. */
export function Copy({ text, label }) {
  const [done, setDone] = useState(false);
  const copy = async () => {
    await navigator.clipboard.writeText(text);
    setDone(true);
  };
  return html`<button type="button" class="quiet" onClick=${copy}>${done ? word("copied") : label}</button>`;
}
