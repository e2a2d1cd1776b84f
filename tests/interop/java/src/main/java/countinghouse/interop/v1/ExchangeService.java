package countinghouse.interop.v1;

import countinghouse.type.v1.Money;

/** What the providers of this test provide: eight of any currency for one EUR; anything else is refused. */
public interface ExchangeService {
    Money Convert(Money given);
}
