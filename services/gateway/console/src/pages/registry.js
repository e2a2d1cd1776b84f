// The services and their instances, as they are registered in ZooKeeper.

import { useEffect } from "preact/hooks";

import { listen } from "../events.js";
import { changed, state, useTopics } from "../state.js";
import { html, Table } from "../view.js";
import { moment, word } from "../words.js";

const services = new Map();

listen((name, data) => {
  if (name !== "registry") return;
  for (const each of data.registry) services.set(each.service, each);
  changed("registry");
});

export function Registry() {
  useTopics("registry", "looks", "online");
  useEffect(() => {}, [state.online]);
  return [...services.values()].map(
    (service) => html`<${Table}
      key=${service.service}
      caption=${`${service.service} · ${service.state}`}
      columns=${["instance", "address", "weight", "stateOf", "changedAt"].map((each) => word(each))}
      rows=${service.instances.map((each) => [
        html`<code>${each.instance}</code>`,
        html`<code>${each.address}</code>`,
        each.weight,
        html`<span class="state ${each.online ? "paid" : "declined"}">${word(each.online ? "online" : "offline")}</span>`,
        moment(each.since),
      ])}
    />`,
  );
}
