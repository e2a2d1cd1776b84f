package countinghouse.interop;

import java.lang.reflect.Field;
import org.apache.dubbo.common.utils.NetUtils;

/**
 * Dubbo takes a provider's address 127.x for a mistake and calls its own machine's first network card instead. Here
 * everybody does live on 127.0.0.1. Where providers are registered under a real address nobody needs this.
 */
final class Loopback {
    static final String ADDRESS = "127.0.0.1";

    static void keep() {
        try {
            Field address = NetUtils.class.getDeclaredField("HOST_ADDRESS");
            address.setAccessible(true);
            address.set(null, ADDRESS);
        } catch (ReflectiveOperationException error) {
            throw new IllegalStateException("this Dubbo keeps its own address elsewhere", error);
        }
    }

    private Loopback() {}
}
