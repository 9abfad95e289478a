package gateway_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"time"

	gateway "github.com/thingspace-gateway/thingspace-gateway/clients/go"
	"github.com/thingspace-gateway/thingspace-gateway/clients/go/esimv1"
)

func ExampleConnect() {
	creds := gateway.TLS(gateway.TLSFiles{CA: "/etc/orders/ca.pem"}).
		WithTokenFile("/var/run/secrets/gateway/token")
	client, err := gateway.Connect("gateway.example.com:50051", creds, nil)
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
}

func ExampleClient_Order() {
	var client *gateway.Client // See Connect.

	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	ordered, err := client.Order(ctx, gateway.Order{
		Account:        "0000123456-00001",
		IdempotencyKey: "order-4711", // Stored before this call.
		Devices: []*esimv1.DeviceIdentifiers{
			{Eid: "89049032007008882600086299134038", Iccid: "89148000004292933820"},
		},
	})
	var unknown *gateway.UnknownOutcomeError
	if errors.As(err, &unknown) {
		fmt.Println("order again later, with the same key:", unknown.OrderID)
	} else if err != nil {
		fmt.Println("not ordered:", gateway.Explain(err).Reason)
	} else {
		fmt.Println("ordered:", ordered.RequestID)
	}
}

func ExampleClient_Watch() {
	var client *gateway.Client // See Connect.

	options := &gateway.WatchOptions{
		TokenStore: gateway.FileTokenStore{Directory: "/var/lib/orders/watches"},
	}
	ctx := context.Background()
	for update, err := range client.Watch(ctx, "0000123456-00001", "the request id", options) {
		if err != nil {
			log.Fatal(err)
		}
		for _, device := range update.Devices() {
			fmt.Println(device.GetIdentifiers().GetIccid(), device.GetState())
		}
	}
}

func ExampleClient_Stub() {
	var client *gateway.Client // See Connect.

	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	answer, err := client.Stub().GetRequestStatus(ctx, &esimv1.GetRequestStatusRequest{
		AccountName: "0000123456-00001",
		RequestId:   "the request id",
	})
	if err != nil {
		log.Fatal(gateway.Explain(err).Reason)
	}
	fmt.Println(answer.GetStatus().GetState())
}
