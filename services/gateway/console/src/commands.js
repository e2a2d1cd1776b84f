// The command of countinghouse that repeats a request of the page.

/** By what the request looks like: its command, made of what is in the path and in the body. */
const COMMANDS = [
  [/^POST \/v1\/orders$/, (_, body) => ["order", "create", "--customer", body.customerId, "--amount", body.amount.amount, "--currency", body.amount.currencyCode]],
  [/^GET \/v1\/orders\/([^/:]+)$/, ([id]) => ["order", "get", id]],
  [/^GET \/v1\/orders\/([^/]+)\/history/, ([id]) => ["order", "history", id]],
  [/^GET \/v1\/orders(\?|$)/, () => ["order", "list"]],
  [/^POST \/v1\/orders\/([^/]+):settle$/, ([id], body) => ["settle", id, ...sourceOf(body)]],
  [/^POST \/v1\/orders\/([^/]+):cancel$/, ([id], body) => ["order", "cancel", id, "--reason", body.reason]],
  [/^POST \/v1\/tickets$/, (_, body) => ["ticket", "--order", body.orderId]],
  [/^POST \/v1\/tickets\/([^/]+):pay$/, ([id], body) => ["pay", id, ...sourceOf(body)]],
  [/^GET \/v1\/payments\/([^/:]+)$/, ([id]) => ["payment", "get", id]],
  [/^GET \/v1\/payments\/([^/]+)\/history/, ([id]) => ["payment", "history", id]],
  [/^GET \/v1\/payments(\?|$)/, () => ["payment", "list"]],
  [/^GET \/v1\/accounts\/([^/:]+)$/, () => ["ledger", "accounts"]],
  [/^GET \/v1\/journals(\?|$)/, () => ["ledger", "journals"]],
  [/^GET \/v1\/trialBalance/, () => ["ledger", "trial-balance"]],
  [/^GET \/v1\/journals:verify/, () => ["ledger", "verify"]],
  [/^POST \/dev\/registry\/([^:]+):(offline|online)$/, ([id, action]) => ["registry", action, id]],
  [/^POST \/dev\/registry\/([^:]+):weight$/, ([id], body) => ["registry", "weight", id, String(body.weight)]],
];

/** Return the command that repeats an entry of the log; empty: there is none. */
export function commandOf(entry) {
  for (const [pattern, made] of COMMANDS) {
    const found = `${entry.verb} ${entry.path}`.match(pattern);
    if (!found) continue;
    const ids = found.slice(1).map((each) => decodeURIComponent(each ?? ""));
    const words = ["countinghouse", ...made(ids, entry.body ?? {})];
    if (entry.key) words.push("--request-id", entry.key);
    if (entry.as) words.push("--as", entry.as);
    return words.map(quoted).join(" ");
  }
  return "";
}

function sourceOf(body) {
  const source = ["--source", String(body.source ?? "").replace("SOURCE_", "").toLowerCase()];
  return body.card ? [...source, "--card", body.card] : source;
}

function quoted(text) {
  return /^[\w@%+=:,./-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`;
}
