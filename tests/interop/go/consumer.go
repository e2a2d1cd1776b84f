package main

import (
	"context"
	"crypto/rand"
	"errors"
	"time"

	"dubbo.apache.org/dubbo-go/v3/client"
	"dubbo.apache.org/dubbo-go/v3/protocol/triple/triple_protocol"
	"dubbo.apache.org/dubbo-go/v3/registry"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"os"

	ledger "countinghouse.interop/gen/countinghouse/ledger/v1"
	order "countinghouse.interop/gen/countinghouse/order/v1"
	payment "countinghouse.interop/gen/countinghouse/payment/v1"
	types "countinghouse.interop/gen/countinghouse/type/v1"
)

const timeout = 5 * time.Second

// consume makes an order, pays with a ticket twice, settles, and reads the ledger.
func consume() error {
	dubbo, err := client.NewClient(
		client.WithClientRegistry(registry.WithZookeeper(), registry.WithAddress(zookeeper()), registry.WithRegisterInterface()),
		client.WithClientProtocolTriple(),
		client.WithClientRequestTimeout(timeout),
	)
	if err != nil {
		return err
	}
	orders, err := dial(dubbo, order.File_countinghouse_order_v1_order_proto.Services().Get(0))
	if err != nil {
		return err
	}
	payments, err := dial(dubbo, payment.File_countinghouse_payment_v1_payment_proto.Services().Get(0))
	if err != nil {
		return err
	}
	journals, err := dial(dubbo, ledger.File_countinghouse_ledger_v1_ledger_proto.Services().Get(0))
	if err != nil {
		return err
	}
	return errors.Join(payTwice(payments), settle(orders, payments, journals))
}

// dial finds the providers of a service. What it tells dubbo-go is what protoc-gen-go-triple would have generated.
func dial(dubbo *client.Client, service protoreflect.ServiceDescriptor) (*client.Connection, error) {
	info := client.ClientInfo{InterfaceName: string(service.FullName())}
	for i := range service.Methods().Len() {
		info.MethodNames = append(info.MethodNames, string(service.Methods().Get(i).Name()))
	}
	return dubbo.DialWithInfo(info.InterfaceName, &info)
}

// payTwice is method 1: a ticket, and the same Pay twice, as after a lost reply.
func payTwice(payments *client.Connection) error {
	var issued payment.IssueTicketResponse
	if err := call(payments, "IssueTicket", &payment.IssueTicketRequest{RequestId: newID()}, &issued); err != nil {
		return err
	}
	say("ticket", issued.Ticket.TicketId)
	request := &payment.PayRequest{
		TicketId: issued.Ticket.TicketId, Source: payment.Source_SOURCE_DRAWER, Amount: amount(), PayeeAccountId: "sales:CNY",
	}
	for range 2 {
		var paid payment.PayResponse
		if err := call(payments, "Pay", request, &paid); err != nil {
			return err
		}
		say("paid", paid.Payment.PaymentId)
	}
	return nil
}

// settle is method 2: a request id of the caller's own. The second clerk is refused.
func settle(orders, payments, journals *client.Connection) error {
	var created order.CreateOrderResponse
	create := &order.CreateOrderRequest{RequestId: newID(), CustomerId: "mei", Amount: amount()}
	if err := call(orders, "CreateOrder", create, &created); err != nil {
		return err
	}
	id := created.Order.OrderId
	say("order", id)
	var settled payment.SettleResponse
	request := &payment.SettleRequest{RequestId: newID(), OrderId: id, Source: payment.Source_SOURCE_DRAWER}
	if err := call(payments, "Settle", request, &settled); err != nil {
		return err
	}
	say("settled", settled.Payment.PaymentId)
	request.RequestId = newID()
	if err := call(payments, "Settle", request, &settled); err != nil {
		say("refused", refusal(err))
	}
	var found order.GetOrderResponse
	if err := call(orders, "GetOrder", &order.GetOrderRequest{OrderId: id}, &found); err != nil {
		return err
	}
	say("state", found.Order.State)
	return read(journals, id)
}

func read(journals *client.Connection, id string) error {
	var journal ledger.GetJournalResponse
	if err := call(journals, "GetJournal", &ledger.GetJournalRequest{BusinessKey: "settle:" + id + ":1"}, &journal); err != nil {
		return err
	}
	say("journal", journal.Journal.JournalId)
	var balance ledger.TrialBalanceResponse
	if err := call(journals, "TrialBalance", &ledger.TrialBalanceRequest{}, &balance); err != nil {
		return err
	}
	say("balanced", balance.Balanced)
	return nil
}

// call calls a method under our token. dubbo-go repeats calls that failed; every request here may be repeated.
func call(service *client.Connection, method string, request, response proto.Message) error {
	header := triple_protocol.AppendToOutgoingContext(context.Background(), "authorization", "Bearer "+os.Getenv("INTEROP_TOKEN"))
	return service.CallUnary(header, []any{request}, response, method)
}

// refusal is an error's code and reason, from its google.rpc.ErrorInfo.
func refusal(err error) string {
	var refused *triple_protocol.Error
	if !errors.As(err, &refused) {
		return err.Error()
	}
	for _, detail := range refused.Details() {
		if value, err := detail.Value(); err == nil {
			if info, ok := value.(*errdetails.ErrorInfo); ok {
				return refused.Code().String() + " " + info.Reason
			}
		}
	}
	return refused.Code().String()
}

func amount() *types.Money {
	return &types.Money{MinorUnits: 1250, CurrencyCode: "CNY"}
}

func newID() string {
	return rand.Text()
}
