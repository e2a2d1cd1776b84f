package countinghouse.ledger.v1;

/** Countinghouse's ledger; see {@link countinghouse.order.v1.OrderService} about the names. */
public interface LedgerService {
    GetJournalResponse GetJournal(GetJournalRequest request);

    TrialBalanceResponse TrialBalance(TrialBalanceRequest request);
}
