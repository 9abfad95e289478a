// Callers for the tests: they repeat status calls and watch one request until it is final, as docs/clients.md says.
//
// Arguments: target, account, request id, number of watches. The environment has the files of the service config, the
// authority, the certificate and its key, and the token. Prints its counts as a line of JSON, ten times a second.
package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"os"
	"strconv"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"

	esimv1 "github.com/thingspace-gateway/thingspace-gateway/clients/go/esimv1"
	"github.com/thingspace-gateway/thingspace-gateway/watcher"
)

const loops = 2

type counts struct {
	sync.Mutex
	Calls, Opened, Final int
	Failed               []string
}

func (c *counts) print() {
	c.Lock()
	defer c.Unlock()
	line, err := json.Marshal(c)
	check(err)
	fmt.Println(string(line))
}

// client counts the watches that it opens.
type client struct {
	esimv1.EsimServiceClient
	counts *counts
}

func (c client) WatchRequest(ctx context.Context, in *esimv1.WatchRequestRequest, opts ...grpc.CallOption) (
	grpc.ServerStreamingClient[esimv1.WatchRequestResponse], error) {
	c.counts.Lock()
	c.counts.Opened++
	c.counts.Unlock()
	return c.EsimServiceClient.WatchRequest(ctx, in, opts...)
}

func check(err error) {
	if err != nil {
		panic(err)
	}
}

func transport() credentials.TransportCredentials {
	file := os.Getenv("CALLER_CA")
	if file == "" {
		return insecure.NewCredentials()
	}
	authority, err := os.ReadFile(file)
	check(err)
	config := &tls.Config{RootCAs: x509.NewCertPool()}
	config.RootCAs.AppendCertsFromPEM(authority)
	if cert := os.Getenv("CALLER_CERT"); cert != "" {
		pair, err := tls.LoadX509KeyPair(cert, os.Getenv("CALLER_KEY"))
		check(err)
		config.Certificates = []tls.Certificate{pair}
	}
	return credentials.NewTLS(config)
}

func main() {
	target, account, id := os.Args[1], os.Args[2], os.Args[3]
	watches, err := strconv.Atoi(os.Args[4])
	check(err)
	reconnect := backoff.DefaultConfig
	reconnect.MaxDelay = 2 * time.Second
	config, err := os.ReadFile(os.Getenv("CALLER_SERVICE_CONFIG"))
	check(err)
	channel, err := grpc.NewClient(target, grpc.WithTransportCredentials(transport()),
		grpc.WithDefaultServiceConfig(string(config)),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: reconnect, MinConnectTimeout: 5 * time.Second}),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: time.Minute, Timeout: 20 * time.Second}))
	check(err)
	counts := &counts{Failed: []string{}}
	stub := client{esimv1.NewEsimServiceClient(channel), counts}
	ctx := context.Background()
	if token := os.Getenv("CALLER_TOKEN"); token != "" {
		ctx = metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+token)
	}

	go func() {
		for range time.Tick(100 * time.Millisecond) {
			counts.print()
		}
	}()
	for range loops {
		go func() {
			for ; ; time.Sleep(10 * time.Millisecond) {
				_, err := stub.GetRequestStatus(ctx, &esimv1.GetRequestStatusRequest{AccountName: account, RequestId: id})
				counts.Lock()
				if counts.Calls++; err != nil {
					counts.Failed = append(counts.Failed, err.Error())
				}
				counts.Unlock()
			}
		}()
	}
	var ends sync.WaitGroup
	for range watches {
		ends.Add(1)
		go func() {
			defer ends.Done()
			var last *esimv1.WatchRequestResponse
			err := watcher.Watch(ctx, stub, account, id, "", func() string { return "" },
				func(parts []*esimv1.WatchRequestResponse, _ string) error {
					last = parts[len(parts)-1]
					return nil
				})
			counts.Lock()
			defer counts.Unlock()
			if err != nil {
				counts.Failed = append(counts.Failed, err.Error())
			} else if last.GetChange().GetCounts().GetPending()+last.GetSnapshot().GetCounts().GetPending() == 0 {
				counts.Final++
			}
		}()
	}
	ends.Wait()
	counts.print()
}
