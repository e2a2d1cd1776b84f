// A tour of the faults: what to press, what to watch. The address names the act: #/tour/2.

import { useTopics } from "../state.js";
import { html } from "../view.js";
import { word } from "../words.js";
import { Counter } from "./counter.js";

/** The words of each act: its title, what to press, what to watch. */
const ACTS = ["double", "clerks", "reply", "acquirer", "killed", "frozen"];

export function Tour({ id }) {
  useTopics("looks");
  const place = Math.min(Math.max(Number(id) || 1, 1), ACTS.length);
  const act = ACTS[place - 1];
  return html`
    <section class="act" aria-label=${word(`${act}Title`)}>
      <h2>${place}/${ACTS.length} · ${word(`${act}Title`)}</h2>
      <p><strong>${word("press")}</strong> ${word(`${act}Press`)}</p>
      <p><strong>${word("watch")}</strong> ${word(`${act}Watch`)}</p>
      <p>
        ${place > 1 && html`<a href="#/tour/${place - 1}">${word("back")}</a> `}
        ${place < ACTS.length ? html`<a href="#/tour/${place + 1}">${word("forward")}</a>` : html`<a href="#/ledger">${word("books")}</a>`}
      </p>
    </section>
    <${Counter} key=${place} />
  `;
}
