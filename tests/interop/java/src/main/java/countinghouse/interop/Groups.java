package countinghouse.interop;

import countinghouse.interop.v1.ExchangeService;
import countinghouse.type.v1.Money;
import java.io.IOException;
import org.apache.dubbo.config.ApplicationConfig;
import org.apache.dubbo.config.ProtocolConfig;
import org.apache.dubbo.config.RegistryConfig;
import org.apache.dubbo.config.ServiceConfig;
import org.apache.dubbo.config.bootstrap.DubboBootstrap;

/** A Java provider of one interface at one port in two groups and versions. Serves until its standard input ends. */
public final class Groups {
    public static void main(String[] arguments) throws IOException {
        Loopback.keep();
        ApplicationConfig application = new ApplicationConfig("interop-java-groups");
        application.setQosEnable(false);
        ProtocolConfig triple = new ProtocolConfig("tri", Integer.parseInt(arguments[0]));
        triple.setHost(Loopback.ADDRESS);
        DubboBootstrap.getInstance()
                .application(application)
                .registry(new RegistryConfig("zookeeper://" + System.getenv("INTEROP_ZOOKEEPER")))
                .protocol(triple)
                .service(exchange("retail", "1.0.0", 8))
                .service(exchange("trade", "2.0.0", 9))
                .start();
        while (System.in.read() >= 0) {
            // nothing is said to it
        }
        System.exit(0);
    }

    private static ServiceConfig<ExchangeService> exchange(String group, String version, int rate) {
        ServiceConfig<ExchangeService> service = new ServiceConfig<>();
        service.setInterface(ExchangeService.class);
        service.setGroup(group);
        service.setVersion(version);
        service.setWarmup(0); // groups that are exported moments apart would warm up apart, and share the calls unequally
        service.setRef(given -> given.toBuilder()
                .setMinorUnits(given.getMinorUnits() * rate)
                .setCurrencyCode("CNY")
                .build());
        return service;
    }

    private Groups() {}
}
