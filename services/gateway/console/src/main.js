// The console: the frame of its pages, and who is signed in.

import { render } from "preact";
import { useEffect, useState } from "preact/hooks";

import { call } from "./api.js";
import { follow } from "./events.js";
import { BreakIt } from "./pages/break.js";
import { Counter } from "./pages/counter.js";
import { Ledger } from "./pages/ledger.js";
import { OrderHistory, Orders } from "./pages/orders.js";
import { Payment, Payments } from "./pages/payment.js";
import { Registry } from "./pages/registry.js";
import { Requests } from "./pages/requests.js";
import { Tour } from "./pages/tour.js";
import { changed, choose, state, useTopics } from "./state.js";
import { html } from "./view.js";
import { word } from "./words.js";

const PAGES = { counter: Counter, orders: Orders, payments: Payments, ledger: Ledger, requests: Requests, registry: Registry, break: BreakIt, tour: Tour };
const NAMES = { payments: "payment", break: "breakIt" };

function App() {
  useTopics("session", "looks", "online");
  const [page, id] = usePlace();
  document.documentElement.dataset.theme = state.theme;
  document.documentElement.lang = state.language === "zh" ? "zh-CN" : "en";
  document.title = `${word(NAMES[page] ?? page)} · ${word("title")}`;
  if (state.caller === undefined) return html`<p class="empty">${word("inProgress")}</p>`;
  const Page = page === "orders" && id ? OrderHistory : page === "payments" && id ? Payment : (PAGES[page] ?? Counter);
  return html`
    <a class="skip" href="#content" onClick=${focusContent}>${word("skip")}</a>
    <header>
      <h1>${word("title")}</h1>
      <nav aria-label=${word("title")}>
        ${state.caller &&
        Object.keys(PAGES).map(
          (name) => html`<a href="#/${name}" aria-current=${name === page ? "page" : undefined}>${word(NAMES[name] ?? name)}</a>`,
        )}
      </nav>
      <div class="tools">
        <button class="quiet" onClick=${() => choose("theme", state.theme === "dark" ? "light" : "dark")}>
          ${word(state.theme === "dark" ? "light" : "dark")}
        </button>
        <button class="quiet" onClick=${() => choose("language", state.language === "zh" ? "en" : "zh")}>${word("language")}</button>
        ${state.caller && html`<span>${state.caller.name} <small>${word(state.caller.role)}</small></span>`}
        ${state.caller && html`<button class="quiet" onClick=${signOut}>${word("signOut")}</button>`}
      </div>
    </header>
    ${state.caller && !state.online && html`<p class="notice away" role="status">${word("away")}</p>`}
    <main id="content" tabindex="-1">${state.caller ? html`<${Page} key=${`${page}/${id}`} id=${id} />` : html`<${SignIn} />`}</main>
  `;
}

function SignIn() {
  const [problem, setProblem] = useState("");
  const enter = async (body) => {
    try {
      await call("POST", "/session", { body });
      await look();
    } catch (error) {
      setProblem(error.message);
    }
  };
  const send = (event) => {
    event.preventDefault();
    enter({ token: event.target.token.value.trim() });
  };
  return html`<section class="sign-in">
    <h2>${word("signIn")}</h2>
    <form onSubmit=${send}>
      <label>${word("token")} <input name="token" type="password" autocomplete="off" required /></label>
      <button>${word("signIn")}</button>
      <p><small>${word("tokenHelp")}</small></p>
    </form>
    ${state.people.length > 0 &&
    html`<p>${word("pickClerk")}</p>
      <ul class="people">
        ${state.people.map(
          (each) => html`<li><button onClick=${() => enter({ as: `${each.role}:${each.name}` })}>${each.name} <small>${word(each.role)}</small></button></li>`,
        )}
      </ul>`}
    ${problem && html`<p class="notice" role="alert">${problem}</p>`}
  </section>`;
}

/** The page and the id that the address names. */
function usePlace() {
  const [hash, setHash] = useState(location.hash);
  useEffect(() => {
    const moved = () => setHash(location.hash);
    addEventListener("hashchange", moved);
    return () => removeEventListener("hashchange", moved);
  }, []);
  const [page, id] = hash.replace(/^#\/?/, "").split("/");
  return [page || "counter", id ? decodeURIComponent(id) : ""];
}

function focusContent(event) {
  event.preventDefault();
  document.getElementById("content").focus();
}

async function signOut() {
  await call("DELETE", "/session");
  state.caller = null;
  changed("session");
}

let reading = false;

/** Find out who is signed in, and read the events for them. */
async function look() {
  const { body } = await call("GET", "/session");
  state.people = body.people;
  state.caller = body.caller;
  changed("session");
  if (state.caller && !reading) {
    reading = true;
    follow(() => !state.caller).finally(() => (reading = false));
  }
}

render(html`<${App} />`, document.getElementById("app"));
look().catch(() => {
  state.caller = null;
  changed("session");
});
