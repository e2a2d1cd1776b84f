package countinghouse.payment.v1;

/** Countinghouse's payment service; see {@link countinghouse.order.v1.OrderService} about the names. */
public interface PaymentService {
    IssueTicketResponse IssueTicket(IssueTicketRequest request);

    PayResponse Pay(PayRequest request);

    SettleResponse Settle(SettleRequest request);

    GetPaymentResponse GetPayment(GetPaymentRequest request);
}
