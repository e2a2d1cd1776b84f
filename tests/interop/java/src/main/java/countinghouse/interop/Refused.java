package countinghouse.interop;

/** Countinghouse refused, definitively or for now. */
public final class Refused extends RuntimeException {
    /** The gRPC code's name, such as ALREADY_EXISTS. */
    public final String code;
    /** The UPPER_SNAKE reason, such as ORDER_ALREADY_PAID. */
    public final String reason;

    Refused(String code, String reason, String message) {
        super(message);
        this.code = code;
        this.reason = reason;
    }
}
