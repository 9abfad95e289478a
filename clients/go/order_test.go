package gateway_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	gateway "github.com/thingspace-gateway/thingspace-gateway/clients/go"
	"github.com/thingspace-gateway/thingspace-gateway/clients/go/esimv1"
)

type downloadRequest = esimv1.DownloadProfileRequest

// answers returns an order function that fails with one error after the other, and then succeeds.
func answers(errs ...error) func(context.Context, int, *downloadRequest) (string, error) {
	return func(_ context.Context, number int, _ *downloadRequest) (string, error) {
		if number < len(errs) {
			return "", errs[number]
		}
		return "the request", nil
	}
}

func TestAKeyNeverOrdersTwice(t *testing.T) {
	client := connect(t, startGateway(t))
	first, err := client.Order(contextOf(t), order("a key", good))
	check(t, err)
	equal(t, first.Replayed, false)
	again, err := client.Order(contextOf(t), order("a key", good))
	check(t, err)
	equal(t, again, gateway.Ordered{RequestID: first.RequestID, Replayed: true})

	_, err = client.Order(contextOf(t), order("a key", bad))
	var failed *gateway.Error
	if !errors.As(err, &failed) {
		t.Fatal(err)
	}
	equal(t, failed.Reason, gateway.ReasonIdempotencyKeyReused)
	equal(t, status.Code(err), codes.InvalidArgument)
}

func TestAnOrderIsRepeatedWithItsKeyUntilItsOutcomeIsKnown(t *testing.T) {
	peer := &peer{order: answers(
		failure(codes.FailedPrecondition, gateway.ReasonOrderOutcomeUnknown, nil),
		failure(codes.ResourceExhausted, gateway.ReasonOverloaded, nil, retryAfter(0)),
		failure(codes.DeadlineExceeded, gateway.ReasonDeadline, nil, retryAfter(0)),
	)}
	var log bytes.Buffer
	client, err := gateway.Connect(peer.start(t), gateway.Insecure(), &gateway.Options{
		Logger: slog.New(slog.NewTextHandler(&log, nil)),
	})
	check(t, err)
	defer client.Close()
	ordered, err := client.Order(contextOf(t), order("a key", good))
	check(t, err)
	equal(t, ordered, gateway.Ordered{RequestID: "the request"})
	equal(t, len(peer.orders), 4)
	for _, one := range peer.orders {
		equal(t, one.GetIdempotencyKey(), "a key")
	}
	equal(t, strings.Count(log.String(), `msg="repeating an order"`), 3)
	if strings.Contains(log.String(), "a key") || strings.Contains(log.String(), good.GetIccid()) {
		t.Fatal(log.String())
	}
}

func TestEachAttemptHasADeadlineOfAtMost90Seconds(t *testing.T) {
	deadlines := make(chan time.Duration, 1)
	peer := &peer{order: func(ctx context.Context, _ int, _ *downloadRequest) (string, error) {
		deadline, _ := ctx.Deadline()
		deadlines <- time.Until(deadline)
		return "", nil
	}}
	_, err := connect(t, peer.start(t)).Order(context.Background(), order("a key", good))
	check(t, err)
	if left := <-deadlines; left <= 0 || left > 90*time.Second {
		t.Fatal(left)
	}
}

func TestTheDelayOfTheGatewayIsRespected(t *testing.T) {
	delay := 1200 * time.Millisecond
	peer := &peer{order: answers(
		failure(codes.ResourceExhausted, gateway.ReasonUpstreamThrottled, nil, retryAfter(delay)),
	)}
	client := connect(t, peer.start(t))
	start := time.Now()
	_, err := client.Order(contextOf(t), order("a key", good))
	check(t, err)
	if passed := time.Since(start); passed < delay {
		t.Fatal(passed)
	}
}

