package countinghouse.interop;

import countinghouse.ledger.v1.GetJournalRequest;
import countinghouse.ledger.v1.Journal;
import countinghouse.ledger.v1.LedgerService;
import countinghouse.ledger.v1.TrialBalanceRequest;
import countinghouse.order.v1.CreateOrderRequest;
import countinghouse.order.v1.GetOrderRequest;
import countinghouse.order.v1.Order;
import countinghouse.order.v1.OrderService;
import countinghouse.payment.v1.IssueTicketRequest;
import countinghouse.payment.v1.PayRequest;
import countinghouse.payment.v1.PaymentService;
import countinghouse.payment.v1.SettleRequest;
import countinghouse.payment.v1.Source;
import countinghouse.type.v1.Money;
import java.util.Map;
import java.util.UUID;
import org.apache.dubbo.rpc.RpcContext;

/**
 * An order made, paid for with a ticket twice and settled, from Java. Says what it was answered as lines of
 * {@code name value}; whoever started it compares them with the books.
 */
public final class Consumer {
    private static final Money AMOUNT =
            Money.newBuilder().setMinorUnits(1250).setCurrencyCode("CNY").build();

    public static void main(String[] arguments) {
        Countinghouse countinghouse = new Countinghouse(Map.of());
        String order = order(countinghouse.orders());
        PaymentService payments = countinghouse.payments();
        payTwice(payments);
        say("settled", settle(payments, order));
        try {
            settle(payments, order);
        } catch (Refused refused) {
            say("refused", refused.code + " " + refused.reason);
        }
        say("state", countinghouse.orders().GetOrder(GetOrderRequest.newBuilder().setOrderId(order).build())
                .getOrder().getState());
        read(countinghouse.ledger(), order);
        System.exit(0);
    }

    private static String order(OrderService orders) {
        CreateOrderRequest request = CreateOrderRequest.newBuilder()
                .setRequestId(newId())
                .setCustomerId("mei")
                .setAmount(AMOUNT)
                .build();
        Order order = orders.CreateOrder(request).getOrder();
        say("order", order.getOrderId());
        return order.getOrderId();
    }

    /** Method 1: a ticket, and the same Pay twice, as after a lost reply. */
    private static void payTwice(PaymentService payments) {
        String ticket = payments.IssueTicket(IssueTicketRequest.newBuilder().setRequestId(newId()).build())
                .getTicket()
                .getTicketId();
        say("ticket", ticket);
        PayRequest request = PayRequest.newBuilder()
                .setTicketId(ticket)
                .setSource(Source.SOURCE_DRAWER)
                .setAmount(AMOUNT)
                .setPayeeAccountId("sales:CNY")
                .build();
        say("paid", payments.Pay(request).getPayment().getPaymentId());
        say("paid", payments.Pay(request).getPayment().getPaymentId());
        say("replayed", RpcContext.getClientResponseContext().getAttachment("x-replayed"));
    }

    /** Method 2: a request id of the caller's own. */
    private static String settle(PaymentService payments, String order) {
        SettleRequest request = SettleRequest.newBuilder()
                .setRequestId(newId())
                .setOrderId(order)
                .setSource(Source.SOURCE_DRAWER)
                .build();
        return payments.Settle(request).getPayment().getPaymentId();
    }

    private static void read(LedgerService ledger, String order) {
        GetJournalRequest request =
                GetJournalRequest.newBuilder().setBusinessKey("settle:" + order + ":1").build();
        Journal journal = ledger.GetJournal(request).getJournal();
        say("journal", journal.getJournalId());
        say("balanced", ledger.TrialBalance(TrialBalanceRequest.getDefaultInstance()).getBalanced());
    }

    private static String newId() {
        return UUID.randomUUID().toString();
    }

    private static void say(String name, Object value) {
        System.out.println(name + " " + value);
    }

    private Consumer() {}
}
