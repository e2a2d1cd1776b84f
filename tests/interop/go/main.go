// Command interop is a dubbo-go consumer of Countinghouse, and a dubbo-go provider for Countinghouse's own client.
// Whoever starts it says which, and compares the lines it prints with the books.
package main

import (
	"fmt"
	"os"

	// What of dubbo-go is used, its default filters among them; dubbo.apache.org/dubbo-go/v3/imports has the rest, too.
	_ "dubbo.apache.org/dubbo-go/v3/cluster/cluster/failover"
	_ "dubbo.apache.org/dubbo-go/v3/cluster/loadbalance/random"
	_ "dubbo.apache.org/dubbo-go/v3/cluster/router/tag"
	_ "dubbo.apache.org/dubbo-go/v3/filter/accesslog"
	_ "dubbo.apache.org/dubbo-go/v3/filter/echo"
	_ "dubbo.apache.org/dubbo-go/v3/filter/exec_limit"
	_ "dubbo.apache.org/dubbo-go/v3/filter/generic"
	_ "dubbo.apache.org/dubbo-go/v3/filter/graceful_shutdown"
	_ "dubbo.apache.org/dubbo-go/v3/filter/token"
	_ "dubbo.apache.org/dubbo-go/v3/filter/tps"
	_ "dubbo.apache.org/dubbo-go/v3/metadata/report/zookeeper"
	_ "dubbo.apache.org/dubbo-go/v3/protocol/triple"
	_ "dubbo.apache.org/dubbo-go/v3/proxy/proxy_factory"
	_ "dubbo.apache.org/dubbo-go/v3/registry/directory"
	_ "dubbo.apache.org/dubbo-go/v3/registry/protocol"
	_ "dubbo.apache.org/dubbo-go/v3/registry/zookeeper"
)

func main() {
	play := map[string]func() error{"consumer": consume, "provider": provide}[os.Args[1]]
	if err := play(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// zookeeper is where the registry is, as host:port.
func zookeeper() string {
	return os.Getenv("INTEROP_ZOOKEEPER")
}

func say(name string, value any) {
	fmt.Println(name, value)
}
