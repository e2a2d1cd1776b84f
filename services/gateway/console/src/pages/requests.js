// The requests of this page, the newest first, each with the command that repeats it.

import { curlOf } from "../api.js";
import { commandOf } from "../commands.js";
import { state, useTopics } from "../state.js";
import { Copy, html, Table } from "../view.js";
import { moment, word } from "../words.js";

export function Requests() {
  useTopics("requests", "looks");
  if (state.requests.length === 0) return html`<p class="empty">${word("noRequests")}</p>`;
  return html`<${Table}
    caption=${word("requests")}
    columns=${[word("time"), "HTTP", word("stateOf"), word("reason"), "ms", ""]}
    rows=${state.requests.map((each) => [
      moment(each.at),
      html`<code>${each.verb} ${each.path}</code>`,
      html`<span class="state ${each.status >= 200 && each.status < 300 ? "paid" : "declined"}">${each.status || "…"}</span>
        ${each.replayed && html` <span class="mark" title=${word("replayedHelp")}>${word("replayed")}</span>`}`,
      each.reason,
      each.ms,
      html`<span class="buttons">
        <${Copy} text=${curlOf(each)} label=${word("copy")} />
        ${commandOf(each) && html`<${Copy} text=${commandOf(each)} label=${word("copyCommand")} />`}
      </span>`,
    ])}
  />`;
}
