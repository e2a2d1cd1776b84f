package main

import (
	"context"
	"errors"
	"io"
	"os"
	"strconv"

	"dubbo.apache.org/dubbo-go/v3/common"
	"dubbo.apache.org/dubbo-go/v3/common/constant"
	"dubbo.apache.org/dubbo-go/v3/protocol"
	"dubbo.apache.org/dubbo-go/v3/protocol/triple/triple_protocol"
	"dubbo.apache.org/dubbo-go/v3/registry"
	"dubbo.apache.org/dubbo-go/v3/server"

	types "countinghouse.interop/gen/countinghouse/type/v1"
)

// exchange is what protoc-gen-go-triple would generate of
// service countinghouse.interop.v1.ExchangeService { rpc Convert(Money) returns (Money); }
var exchange = common.ServiceInfo{
	InterfaceName: "countinghouse.interop.v1.ExchangeService",
	ServiceType:   (*exchanger)(nil),
	Methods: []common.MethodInfo{{
		Name:        "Convert",
		Type:        constant.CallUnary,
		ReqInitFunc: func() any { return new(types.Money) },
		MethodFunc: func(ctx context.Context, arguments []any, handler any) (any, error) {
			money, err := handler.(exchanger).Convert(ctx, arguments[0].(*types.Money))
			if err != nil {
				return nil, err
			}
			return triple_protocol.NewResponse(money), nil
		},
	}},
}

type exchanger interface {
	Convert(context.Context, *types.Money) (*types.Money, error)
}

// Office is exported, since dubbo-go serves nothing else.
type Office struct{}

// Convert gives eight CNY for one EUR, and refuses everything else.
func (Office) Convert(ctx context.Context, given *types.Money) (*types.Money, error) {
	attachments, _ := ctx.Value(constant.AttachmentKey).(map[string]any)
	if clerk, ok := attachments["clerk"].([]string); ok {
		say("called", clerk[0])
	}
	if given.CurrencyCode != "EUR" {
		return nil, triple_protocol.NewError(triple_protocol.CodeInvalidArgument, errors.New("only EUR is exchanged here"))
	}
	return &types.Money{MinorUnits: given.MinorUnits * 8, CurrencyCode: "CNY"}, nil
}

// provide serves on the port it is told until SIGTERM, or until standard input ends.
func provide() error {
	port, err := strconv.Atoi(os.Args[2])
	if err != nil {
		return err
	}
	dubbo, err := server.NewServer(
		server.WithServerProtocol(protocol.WithTriple(), protocol.WithIp("127.0.0.1"), protocol.WithPort(port)),
		server.WithServerRegistry(registry.WithZookeeper(), registry.WithAddress(zookeeper()), registry.WithRegisterInterface()),
	)
	if err != nil {
		return err
	}
	if err := dubbo.Register(Office{}, &exchange); err != nil {
		return err
	}
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}()
	return dubbo.Serve()
}
