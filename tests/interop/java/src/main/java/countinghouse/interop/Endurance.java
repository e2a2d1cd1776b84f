package countinghouse.interop;

import countinghouse.payment.v1.GetPaymentRequest;
import countinghouse.payment.v1.PaymentService;
import java.io.BufferedReader;
import java.io.IOException;
import java.io.InputStreamReader;
import java.util.Map;
import java.util.Set;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.atomic.AtomicInteger;
import java.util.concurrent.locks.LockSupport;
import java.util.logging.Handler;
import java.util.logging.Level;
import java.util.logging.LogRecord;
import java.util.logging.Logger;
import org.apache.dubbo.rpc.RpcContext;

/**
 * A consumer that stays: idles, and keeps calling while instances are restarted.
 *
 * <p>Obeys lines on its standard input: {@code frames} says how many pings it sent and how many GOAWAY it got,
 * {@code begin} starts to call again and again, {@code end} stops that and says how many calls there were and how many of
 * them failed. Unasked it says each address by which it is served for the first time. Ends with its input.
 */
public final class Endurance {
    private static final long PAUSE_NS = 2_000_000;
    private static final String PING_AFTER_MS = "1000"; // of silence; Dubbo's default is a minute

    private final PaymentService payments;
    private final GetPaymentRequest request;
    private final Set<String> addresses = ConcurrentHashMap.newKeySet();
    private final AtomicInteger calls = new AtomicInteger();
    private final AtomicInteger failures = new AtomicInteger();
    private volatile boolean calling;

    private Endurance(PaymentService payments, String payment) {
        this.payments = payments;
        this.request = GetPaymentRequest.newBuilder().setPaymentId(payment).build();
    }

    public static void main(String[] arguments) throws Exception {
        Frames frames = Frames.watched();
        PaymentService payments = new Countinghouse(Map.of("heartbeat", PING_AFTER_MS)).payments();
        Endurance endurance = new Endurance(payments, arguments[0]);
        endurance.call();
        endurance.obey(new BufferedReader(new InputStreamReader(System.in)), frames);
        System.exit(0);
    }

    private void obey(BufferedReader lines, Frames frames) throws IOException, InterruptedException {
        Thread caller = null;
        for (String line = lines.readLine(); line != null; line = lines.readLine()) {
            switch (line) {
                case "frames" -> say("frames " + frames.pings + " " + frames.goAways);
                case "begin" -> {
                    calling = true;
                    caller = new Thread(this::callOn);
                    caller.start();
                }
                case "end" -> {
                    calling = false;
                    caller.join();
                    say("ended " + calls + " " + failures);
                }
                default -> throw new IllegalArgumentException(line);
            }
        }
    }

    private void callOn() {
        while (calling) {
            try {
                call();
            } catch (RuntimeException error) {
                failures.incrementAndGet();
                System.err.println("failed: " + error);
            }
            LockSupport.parkNanos(PAUSE_NS);
        }
    }

    private void call() {
        calls.incrementAndGet();
        payments.GetPayment(request);
        String address = RpcContext.getClientResponseContext().getAttachment(CountinghouseFilter.SERVED_BY);
        if (addresses.add(address)) {
            say("address " + address);
        }
    }

    private static void say(String line) {
        System.out.println(line);
    }

    /** What Dubbo's HTTP/2 client logs of its frames, counted. */
    private static final class Frames extends Handler {
        // Loggers are kept by weak references only.
        private static final Logger LOG = Logger.getLogger("H2_CLIENT");
        final AtomicInteger pings = new AtomicInteger();
        final AtomicInteger goAways = new AtomicInteger();

        static Frames watched() {
            Frames frames = new Frames();
            LOG.setLevel(Level.ALL);
            LOG.setUseParentHandlers(false);
            LOG.addHandler(frames);
            return frames;
        }

        @Override
        public void publish(LogRecord record) {
            String line = record.getMessage();
            if (line.contains("OUTBOUND PING: ack=false")) {
                pings.incrementAndGet();
            } else if (line.contains("INBOUND GO_AWAY")) {
                goAways.incrementAndGet();
            }
        }

        @Override
        public void flush() {}

        @Override
        public void close() {}
    }
}
