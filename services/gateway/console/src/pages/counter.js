// The counter: two clerks and a customer at one order, the queue of its lock, and what happens meanwhile.

import { useEffect, useRef, useState } from "preact/hooks";

import { call, newKey } from "../api.js";
import { listen } from "../events.js";
import { state, useTopics } from "../state.js";
import { html, Outcome, outcomeOf, State } from "../view.js";
import { act as actOn } from "./break.js";
import { moment, money, person, short, word } from "../words.js";

const CASHIER = "cashier:li";
const ACCOUNTANT = "accountant:wang";
const CUSTOMER = "customer:mei";
const CARD = "tok-mei";
const ACQUIRER = "acquirer-1";
const LANES = ["clerk", "payment", "order", "ledger", "acquirer"];

export function Counter() {
  useTopics("session", "looks");
  const desk = useDesk();
  const needed = [CASHIER, ACCOUNTANT, CUSTOMER];
  const there = new Set(state.people.map((each) => `${each.role}:${each.name}`));
  if (!needed.every((each) => there.has(each))) return html`<p class="notice">${word("noPeople")}</p>`;
  const { order } = desk;
  return html`
    <section class="bar" aria-label=${word("order")}>
      <form onSubmit=${desk.make}>
        <label>${word("amount")} <input name="amount" value="12.50" inputmode="decimal" size="8" required /></label>
        <button>${word("newOrder")}</button>
      </form>
      ${order && html`<p class="order"><code>${order.orderId}</code> ${money(order.amount)} <${State} of=${order.state} /></p>`}
      <label class="switch"><input type="checkbox" checked=${desk.unheard} onChange=${desk.toggleUnheard} /> ${word("loseReply")}</label>
      <label class="switch"><input type="checkbox" checked=${desk.silent} onChange=${desk.toggleSilent} /> ${word("silent")}</label>
    </section>
    <div class="counter">
      <${Clerk} who=${CASHIER} name=${word("settleDrawer")} outcome=${desk.outcomes[CASHIER]} press=${() => desk.settle(CASHIER)} order=${order} />
      <section class="middle">
        <button class="both" disabled=${!order} onClick=${desk.both}>${word("both")}</button>
        <${Queue} tickets=${desk.tickets} />
      </section>
      <${Clerk} who=${ACCOUNTANT} name=${word("settleBank")} outcome=${desk.outcomes[ACCOUNTANT]} press=${() => desk.settle(ACCOUNTANT)} order=${order} />
    </div>
    <section class="customer" aria-label=${word("customer")}>
      <button disabled=${!order} onClick=${desk.pay}>${word("pay")}</button> <small>${word("payHelp")}</small>
      <${Outcome} of=${desk.outcomes[CUSTOMER]} />
    </section>
    <${Lanes} steps=${desk.steps} />
  `;
}

function Clerk({ who, name, outcome, press, order }) {
  const [role, person_] = who.split(":");
  return html`<section class="clerk" aria-label=${`${person_} (${word(role)})`}>
    <h2>${person_} <small>${word(role)}</small></h2>
    <button disabled=${!order} onClick=${press}>${name}</button>
    <${Outcome} of=${outcome} />
  </section>`;
}

function Queue({ tickets }) {
  return html`<section class="queue" aria-label=${word("queue")}>
    <h2>${word("queue")}</h2>
    ${tickets.length === 0 && html`<p class="empty">${word("queueEmpty")}</p>`}
    <ol>
      ${tickets.map(
        (each) => html`<li key=${each.token} class="ticket ${each.now}">
          <strong>${each.clerk}</strong> <small>${word(each.role)}</small>
          <span>${word(each.now)}${each.waitedMs ? ` · ${each.waitedMs} ms` : ""}</span>
          <span>${word("fence")} ${each.token}</span>
        </li>`,
      )}
    </ol>
  </section>`;
}

function Lanes({ steps }) {
  return html`<section class="lanes" aria-label=${word("lanes")}>
    <h2>${word("lanes")}</h2>
    ${steps.length === 0 && html`<p class="empty">${word("nothingYet")}</p>`}
    ${steps.length > 0 &&
    html`<div class="scroll" tabindex="0" role="region" aria-label=${word("lanes")}>
      <table>
        <thead><tr><th scope="col">${word("time")}</th>${LANES.map((lane) => html`<th scope="col">${word(lane)}</th>`)}</tr></thead>
        <tbody>
          ${steps.map(
            (step) => html`<tr key=${step.id}>
              <td>${moment(step.at)}</td>
              ${LANES.map((lane) => html`<td>${lane === step.lane && html`<span class="step ${step.kind}">${step.text}</span>`}</td>`)}
            </tr>`,
          )}
        </tbody>
      </table>
    </div>`}
  </section>`;
}

