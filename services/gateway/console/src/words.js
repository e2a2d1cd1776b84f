// The texts of the console, in English and Chinese.

import { state } from "./state.js";

const WORDS = {
  title: ["Countinghouse", "账房"],
  counter: ["Counter", "柜台"],
  orders: ["Orders", "订单"],
  payment: ["Payment", "支付"],
  ledger: ["Ledger", "总账"],
  requests: ["Requests", "请求"],
  registry: ["Registry", "注册中心"],
  skip: ["Skip to content", "跳到正文"],
  signIn: ["Sign in", "登录"],
  signOut: ["Sign out", "退出"],
  token: ["Token", "令牌"],
  tokenHelp: ["Paste what `countinghouse token` prints.", "粘贴 `countinghouse token` 的输出。"],
  pickClerk: ["Or act as one of these. This is the development profile.", "或以下列身份进入（开发环境）。"],
  away: ["The gateway is away. This page goes on by itself.", "网关暂时无法连接，恢复后页面会自动继续。"],
  dark: ["Dark", "深色"],
  light: ["Light", "浅色"],
  language: ["中文", "English"],
  cashier: ["cashier", "出纳"],
  accountant: ["accountant", "会计"],
  customer: ["customer", "顾客"],
  acquirer: ["Acquirer", "收单行"],
  auditor: ["auditor", "审计"],
  operator: ["operator", "运维"],
  service: ["service", "服务"],
  newOrder: ["New order", "新订单"],
  amount: ["Amount (CNY)", "金额（CNY）"],
  settle: ["Settle", "结账"],
  settleDrawer: ["Settle, cash drawer", "结账（现金）"],
  settleBank: ["Settle, bank account", "结账（银行）"],
  both: ["Press both", "同时按下"],
  pay: ["Pay by card", "刷卡支付"],
  payHelp: ["One ticket, however often it is pressed.", "一张门票，按多少次都只付一次。"],
  loseReply: ["Lose my reply", "丢失回复"],
  queue: ["Lock queue", "锁队列"],
  queueEmpty: ["No clerk waits for this order.", "没有人等待此订单。"],
  holds: ["holds", "持有"],
  waits: ["waits", "等待"],
  left: ["has left", "已离开"],
  fence: ["fence", "栅栏令牌"],
  lanes: ["What happened", "经过"],
  nothingYet: ["Nothing yet. Make an order.", "暂无记录，请先新建订单。"],
  settledBy: ["settled by", "结账人"],
  alreadyPaid: ["Already settled by {clerk} ({role}) at {at}.", "已由 {clerk}（{role}）于 {at} 结账。"],
  succeeded: ["Settled. Payment {payment}.", "已结账，支付 {payment}。"],
  replayed: ["replayed", "重放"],
  replayedHelp: ["This is the stored answer of an earlier request.", "这是先前请求的已存答复。"],
  noReply: ["No reply came. Press again: the same key gets the same answer.", "没有收到回复。再按一次：同一键得到同一答复。"],
  refused: ["Refused", "被拒绝"],
  inProgress: ["Under way …", "处理中……"],
  order: ["Order", "订单"],
  customerOf: ["Customer", "顾客"],
  stateOf: ["State", "状态"],
  amountOf: ["Amount", "金额"],
  version: ["Version", "版本"],
  changedAt: ["Changed", "更改时间"],
  clerk: ["Clerk", "经办人"],
  source: ["Source", "来源"],
  journals: ["Journals", "流水"],
  trialBalance: ["Trial balance", "试算平衡"],
  account: ["Account", "科目"],
  debit: ["Debit", "借"],
  credit: ["Credit", "贷"],
  balance: ["Balance", "余额"],
  balanced: ["The books balance.", "账目平衡。"],
  unbalanced: ["The books do not balance.", "账目不平衡。"],
  chain: ["Verify the chain", "校验哈希链"],
  chainIntact: ["{n} journals, unchanged.", "{n} 条流水，未被改动。"],
  chainBroken: ["Broken at {n}.", "在第 {n} 条断裂。"],
  history: ["History", "历史"],
  reason: ["Reason", "原因"],
  time: ["Time", "时间"],
  copy: ["Copy curl", "复制 curl"],
  copied: ["Copied", "已复制"],
  noRequests: ["No request yet.", "暂无请求。"],
  instance: ["Instance", "实例"],
  address: ["Address", "地址"],
  weight: ["Weight", "权重"],
  online: ["online", "在线"],
  offline: ["offline", "下线"],
  breakIt: ["Break it", "故障"],
  breakHelp: ["Kill or freeze a process in the middle of a payment, and look at the books. A killed one is started again.", "在支付过程中杀死或冻结进程，再核对账目。被杀死的进程会自动重启。"],
  processes: ["Processes", "进程"],
  kill: ["Kill", "杀死"],
  stop: ["Freeze", "冻结"],
  resume: ["Resume", "恢复"],
  running: ["running", "运行中"],
  stopped: ["frozen", "已冻结"],
  gone: ["gone", "已退出"],
  ratesHelp: ["Payments a second that came to each end, over the last two minutes.", "最近两分钟内每秒结束的支付数。"],
  silent: ["Make the acquirer silent", "让收单行沉默"],
  tour: ["Tour", "导览"],
  press: ["Press:", "操作："],
  watch: ["Watch:", "观察："],
  back: ["← Back", "← 上一幕"],
  forward: ["Next →", "下一幕 →"],
  books: ["Look at the books →", "查看账目 →"],
  doubleTitle: ["The double click", "重复点击"],
  doublePress: ["New order, then Pay by card ten times.", "新建订单，然后连续点击“刷卡支付”十次。"],
  doubleWatch: ["Every click has the same ticket. One charge is at the acquirer, and every answer is the same.", "每次点击都用同一张门票：收单行只扣款一次，每次答复相同。"],
  clerksTitle: ["Two clerks at one order", "两人同结一单"],
  clerksPress: ["New order, then Press both.", "新建订单，然后“同时按下”。"],
  clerksWatch: ["Both take a place in the queue of the order's lock. The second one reads who has settled it, and moves no money.", "两人都在订单锁前排队；后到者得知谁已结账，不会动款。"],
  replyTitle: ["The lost reply", "丢失的回复"],
  replyPress: ["New order, switch on Lose my reply, Settle. Switch it off and press Settle again.", "新建订单，打开“丢失回复”后结账；再关闭并重新结账。"],
  replyWatch: ["The order is paid although no reply came. The second press has the same key, and gets the stored answer.", "虽未收到回复，订单已付；再次点击用同一键，得到已存的答复。"],
  acquirerTitle: ["The silent acquirer", "沉默的收单行"],
  acquirerPress: ["New order, make the acquirer silent, Pay by card. Then let it speak again.", "新建订单，让收单行沉默，刷卡支付；然后恢复。"],
  acquirerWatch: ["The payment is UNKNOWN, and no outcome is assumed. When the acquirer answers, it is asked under the same key: charged once.", "支付状态为 UNKNOWN，不做猜测；收单行恢复后以同一键查询，只扣款一次。"],
  killedTitle: ["The process that dies", "进程中途死亡"],
  killedPress: ["New order, make the acquirer silent, Pay by card. On Break it, kill payment-1. Then resume the acquirer.", "新建订单，让收单行沉默，刷卡支付；在“故障”页杀死 payment-1，再恢复收单行。"],
  killedWatch: ["Another process finds the payment in the database and finishes it. There is one journal.", "另一进程从数据库中找到该支付并完成它；流水只有一条。"],
  copyCommand: ["Copy command", "复制命令"],
  takeOut: ["Take offline", "下线"],
  putBack: ["Put online", "上线"],
  halve: ["Halve the weight", "权重减半"],
  runs: ["Without a guard, and under chaos", "关闭防护与混沌运行"],
  runsHelp: ["Each run has a stack of its own and takes ten seconds or more; the checker reads its books at the end. Switch a guard off to see what it stops.", "每次运行都使用独立的一套服务，需十秒以上；结束后由检查器核对账目。关闭某个防护，看它防住了什么。"],
  guards: ["Guards", "防护"],
  act: ["Act", "场景"],
  runAct: ["Run the act", "运行场景"],
  seed: ["Seed", "种子"],
  random: ["random", "随机"],
  minutes: ["Minutes", "分钟"],
  runChaos: ["Run chaos", "运行混沌"],
  pastRuns: ["Runs", "运行记录"],
  command: ["Command", "命令"],
  verdict: ["Verdict", "结论"],
  found: ["What the checker found", "检查器的发现"],
  report: ["Its page", "报告页"],
  frozenTitle: ["The holder that is frozen", "被冻结的持锁进程"],
  frozenPress: ["New order, make the acquirer silent, Pay by card. On Break it, stop payment-1, and resume it after half a minute. Let the acquirer speak again.", "新建订单，让收单行沉默，刷卡支付；在“故障”页冻结 payment-1，半分钟后恢复它，并恢复收单行。"],
  frozenWatch: ["The lock goes to another process with a higher fence. What the frozen one writes afterwards is refused. There is one journal.", "锁带着更高的栅栏号转到另一进程；被冻结的进程之后的写入被拒绝。流水只有一条。"],
  more: ["More", "更多"],
  none: ["none", "无"],
  noPeople: ["The counter acts as several people, so it needs the development profile (countinghouse up).", "柜台需以多人身份操作，仅限开发环境（countinghouse up）。"],
};

