package countinghouse.interop;

import com.google.protobuf.Descriptors.FileDescriptor;
import com.google.protobuf.Descriptors.ServiceDescriptor;
import countinghouse.ledger.v1.LedgerProto;
import countinghouse.ledger.v1.LedgerService;
import countinghouse.order.v1.OrderProto;
import countinghouse.order.v1.OrderService;
import countinghouse.payment.v1.PaymentProto;
import countinghouse.payment.v1.PaymentService;
import java.lang.reflect.Method;
import java.util.Map;
import org.apache.dubbo.config.ApplicationConfig;
import org.apache.dubbo.config.ReferenceConfig;
import org.apache.dubbo.config.RegistryConfig;
import org.apache.dubbo.config.bootstrap.DubboBootstrap;

/**
 * The three services, found through ZooKeeper. All a consumer has to say is where the registry is, and which filter
 * carries the token and the refusals ({@link CountinghouseFilter}).
 *
 * <p>Dubbo repeats a call that failed or timed out, twice by default ({@code retries}). Here that is harmless for every
 * method: each mutating request carries its request id or ticket, and a repeat gets the stored answer.
 */
final class Countinghouse {
    private static final int TIMEOUT_MS = 5_000;

    private final Map<String, String> parameters;

    /** @param parameters further parameters of each reference, such as {@code heartbeat} */
    Countinghouse(Map<String, String> parameters) {
        this.parameters = parameters;
        Loopback.keep();
        ApplicationConfig application = new ApplicationConfig("interop-java");
        application.setQosEnable(false);
        DubboBootstrap.getInstance()
                .application(application)
                .registry(new RegistryConfig("zookeeper://" + System.getenv("INTEROP_ZOOKEEPER")))
                .start();
    }

    OrderService orders() {
        return refer(OrderService.class, OrderProto.getDescriptor());
    }

    PaymentService payments() {
        return refer(PaymentService.class, PaymentProto.getDescriptor());
    }

    LedgerService ledger() {
        return refer(LedgerService.class, LedgerProto.getDescriptor());
    }

    private <T> T refer(Class<T> type, FileDescriptor file) {
        agree(type, file.findServiceByName(type.getSimpleName()));
        ReferenceConfig<T> reference = new ReferenceConfig<>();
        reference.setInterface(type);
        reference.setTimeout(TIMEOUT_MS);
        reference.setFilter("default,countinghouse"); // after Dubbo's own, so that it sees the answer before them
        reference.setParameters(parameters);
        return reference.get();
    }

    /** The interface above is written by hand: it must say what the proto says. */
    private static void agree(Class<?> type, ServiceDescriptor service) {
        if (!type.getName().equals(service.getFullName())) {
            throw new IllegalStateException(type.getName() + " is registered as " + service.getFullName());
        }
        for (Method method : type.getMethods()) {
            if (service.findMethodByName(method.getName()) == null) {
                throw new IllegalStateException(service.getFullName() + " has no method " + method.getName());
            }
        }
    }
}