/** What is on the counter, and what the buttons do. */
function useDesk() {
  const [order, setOrder] = useState(null);
  const [outcomes, setOutcomes] = useState({});
  const [tickets, setTickets] = useState([]);
  const [steps, setSteps] = useState([]);
  const [unheard, setUnheard] = useState(false);
  const [silent, setSilent] = useState(false);
  const keys = useRef({});
  const orderId = order?.orderId;

  const add = (lane, kind, text, at = Date.now(), id = `${lane}-${at}-${text}`) =>
    setSteps((before) => (before.some((each) => each.id === id) ? before : inTime([...before, { id, lane, kind, text, at }])));
  const say = (who, outcome) => setOutcomes((before) => ({ ...before, [who]: outcome }));

  useEffect(() => {
    if (!orderId) return undefined;
    return listen((name, data) => {
      if (name === "orders") {
        for (const each of data.orders.filter((one) => one.orderId === orderId)) {
          setOrder((before) => (Number(each.version) >= Number(before.version) ? each : before));
          const by = each.settledBy ? ` ${person(each.settledBy)}` : "";
          add("order", "order", short(each.state) + by, Number(each.updatedAtMs), `o-${each.version}`);
        }
      } else if (name === "payments") {
        for (const each of data.payments.filter((one) => one.orderId === orderId)) {
          const by = person(each.clerk);
          const at = Number(each.updatedAtMs);
          add("payment", short(each.state).toLowerCase(), `${short(each.state)} · ${by}`, at, `p-${each.paymentId}-${each.version}`);
          if (each.journalId) add("ledger", "journal", each.journalId, at, `j-${each.journalId}`);
          if (each.acquirerKey) add("acquirer", "charge", each.acquirerKey, at, `a-${each.acquirerKey}`);
        }
      } else if (name === "locks") {
        for (const each of data.locks.filter((one) => one.orderId === orderId)) setTickets((before) => queued(before, each.queue));
      }
    });
  }, [orderId]);

  const act = async (who, request, said) => {
    say(who, { kind: "pending", text: word("inProgress") });
    add("clerk", "press", who.split(":")[1], Date.now(), `c-${who}-${performance.now()}`);
    say(who, await outcomeOf(request, said));
  };
  const keyOf = (who) => (keys.current[who] ??= newKey());
  const paid = (body) => word("succeeded", { payment: body.payment.paymentId });
  const settle = (who) =>
    act(
      who,
      () =>
        call("POST", `/v1/orders/${orderId}:settle`, {
          as: who,
          key: keyOf(who),
          unheard,
          body: { source: who === CASHIER ? "SOURCE_DRAWER" : "SOURCE_BANK" },
        }),
      paid,
    );
  const ticketOf = async () => {
    keys.current.ticket ??= (async () => {
      const issued = await call("POST", "/v1/tickets", { as: CUSTOMER, key: newKey(), body: { orderId } });
      return issued.body.ticket.ticketId;
    })();
    return keys.current.ticket;
  };

  return {
    order,
    outcomes,
    tickets,
    steps,
    unheard,
    silent,
    toggleSilent: async () => {
      const wanted = !silent;
      setSilent(wanted);
      await actOn(ACQUIRER, wanted ? "stop" : "resume").catch(() => setSilent(!wanted));
    },
    toggleUnheard: () => setUnheard(!unheard),
    make: async (event) => {
      event.preventDefault();
      const amount = { amount: event.target.amount.value.trim(), currencyCode: "CNY" };
      const body = { customerId: "mei", amount };
      keys.current = {};
      setOutcomes({});
      setTickets([]);
      setSteps([]);
      const made = await outcomeOf(() => call("POST", "/v1/orders", { as: CASHIER, key: newKey(), body }), () => "");
      if (made.body) setOrder(made.body.order);
      else say(CASHIER, made);
    },
    settle,
    both: () => Promise.all([settle(CASHIER), settle(ACCOUNTANT)]),
    pay: () =>
      act(
        CUSTOMER,
        async () => {
          const ticket = await ticketOf();
          const body = { source: "SOURCE_CARD", card: CARD };
          return call("POST", `/v1/tickets/${ticket}:pay`, { as: CUSTOMER, unheard, body });
        },
        paid,
      ),
  };
}

/** The tickets that were seen, after the queue has changed. */
function queued(before, queue) {
  const now = new Map(queue.map((each) => [each.token, each]));
  const kept = before.map((each) => {
    const found = now.get(each.token);
    now.delete(each.token);
    if (!found) return { ...each, now: "left" };
    const holds = Number(found.position) === 0;
    const waitedMs = holds && each.now === "waits" ? Date.now() - Number(each.sinceMs) : each.waitedMs;
    return { ...each, now: holds ? "holds" : "waits", waitedMs };
  });
  return [...kept, ...[...now.values()].map((each) => ({ ...each, now: Number(each.position) === 0 ? "holds" : "waits" }))];
}

/** By when it happened: what several instances tell comes in any order. */
function inTime(steps) {
  return steps.sort((one, other) => one.at - other.at);
}
