// The books: journals with their legs, the trial balance, the chain.

import { useEffect, useState } from "preact/hooks";

import { call } from "../api.js";
import { listen } from "../events.js";
import { useTopics } from "../state.js";
import { html, Table } from "../view.js";
import { minor, moment, person, word } from "../words.js";

export function Ledger() {
  useTopics("looks");
  const [journals, setJournals] = useState([]);
  const [trial, setTrial] = useState(null);
  const [chain, setChain] = useState("");
  const [problem, setProblem] = useState("");
  const read = async () => {
    try {
      setJournals((await call("GET", "/v1/journals?pageSize=20")).body.journals);
      setTrial((await call("GET", "/v1/trialBalance?pageSize=100")).body);
      setProblem("");
    } catch (error) {
      setProblem(error.message);
    }
  };
  useEffect(() => {
    read();
    let soon = 0;
    const ended = listen((name) => {
      if (name !== "payments" && name !== "lost") return;
      soon ||= setTimeout(() => {
        soon = 0;
        read();
      }, 500);
    });
    return () => {
      clearTimeout(soon);
      ended();
    };
  }, []);
  const verify = async () => {
    const { body } = await call("GET", "/v1/journals:verify");
    setChain(body.intact ? word("chainIntact", { n: body.examined }) : word("chainBroken", { n: body.firstBrokenSequence }));
  };
  if (problem) return html`<p class="notice" role="alert">${problem}</p>`;
  return html`
    <p class=${trial?.balanced === false ? "notice" : "good"} role="status">
      ${trial && word(trial.balanced ? "balanced" : "unbalanced")}
      <button onClick=${verify}>${word("chain")}</button> ${chain}
    </p>
    <${Table}
      caption=${word("trialBalance")}
      columns=${["account", "debit", "credit", "balance"].map((each) => word(each))}
      rows=${(trial?.rows ?? [])
        .filter((each) => each.debits !== "0" || each.credits !== "0")
        .map((each) => [
          html`<code>${each.accountId}</code>`,
          ...[each.exactDebits, each.exactCredits, each.balance].map((units) => minor(units, each.currencyCode)),
        ])}
    />
    <h2>${word("journals")}</h2>
    <ul class="journals">
      ${journals.map(
        (each) => html`<li key=${each.journalId}>
          <h3><code>${each.journalId}</code> <small>${moment(each.postedAtMs)} · ${person(each.postedBy)}</small></h3>
          <table class="t-account">
            <caption><code>${each.businessKey}</code></caption>
            <thead><tr><th scope="col">${word("debit")}</th><th scope="col">${word("credit")}</th></tr></thead>
            <tbody>
              ${each.postings.map((leg) => {
                const cell = html`<code>${leg.accountId}</code> ${minor(leg.amount.replace("-", ""), each.currencyCode)}`;
                return html`<tr><td>${leg.amount.startsWith("-") ? "" : cell}</td><td>${leg.amount.startsWith("-") ? cell : ""}</td></tr>`;
              })}
            </tbody>
          </table>
        </li>`,
      )}
    </ul>
  `;
}