// The errors of the attempts of an order, and the error of the order.
func TestTheErrorOfAnOrderSaysWhetherItMayBePlaced(t *testing.T) {
	unknown := failure(codes.FailedPrecondition, gateway.ReasonOrderOutcomeUnknown,
		map[string]string{"orderId": "the order", "requestId": "the request"}, retryAfter(0))
	overloaded := failure(codes.ResourceExhausted, gateway.ReasonOverloaded, nil,
		retryAfter(time.Hour))
	throttled := failure(codes.ResourceExhausted, gateway.ReasonUpstreamThrottled, nil,
		retryAfter(time.Hour))
	nothingSent := map[string]string{"nothingSent": "true"}
	for _, one := range []struct {
		name     string
		errs     []error
		unknown  bool
		attempts int
	}{
		{"never sent", []error{overloaded}, false, 1},
		{"unknown, then no answer to that", []error{unknown, overloaded}, true, 2},
		{"unknown, then certainly not placed", []error{unknown, throttled}, false, 2},
		{"unknown, then refused", []error{
			unknown, failure(codes.InvalidArgument, gateway.ReasonUpstreamInvalidInput, nil),
		}, false, 2},
		{"unknown, then not allowed", []error{
			unknown, failure(codes.PermissionDenied, gateway.ReasonCallerNotAllowed, nil),
		}, true, 2},
		{"unknown, then too large because of a new token", []error{
			unknown, failure(codes.OutOfRange, gateway.ReasonMessageTooLarge, nil),
		}, true, 2},
		{"defect", []error{failure(codes.Internal, gateway.ReasonInternal, nil)}, true, 1},
		{"deadline", []error{
			failure(codes.DeadlineExceeded, gateway.ReasonDeadline, nil, retryAfter(time.Hour)),
		}, true, 1},
		{"deadline, nothing sent", []error{
			failure(codes.DeadlineExceeded, gateway.ReasonDeadline, nothingSent,
				retryAfter(time.Hour)),
		}, false, 1},
		{"network", []error{withDetails(codes.Internal, retryAfter(time.Hour))}, true, 1},
		{"refused by a proxy", []error{status.Error(codes.PermissionDenied, "no")}, false, 1},
		{"malformed", []error{
			failure(codes.Internal, gateway.ReasonMalformedCall, nil),
		}, false, 1},
	} {
		t.Run(one.name, func(t *testing.T) {
			peer := &peer{order: answers(one.errs...)}
			_, err := connect(t, peer.start(t)).Order(contextOf(t), order("a key", good))
			var failed *gateway.Error
			if !errors.As(err, &failed) {
				t.Fatal(err)
			}
			last := one.errs[len(one.errs)-1]
			equal(t, failed.Code, status.Code(last))
			equal(t, status.Code(err), status.Code(last))
			var outcome *gateway.UnknownOutcomeError
			equal(t, errors.As(err, &outcome), one.unknown)
			equal(t, peer.placed(), one.attempts)
			if !one.unknown {
				return
			}
			equal(t, outcome.Account, account)
			equal(t, outcome.IdempotencyKey, "a key")
			if one.errs[0] == unknown {
				equal(t, outcome.OrderID, "the order")
				equal(t, outcome.RequestID, "the request")
			}
			if strings.Contains(err.Error(), "a key") {
				t.Fatal(err)
			}
		})
	}
}

func TestAnOrderIsRepeatedUntilTheDeadline(t *testing.T) {
	peer := &peer{order: func(context.Context, int, *downloadRequest) (string, error) {
		return "", failure(codes.FailedPrecondition, gateway.ReasonOrderOutcomeUnknown, nil)
	}}
	ctx, cancel := context.WithTimeout(context.Background(), 4*time.Second)
	defer cancel()
	_, err := connect(t, peer.start(t)).Order(ctx, order("a key", good))
	var outcome *gateway.UnknownOutcomeError
	if !errors.As(err, &outcome) || ctx.Err() != nil {
		t.Fatal(err, ctx.Err())
	}
	equal(t, gateway.Explain(err).Reason, gateway.ReasonOrderOutcomeUnknown)
	if peer.placed() < 3 {
		t.Fatal(peer.placed())
	}
}

// hang returns an order function that signals its begin and its end, and waits for the caller.
func hang() (order func(context.Context, int, *downloadRequest) (string, error),
	begun, ended chan struct{}) {
	begun, ended = make(chan struct{}, 1), make(chan struct{}, 1)
	return func(ctx context.Context, _ int, _ *downloadRequest) (string, error) {
		begun <- struct{}{}
		<-ctx.Done()
		ended <- struct{}{}
		return "", ctx.Err()
	}, begun, ended
}

func TestACancelledOrderEndsAtOnceAndMayBePlaced(t *testing.T) {
	order1, begun, ended := hang()
	client := connect(t, (&peer{order: order1}).start(t))
	ctx, cancel := context.WithCancel(contextOf(t))
	errs := make(chan error, 1)
	go func() {
		_, err := client.Order(ctx, order("a key", good))
		errs <- err
	}()
	receive(t, begun, "the order")
	cancel()
	err := receive(t, errs, "the end of the order")
	receive(t, ended, "the end of the call")
	var outcome *gateway.UnknownOutcomeError
	if !errors.Is(err, context.Canceled) || !errors.As(err, &outcome) {
		t.Fatal(err)
	}
	equal(t, gateway.Explain(err).SafeToRepeat, false)
}

func TestCloseEndsOrders(t *testing.T) {
	order1, begun, ended := hang()
	address := (&peer{order: order1}).start(t)
	leftNothing := leavesNothing(t)
	client := connect(t, address)
	errs := make(chan error, 1)
	go func() {
		_, err := client.Order(contextOf(t), order("a key", good))
		errs <- err
	}()
	receive(t, begun, "the order")
	check(t, client.Close())
	if err := receive(t, errs, "the end of the order"); !errors.Is(err, gateway.ErrClosed) {
		t.Fatal(err)
	}
	receive(t, ended, "the end of the call")
	leftNothing()
	_, err := client.Order(contextOf(t), order("a key", good))
	if !errors.Is(err, gateway.ErrClosed) {
		t.Fatal(err)
	}
}

func TestTextThatIsNotUTF8IsAnErrorAtOnce(t *testing.T) {
	client := connect(t, (&peer{order: answers()}).start(t))
	_, err := client.Order(contextOf(t), order("\xff", good))
	equal(t, gateway.Explain(err).Code, codes.InvalidArgument)
	for _, err := range client.Watch(contextOf(t), account, "\xff", nil) {
		equal(t, gateway.Explain(err).Code, codes.InvalidArgument)
	}
}
