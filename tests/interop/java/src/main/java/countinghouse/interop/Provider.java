package countinghouse.interop;

import countinghouse.interop.v1.ExchangeService;
import countinghouse.type.v1.Money;
import java.io.IOException;
import org.apache.dubbo.config.ApplicationConfig;
import org.apache.dubbo.config.ProtocolConfig;
import org.apache.dubbo.config.RegistryConfig;
import org.apache.dubbo.config.ServiceConfig;
import org.apache.dubbo.config.bootstrap.DubboBootstrap;
import org.apache.dubbo.rpc.RpcContext;
import org.apache.dubbo.rpc.TriRpcStatus;

/** A Java provider for Countinghouse's own client to find. Serves on the port it is told until SIGTERM, or until its standard input ends. */
public final class Provider {
    public static void main(String[] arguments) throws IOException {
        Loopback.keep();
        ApplicationConfig application = new ApplicationConfig("interop-java-provider");
        application.setQosEnable(false);
        ProtocolConfig triple = new ProtocolConfig("tri", Integer.parseInt(arguments[0]));
        triple.setHost(Loopback.ADDRESS);
        ServiceConfig<ExchangeService> service = new ServiceConfig<>();
        service.setInterface(ExchangeService.class);
        service.setRef(Provider::convert);
        DubboBootstrap.getInstance()
                .application(application)
                .registry(new RegistryConfig("zookeeper://" + System.getenv("INTEROP_ZOOKEEPER")))
                .protocol(triple)
                .service(service)
                .start();
        while (System.in.read() >= 0) {
            // nothing is said to it
        }
        System.exit(0);
    }

    private static Money convert(Money given) {
        System.out.println("called " + RpcContext.getServerAttachment().getAttachment("clerk"));
        if (!given.getCurrencyCode().equals("EUR")) {
            throw TriRpcStatus.fromCode(TriRpcStatus.Code.INVALID_ARGUMENT)
                    .withDescription("only EUR is exchanged here")
                    .asException();
        }
        return given.toBuilder().setMinorUnits(given.getMinorUnits() * 8).setCurrencyCode("CNY").build();
    }

    private Provider() {}
}
