// Runs with a stack of their own: an act of the demo without some guards, and chaos runs. The checker's verdict is shown.

import { useEffect, useState } from "preact/hooks";

import { call } from "./api.js";
import { html, Table } from "./view.js";
import { moment, word } from "./words.js";

const OPERATOR = "operator:ops";
const LOOK_MS = 1_000;
const COLOURS = { ok: "paid", violated: "declined", failed: "declined", running: "paying", unknown: "unknown" };

export function Runs() {
  const [found, setFound] = useState({ runs: [], acts: [], guards: [] });
  const [off, setOff] = useState(["ticket"]);
  const [problem, setProblem] = useState("");
  const show = async (body) => {
    try {
      const options = { as: OPERATOR, quiet: body === undefined };
      setFound((await call(body ? "POST" : "GET", "/dev/runs", body ? { ...options, body } : options)).body);
      if (body) setProblem("");
    } catch (error) {
      if (body) setProblem(error.message);
    }
  };
  useEffect(() => {
    show();
    const looking = setInterval(show, LOOK_MS);
    return () => clearInterval(looking);
  }, []);
  const begin = (event, kind) => {
    event.preventDefault();
    const form = new FormData(event.currentTarget);
    const given = kind === "demo" ? { act: form.get("act") } : { minutes: Number(form.get("minutes")) };
    if (form.get("seed")) given.seed = Number(form.get("seed"));
    show({ kind, guardsOff: off, ...given });
  };
  const flip = (name) => setOff((before) => (before.includes(name) ? before.filter((each) => each !== name) : [...before, name]));
  const underWay = found.runs[0]?.state === "running";
  return html`
    <section class="runs" aria-label=${word("runs")}>
      <h2>${word("runs")}</h2>
      <p>${word("runsHelp")}</p>
      <fieldset>
        <legend>${word("guards")}</legend>
        ${found.guards.map(
          (name) => html`<label class="switch" key=${name}>
            <input type="checkbox" role="switch" checked=${!off.includes(name)} onChange=${() => flip(name)} /> ${name}
          </label>`,
        )}
      </fieldset>
      <form onSubmit=${(event) => begin(event, "demo")}>
        <label>${word("act")} <select name="act">${found.acts.map((name) => html`<option key=${name}>${name}</option>`)}</select></label>
        <button disabled=${underWay || !found.acts.length}>${word("runAct")}</button>
      </form>
      <form onSubmit=${(event) => begin(event, "chaos")}>
        <label>${word("seed")} <input name="seed" inputmode="numeric" pattern="[0-9]{1,9}" size="10" placeholder=${word("random")} /></label>
        <label>${word("minutes")} <input name="minutes" inputmode="decimal" value="0.5" size="4" required /></label>
        <button disabled=${underWay || !found.acts.length}>${word("runChaos")}</button>
      </form>
      ${problem && html`<p class="notice" role="alert">${problem}</p>`}
      <${Table}
        caption=${word("pastRuns")}
        columns=${[word("time"), word("command"), word("verdict"), word("found")]}
        rows=${found.runs.map((each) => [
          moment(each.begunAtMs),
          html`<code>${each.command}</code>`,
          html`<span class="state ${COLOURS[each.state] ?? ""}">${each.state}</span>`,
          html`${(each.violations ?? []).map((violation) => html`<p class="violation" key=${violation}>${violation}</p>`)}
            ${each.detail}${each.report && html` <a href=${`/dev/runs/${each.id}/report`} target="_blank">${word("report")}</a>`}`,
        ])}
      />
    </section>
  `;
}
