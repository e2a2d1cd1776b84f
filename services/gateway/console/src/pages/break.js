// Break it: kill, freeze and resume the processes of the stack, and see what becomes of the payments.

import { useEffect, useState } from "preact/hooks";

import { call } from "../api.js";
import { Rates } from "../rates.js";
import { Runs } from "../runs.js";
import { state, useTopics } from "../state.js";
import { html, Table } from "../view.js";
import { word } from "../words.js";

const OPERATOR = "operator:ops";
const LOOK_MS = 1_000;

/** Do something to a process; return how all of them are then. */
export async function act(name, action) {
  return (await call("POST", `/dev/processes/${name}:${action}`, { as: OPERATOR })).body.processes;
}

/** How the processes are. */
export async function processes() {
  return (await call("GET", "/dev/processes", { as: OPERATOR, quiet: true })).body.processes;
}

export function BreakIt() {
  useTopics("looks", "session");
  const [found, setFound] = useState([]);
  const [problem, setProblem] = useState("");
  const show = async (looking) => {
    try {
      setFound(await looking);
      setProblem("");
    } catch (error) {
      setProblem(error.message);
    }
  };
  const mayBreak = state.people.some((each) => `${each.role}:${each.name}` === OPERATOR);
  useEffect(() => {
    if (!mayBreak) return undefined;
    show(processes());
    const looking = setInterval(() => show(processes()), LOOK_MS);
    return () => clearInterval(looking);
  }, [mayBreak]);
  if (!mayBreak) return html`<p class="notice">${word("noPeople")}</p>`;
  const button = (each, action, possible) =>
    html`<button class="quiet" disabled=${!possible} onClick=${() => show(act(each.name, action))} aria-label=${`${word(action)} ${each.name}`}>
      ${word(action)}
    </button>`;
  return html`
    <p>${word("breakHelp")}</p>
    <${Rates} />
    ${problem && html`<p class="notice" role="alert">${problem}</p>`}
    <${Table}
      caption=${word("processes")}
      columns=${[word("instance"), "pid", word("stateOf"), ""]}
      rows=${found.map((each) => [
        html`<code>${each.name}</code>`,
        each.pid || "",
        html`<span class="state ${each.state === "running" ? "paid" : "declined"}">${word(each.state)}</span>`,
        html`<span class="buttons">
          ${button(each, "kill", each.state !== "gone")} ${button(each, "stop", each.state === "running")}
          ${button(each, "resume", each.state === "stopped")}
        </span>`,
      ])}
    />
    <${Runs} />
  `;
}
