package gateway_test

import (
	"bufio"
	"context"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"sync"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/protoadapt"
	"google.golang.org/protobuf/types/known/durationpb"

	gateway "github.com/thingspace-gateway/thingspace-gateway/clients/go"
	"github.com/thingspace-gateway/thingspace-gateway/clients/go/esimv1"
)

const (
	account = "0000123456-00001"

	// The longest wait for anything that does happen. The machine may be slow.
	patience = time.Minute
)

var (
	good = &esimv1.DeviceIdentifiers{
		Eid: "89049032007008882600086299134038", Iccid: "89148000004292933820",
	}
	bad = &esimv1.DeviceIdentifiers{
		Eid: "89049032123451234512345678901235", Iccid: "89148000000842590078",
	}
)

// startGateway starts a gateway with a simulated ThingSpace, and returns its address.
func startGateway(t *testing.T) string {
	t.Helper()
	binary, err := filepath.Abs("../../target/debug/thingspace-gateway")
	check(t, err)
	command := exec.Command(binary, "dev", "--listen", "127.0.0.1:0")
	command.Env = append(os.Environ(), "NO_COLOR=1", "TMPDIR="+t.TempDir())
	output, err := command.StdoutPipe()
	check(t, err)
	command.Stderr = command.Stdout
	check(t, command.Start())
	addresses := make(chan string, 1)
	read := make(chan struct{})
	go func() {
		defer close(read)
		listening := regexp.MustCompile(`app: listening address=(\S+)`)
		for lines := bufio.NewScanner(output); lines.Scan(); {
			if match := listening.FindStringSubmatch(lines.Text()); match != nil {
				addresses <- match[1]
			}
		}
	}()
	t.Cleanup(func() {
		_ = command.Process.Kill()
		<-read
		_ = command.Wait()
	})
	return receive(t, addresses, "the gateway to listen")
}

// peer is a server that answers as the test says. Its functions get the number of the call, from 0.
type peer struct {
	esimv1.UnimplementedEsimServiceServer

	order func(ctx context.Context, number int, request *esimv1.DownloadProfileRequest) (string, error)
	watch func(number int, request *esimv1.WatchRequestRequest, stream watchStream) error

	mutex    sync.Mutex
	orders   []*esimv1.DownloadProfileRequest
	watches  []*esimv1.WatchRequestRequest
	listener *listener
}

type watchStream = grpc.ServerStreamingServer[esimv1.WatchRequestResponse]

func (p *peer) DownloadProfile(ctx context.Context, request *esimv1.DownloadProfileRequest) (
	*esimv1.DownloadProfileResponse, error) {
	p.mutex.Lock()
	number := len(p.orders)
	p.orders = append(p.orders, request)
	p.mutex.Unlock()
	id, err := p.order(ctx, number, request)
	return &esimv1.DownloadProfileResponse{RequestId: id}, err
}

func (p *peer) WatchRequest(request *esimv1.WatchRequestRequest, stream watchStream) error {
	p.mutex.Lock()
	number := len(p.watches)
	p.watches = append(p.watches, request)
	p.mutex.Unlock()
	return p.watch(number, request, stream)
}

func (p *peer) tokens() []string {
	p.mutex.Lock()
	defer p.mutex.Unlock()
	var tokens []string
	for _, one := range p.watches {
		tokens = append(tokens, one.GetResumeToken())
	}
	return tokens
}

func (p *peer) placed() int {
	p.mutex.Lock()
	defer p.mutex.Unlock()
	return len(p.orders)
}

// start starts the server, and returns its address.
func (p *peer) start(t *testing.T, options ...grpc.ServerOption) string {
	t.Helper()
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	p.listener = &listener{Listener: inner, open: map[net.Conn]bool{}}
	server := grpc.NewServer(options...)
	esimv1.RegisterEsimServiceServer(server, p)
	served := make(chan error, 1)
	go func() { served <- server.Serve(p.listener) }()
	t.Cleanup(func() {
		server.Stop()
		check(t, <-served)
	})
	return inner.Addr().String()
}

// listener counts its connections.
type listener struct {
	net.Listener
	mutex    sync.Mutex
	open     map[net.Conn]bool
	accepted int
}

type conn struct {
	net.Conn
	listener *listener
}

func (l *listener) Accept() (net.Conn, error) {
	inner, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	accepted := &conn{inner, l}
	l.mutex.Lock()
	defer l.mutex.Unlock()
	l.open[accepted] = true
	l.accepted++
	return accepted, nil
}

func (c *conn) Close() error {
	c.listener.mutex.Lock()
	delete(c.listener.open, c)
	c.listener.mutex.Unlock()
	return c.Conn.Close()
}

func (l *listener) counts() (open, accepted int) {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	return len(l.open), l.accepted
}

// cut ends all connections.
func (l *listener) cut() {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	for one := range l.open {
		_ = one.(*conn).Conn.Close()
	}
}

func connect(t *testing.T, address string) *gateway.Client {
	t.Helper()
	client, err := gateway.Connect(address, gateway.Insecure(), nil)
	check(t, err)
	t.Cleanup(func() { check(t, client.Close()) })
	return client
}

func order(key string, devices ...*esimv1.DeviceIdentifiers) gateway.Order {
	return gateway.Order{Account: account, IdempotencyKey: key, Devices: devices}
}

// contextOf returns a context that ends before the test hangs.
func contextOf(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

// failure returns an error of the gateway with a reason, metadata in pairs, and further details.
func failure(code codes.Code, reason string, metadata map[string]string,
	details ...protoadapt.MessageV1) error {
	info := &errdetails.ErrorInfo{Domain: "thingspace-gateway", Reason: reason, Metadata: metadata}
	return withDetails(code, append([]protoadapt.MessageV1{info}, details...)...)
}

func withDetails(code codes.Code, details ...protoadapt.MessageV1) error {
	answer, err := status.New(code, "a message").WithDetails(details...)
	if err != nil {
		panic(err)
	}
	return answer.Err()
}

func retryAfter(delay time.Duration) *errdetails.RetryInfo {
	return &errdetails.RetryInfo{RetryDelay: durationpb.New(delay)}
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func equal[T comparable](t *testing.T, got, want T) {
	t.Helper()
	if got != want {
		t.Fatalf("got %v, want %v", got, want)
	}
}

func receive[T any](t *testing.T, from <-chan T, what string) T {
	t.Helper()
	select {
	case value := <-from:
		return value
	case <-time.After(patience):
		t.Fatalf("waited too long for %s", what)
		panic("not reached")
	}
}

func waitUntil(t *testing.T, what string, condition func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !condition(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited too long for %s", what)
		}
	}
}

// leavesNothing returns a function that waits until no more goroutines run than now.
func leavesNothing(t *testing.T) func() {
	before := runtime.NumGoroutine()
	return func() {
		t.Helper()
		waitUntil(t, "goroutines to end", func() bool { return runtime.NumGoroutine() <= before })
	}
}
