// One payment, step by step.

import { useEffect, useState } from "preact/hooks";

import { call } from "../api.js";
import { listen } from "../events.js";
import { useTopics } from "../state.js";
import { html, State, Table } from "../view.js";
import { moment, money, person, short, word } from "../words.js";

export function Payment({ id }) {
  useTopics("looks");
  const [payment, setPayment] = useState(null);
  const [events, setEvents] = useState([]);
  const [problem, setProblem] = useState("");
  const read = async () => {
    try {
      setPayment((await call("GET", `/v1/payments/${encodeURIComponent(id)}`)).body.payment);
      setEvents((await call("GET", `/v1/payments/${encodeURIComponent(id)}/history?pageSize=200`)).body.events);
      setProblem("");
    } catch (error) {
      setProblem(error.message);
    }
  };
  useEffect(() => {
    read();
    return listen((name, data) => {
      if (name === "lost" || (name === "payments" && data.payments.some((each) => each.paymentId === id))) read();
    });
  }, [id]);
  if (problem) return html`<p class="notice" role="alert">${problem}</p>`;
  if (!payment) return html`<p class="empty">${word("inProgress")}</p>`;
  return html`
    <h2><code>${id}</code> <${State} of=${payment.state} /></h2>
    <dl>
      <dt>${word("order")}</dt>
      <dd>${payment.orderId ? html`<a href="#/orders/${payment.orderId}"><code>${payment.orderId}</code></a>` : word("none")}</dd>
      <dt>${word("amountOf")}</dt>
      <dd>${money(payment.amount)}</dd>
      <dt>${word("source")}</dt>
      <dd>${short(payment.source)}</dd>
      <dt>${word("clerk")}</dt>
      <dd>${person(payment.clerk)}</dd>
      <dt>${word("journals")}</dt>
      <dd><code>${[payment.journalId, payment.reversalJournalId].filter(Boolean).join(", ") || word("none")}</code></dd>
    </dl>
    <ol class="timeline" aria-label=${word("history")}>
      ${events.map(
        (each) => html`<li key=${each.version}>
          <time>${moment(each.atMs)}</time>
          <${State} of=${each.state} />
          <span>${person(each.actor)}</span>
          ${each.reason && html`<q>${each.reason}</q>`}
          ${each.fence && html`<small>${word("fence")} ${each.fence.generation}.${each.fence.token}</small>`}
        </li>`,
      )}
    </ol>
  `;
}

export function Payments() {
  useTopics("looks");
  const [payments, setPayments] = useState([]);
  const read = async () => setPayments((await call("GET", "/v1/payments?pageSize=50")).body.payments);
  useEffect(() => {
    read().catch(() => {});
    let soon = 0;
    const ended = listen((name) => {
      if (name !== "payments" && name !== "lost") return;
      soon ||= setTimeout(() => {
        soon = 0;
        read().catch(() => {});
      }, 300);
    });
    return () => {
      clearTimeout(soon);
      ended();
    };
  }, []);
  return html`<${Table}
    caption=${word("payment")}
    columns=${["payment", "stateOf", "amountOf", "source", "clerk", "changedAt"].map((each) => word(each))}
    rows=${payments.map((each) => [
      html`<a href="#/payments/${each.paymentId}"><code>${each.paymentId}</code></a>`,
      html`<${State} of=${each.state} />`,
      money(each.amount),
      short(each.source),
      person(each.clerk),
      moment(each.updatedAtMs),
    ])}
  />`;
}
