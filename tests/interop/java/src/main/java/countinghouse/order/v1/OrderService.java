package countinghouse.order.v1;

/**
 * Countinghouse's order service, as a Java Dubbo consumer sees it: the parts of it that are called here.
 *
 * <p>The interface's full name is its name in the registry and the gRPC service's; {@code java_package} in the protos
 * is set for that. Its methods are named as in the proto, since Dubbo sends the Java method's name. What
 * dubbo-maven-plugin generates has the same name and can stand here instead.
 */
public interface OrderService {
    CreateOrderResponse CreateOrder(CreateOrderRequest request);

    GetOrderResponse GetOrder(GetOrderRequest request);
}
