// A consumer of Countinghouse written with npm's @apachedubbo/dubbo: makes an order, pays with a ticket twice, settles.
//
//     node consumer.js DESCRIPTORS ORDER_ADDRESS PAYMENT_ADDRESS LEDGER_ADDRESS
//
// It speaks Dubbo's protocol and knows no registry: whoever starts it has looked the addresses up in ZooKeeper. Says
// what it was answered as lines of `name value`, to be compared with the books.

import { createPromiseClient, DubboError, Code } from "@apachedubbo/dubbo";
import { createGrpcTransport } from "@apachedubbo/dubbo-node";
import { createRegistryFromDescriptors } from "@bufbuild/protobuf";
import { randomUUID } from "node:crypto";
import { readFileSync } from "node:fs";

const [descriptors, orderAddress, paymentAddress, ledgerAddress] = process.argv.slice(2);
const protos = createRegistryFromDescriptors(readFileSync(descriptors));
const SOURCE_DRAWER = 2;
const AMOUNT = { minorUnits: 1250n, currencyCode: "CNY" };

function client(service, address) {
  const withToken = (next) => (request) => {
    request.header.set("authorization", `Bearer ${process.env.INTEROP_TOKEN}`);
    return next(request);
  };
  const transport = createGrpcTransport({ baseUrl: `http://${address}`, httpVersion: "2", interceptors: [withToken] });
  return createPromiseClient(protos.findService(service), transport);
}

function say(name, value) {
  console.log(`${name} ${value}`);
}

// Method 1: a ticket, and the same Pay twice, as after a lost reply.
async function payTwice(payments) {
  const { ticket } = await payments.issueTicket({ requestId: randomUUID() });
  say("ticket", ticket.ticketId);
  const request = {
    ticketId: ticket.ticketId, source: SOURCE_DRAWER, amount: AMOUNT, payeeAccountId: "sales:CNY",
  };
  for (let time = 0; time < 2; time++) {
    say("paid", (await payments.pay(request)).payment.paymentId);
  }
}

// Method 2: a request id of the caller's own. The second clerk is refused.
async function settle(payments, orderId) {
  const request = () => ({ requestId: randomUUID(), orderId, source: SOURCE_DRAWER });
  say("settled", (await payments.settle(request())).payment.paymentId);
  try {
    await payments.settle(request());
  } catch (error) {
    const refused = DubboError.from(error);
    say("refused", `${Code[refused.code]} ${refused.metadata.get("x-reason")}`);
  }
}

const orders = client("countinghouse.order.v1.OrderService", orderAddress);
const payments = client("countinghouse.payment.v1.PaymentService", paymentAddress);
const ledger = client("countinghouse.ledger.v1.LedgerService", ledgerAddress);

await payTwice(payments);
const { order } = await orders.createOrder({ requestId: randomUUID(), customerId: "mei", amount: AMOUNT });
say("order", order.orderId);
await settle(payments, order.orderId);
const states = protos.findEnum("countinghouse.order.v1.OrderState");
say("state", states.findNumber((await orders.getOrder({ orderId: order.orderId })).order.state).name);
say("journal", (await ledger.getJournal({ businessKey: `settle:${order.orderId}:1` })).journal.journalId);
say("balanced", (await ledger.trialBalance({})).balanced);
process.exit(0);
