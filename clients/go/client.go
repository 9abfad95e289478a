// Package gateway calls a thingspace-gateway, which orders eSIM profile downloads through Verizon's
// ThingSpace.
//
// [Connect] returns a [Client]. [Client.Order] places an order and repeats the call until the
// outcome is known. [Client.Watch] returns each change of a request, over all breaks of the
// connection. [Explain] says what an error means. [Client.Stub] has the plain calls of the API,
// such as GetRequestStatus.
package gateway

import (
	"context"
	_ "embed"
	"errors"
	"log/slog"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/keepalive"

	"github.com/thingspace-gateway/thingspace-gateway/clients/go/esimv1"
)

const (
	keepaliveTime     = time.Minute
	keepaliveTimeout  = 20 * time.Second
	maxReconnectDelay = 2 * time.Second
	minConnectTimeout = 5 * time.Second
)

//go:embed service-config.json
var serviceConfig string

// ErrClosed is the error of calls and watches that [Client.Close] has ended.
var ErrClosed = errors.New("gateway: the client is closed")

// Options are the optional settings of [Connect].
type Options struct {
	// Logger receives a line at level Info for each repeated order, and at level Debug for each
	// resumed watch. The lines contain no tokens and no identities of devices. Nil: no logs.
	Logger *slog.Logger

	// AllowTokenOverPlaintext allows [Credentials.WithTokenFile] together with [Insecure] for a
	// target that is not on this machine. Anybody on the way can then read the token and use it. A
	// service mesh that encrypts the connection is a reason to allow it.
	AllowTokenOverPlaintext bool
}

// Client calls one gateway, or the replicas of one gateway behind one name. It is safe for
// concurrent use. It has one connection for unary calls, and one for each 100 watches.
type Client struct {
	unary   *grpc.ClientConn
	stub    esimv1.EsimServiceClient
	watches *watchConns
	logger  *slog.Logger
	closed  context.Context
	close   context.CancelFunc
}

// Connect returns a client of the gateway at a target, without waiting for a connection: calls wait
// for it. The target is "host:port" or a target with a scheme that gRPC for Go knows, such as
// "dns:///host:port" or "unix:///path". If the name has several addresses, calls go to all of them
// in turn. Opts may be nil. The caller must close the client.
func Connect(target string, creds Credentials, opts *Options) (*Client, error) {
	if opts == nil {
		opts = &Options{}
	}
	transport, err := creds.dialOptions(target, opts.AllowTokenOverPlaintext)
	if err != nil {
		return nil, err
	}
	reconnect := backoff.DefaultConfig
	reconnect.MaxDelay = maxReconnectDelay
	dialOptions := append(transport,
		grpc.WithDefaultServiceConfig(serviceConfig),
		grpc.WithDisableServiceConfig(), // Nobody else, such as the name server, provides one.
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           reconnect,
			MinConnectTimeout: minConnectTimeout,
		}),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{
			Time:    keepaliveTime,
			Timeout: keepaliveTimeout,
		}))
	unary, err := grpc.NewClient(target, dialOptions...)
	if err != nil {
		return nil, err
	}
	c := &Client{
		unary:   unary,
		stub:    esimv1.NewEsimServiceClient(unary),
		watches: &watchConns{target: target, options: dialOptions},
		logger:  opts.Logger,
	}
	if c.logger == nil {
		c.logger = slog.New(slog.DiscardHandler)
	}
	c.closed, c.close = context.WithCancel(context.Background())
	return c, nil
}

// Stub returns the generated client for plain calls such as GetRequestStatus. Its connection has
// the recommended service config, which retries calls that fail with UNAVAILABLE.
func (c *Client) Stub() esimv1.EsimServiceClient {
	return c.stub
}

// Close ends all calls and watches with [ErrClosed], and closes the connections. Further calls of
// Close do nothing. The error is always nil.
func (c *Client) Close() error {
	c.close()
	c.watches.close()
	_ = c.unary.Close() // Fails only if it is closed already.
	return nil
}

// bind returns a context that also ends when the client is closed.
func (c *Client) bind(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(c.closed, func() { cancel(ErrClosed) })
	return ctx, func() {
		stop()
		cancel(nil)
	}
}

// endOf returns why a context has ended, or nil.
func endOf(ctx context.Context) error {
	if errors.Is(context.Cause(ctx), ErrClosed) {
		return ErrClosed
	}
	return ctx.Err()
}

// sleep returns false if the context ends first.
func sleep(ctx context.Context, wait time.Duration) bool {
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}
