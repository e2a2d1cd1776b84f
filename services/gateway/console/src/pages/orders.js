// The orders, the newest first; and the history of one.

import { useEffect, useState } from "preact/hooks";

import { call } from "../api.js";
import { listen } from "../events.js";
import { useTopics } from "../state.js";
import { html, State, Table } from "../view.js";
import { moment, money, person, short, word } from "../words.js";

const PAGE = 50;
const SHOWN = 500;

export function Orders() {
  useTopics("looks");
  const [orders, setOrders] = useState([]);
  const [next, setNext] = useState("");
  const read = async (token = "") => {
    const { body } = await call("GET", `/v1/orders?pageSize=${PAGE}${token && `&pageToken=${encodeURIComponent(token)}`}`);
    setOrders((before) => (token ? [...before, ...body.orders] : body.orders).slice(0, SHOWN));
    setNext(body.nextPageToken);
  };
  useEffect(() => {
    read().catch(() => {});
    return listen((name, data) => {
      if (name === "lost") read().catch(() => {});
      if (name === "orders") setOrders((before) => merged(before, data.orders));
    });
  }, []);
  return html`
    <${Table}
      caption=${word("orders")}
      columns=${["order", "stateOf", "amountOf", "customerOf", "settledBy", "changedAt"].map((each) => word(each))}
      rows=${orders.map((each) => [
        html`<a href="#/orders/${each.orderId}"><code>${each.orderId}</code></a>`,
        html`<${State} of=${each.state} />`,
        money(each.amount),
        each.customerId,
        person(each.settledBy),
        moment(each.updatedAtMs),
      ])}
    />
    ${next && orders.length < SHOWN && html`<button onClick=${() => read(next)}>${word("more")}</button>`}
  `;
}

export function OrderHistory({ id }) {
  useTopics("looks");
  const [events, setEvents] = useState([]);
  const [payments, setPayments] = useState([]);
  const [problem, setProblem] = useState("");
  const read = async () => {
    try {
      setEvents((await call("GET", `/v1/orders/${encodeURIComponent(id)}/history?pageSize=200`)).body.events);
      setPayments((await call("GET", `/v1/payments?orderId=${encodeURIComponent(id)}&pageSize=100`)).body.payments);
      setProblem("");
    } catch (error) {
      setProblem(error.message);
    }
  };
  useEffect(() => {
    read();
    return listen((name, data) => {
      const about = name === "orders" ? data.orders : name === "payments" ? data.payments : [];
      if (name === "lost" || about.some((each) => each.orderId === id)) read();
    });
  }, [id]);
  if (problem) return html`<p class="notice" role="alert">${problem}</p>`;
  return html`
    <h2><code>${id}</code></h2>
    <${Table}
      caption=${word("history")}
      columns=${["time", "stateOf", "clerk", "payment", "reason", "fence"].map((each) => word(each))}
      rows=${events.map((each) => [
        moment(each.atMs),
        html`<${State} of=${each.toState} />`,
        person(each.actor),
        each.paymentId && html`<a href="#/payments/${each.paymentId}"><code>${each.paymentId}</code></a>`,
        each.reason,
        each.fence ? `${each.fence.generation}.${each.fence.token}` : "",
      ])}
    />
    <${Table}
      caption=${word("payment")}
      columns=${["payment", "stateOf", "source", "clerk", "reason"].map((each) => word(each))}
      rows=${payments.map((each) => [
        html`<a href="#/payments/${each.paymentId}"><code>${each.paymentId}</code></a>`,
        html`<${State} of=${each.state} />`,
        short(each.source),
        person(each.clerk),
        each.declineReason || each.attention,
      ])}
    />
  `;
}

function merged(before, changes) {
  const found = new Map(before.map((each) => [each.orderId, each]));
  const fresh = [];
  for (const each of changes) {
    const known = found.get(each.orderId);
    if (!known && !fresh.some((one) => one.orderId === each.orderId)) fresh.unshift(each);
    if (!known || Number(each.version) >= Number(known.version)) found.set(each.orderId, each);
  }
  return [...fresh, ...before].map((each) => found.get(each.orderId)).slice(0, SHOWN);
}