/** The text of a word in the chosen language, with `{names}` filled in. */
export function word(name, values = {}) {
  const [english, chinese] = WORDS[name] ?? [name, name];
  const text = state.language === "zh" ? chinese : english;
  return text.replace(/\{(\w+)\}/g, (_, key) => values[key] ?? "");
}

const times = new Intl.DateTimeFormat("en-GB", {
  hour: "2-digit",
  minute: "2-digit",
  second: "2-digit",
  fractionalSecondDigits: 3,
});

/** The time of day of Unix milliseconds. */
export function moment(ms) {
  const number = Number(ms);
  if (!number) return "";
  return times.format(new Date(number));
}

/** An amount as people write it. */
export function money(amount) {
  return amount ? `${amount.amount} ${amount.currencyCode}` : "";
}

/** Minor units as people write them: 1250 of CNY are 12.50, of JPY 1250. */
export function minor(units, currency) {
  const digits = new Intl.NumberFormat("en", { style: "currency", currency }).resolvedOptions().maximumFractionDigits;
  const text = String(units).replace("-", "").padStart(digits + 1, "0");
  const whole = text.slice(0, text.length - digits);
  return (String(units).startsWith("-") ? "-" : "") + whole + (digits ? "." + text.slice(-digits) : "");
}

/** The name of an enum's value without its type: ORDER_STATE_PAID is PAID. */
export function short(value) {
  return String(value ?? "").replace(/^(ORDER|PAYMENT|TICKET)_STATE_|^SOURCE_|^ROLE_|^ACCOUNT_KIND_/, "");
}

/** A person with their role. */
export function person(clerk) {
  if (!clerk?.name) return "";
  const role = short(clerk.role).toLowerCase();
  return `${clerk.name} (${word(role)})`;
}
