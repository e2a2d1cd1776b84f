// The services and their instances, as they are registered in ZooKeeper.

import { useEffect, useState } from "preact/hooks";

import { call } from "../api.js";
import { listen } from "../events.js";
import { changed, state, useTopics } from "../state.js";
import { html, Table } from "../view.js";
import { moment, word } from "../words.js";

const OPERATOR = "operator:ops";
const services = new Map();

listen((name, data) => {
  if (name !== "registry") return;
  for (const each of data.registry) services.set(each.service, each);
  changed("registry");
});

export function Registry() {
  useTopics("registry", "looks", "online");
  useEffect(() => {}, [state.online]);
  const [problem, setProblem] = useState("");
  const mayChange = state.people.some((each) => `${each.role}:${each.name}` === OPERATOR);
  const change = async (instance, action, body) => {
    try {
      await call("POST", `/dev/registry/${instance}:${action}`, { as: OPERATOR, body });
      setProblem("");
    } catch (error) {
      setProblem(error.message);
    }
  };
  const buttons = (each) =>
    mayChange &&
    html`<span class="buttons">
      <button class="quiet" aria-label=${`${word(each.online ? "takeOut" : "putBack")} ${each.instance}`} onClick=${() => change(each.instance, each.online ? "offline" : "online")}>
        ${word(each.online ? "takeOut" : "putBack")}
      </button>
      <button class="quiet" aria-label=${`${word("halve")} ${each.instance}`} disabled=${each.weight < 2} onClick=${() => change(each.instance, "weight", { weight: Math.floor(each.weight / 2) })}>
        ${word("halve")}
      </button>
      <button class="quiet" aria-label=${`100 ${each.instance}`} disabled=${each.weight === 100} onClick=${() => change(each.instance, "weight", { weight: 100 })}>100</button>
    </span>`;
  return [
    problem && html`<p class="notice" role="alert">${problem}</p>`,
    ...[...services.values()].map(
    (service) => html`<${Table}
      key=${service.service}
      caption=${`${service.service} · ${service.state}`}
      columns=${[...["instance", "address", "weight", "stateOf", "changedAt"].map((each) => word(each)), ""]}
      rows=${service.instances.map((each) => [
        html`<code>${each.instance}</code>`,
        html`<code>${each.address}</code>`,
        each.weight,
        html`<span class="state ${each.online ? "paid" : "declined"}">${word(each.online ? "online" : "offline")}</span>`,
        moment(each.since),
        buttons(each),
      ])}
    />`,
    ),
  ];
}
