package gateway

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	"github.com/thingspace-gateway/thingspace-gateway/clients/go/esimv1"
)

const (
	// DefaultOrderTimeout ends [Client.Order] if its context has no deadline.
	DefaultOrderTimeout = 5 * time.Minute

	// A pause ends at least this long before the deadline, so that another attempt has time.
	lastAttempt = time.Second
)

// Order is an order of eSIM profiles for devices.
type Order struct {
	// Account is the ThingSpace billing account, such as "0000123456-00001".
	Account string

	// Devices are the 1 to 10,000 devices, each with its EID and ICCID, and optionally its IMEI.
	Devices []*esimv1.DeviceIdentifiers

	// IdempotencyKey is the caller's name for the order, such as a UUID. The same key never orders
	// twice. Create it before the first call, store it with your own record, and use it in every
	// repetition. The client does not create it: the key would be lost with the process, and the
	// order could not be repeated safely.
	IdempotencyKey string

	// ServicePlan is the service plan of the account. Optional.
	ServicePlan string
}

// Ordered is an order that ThingSpace has accepted.
type Ordered struct {
	// RequestID is ThingSpace's id of the request, for [Client.Watch].
	RequestID string

	// Replayed says that an earlier call with the same key had already placed the order.
	Replayed bool
}

// Order places an order. It repeats the call with the same key until it knows the outcome, or until
// the deadline of the context, or [DefaultOrderTimeout] if the context has none.
//
// An [*UnknownOutcomeError] says that the order may or may not be placed. Every other [*Error] says
// that this call has not placed it, and what to do. If the context was cancelled, the error is also
// [context.Canceled].
func (c *Client) Order(ctx context.Context, order Order) (Ordered, error) {
	ctx, unbind := c.bind(ctx)
	defer unbind()
	deadline, limited := ctx.Deadline()
	if !limited {
		deadline = time.Now().Add(DefaultOrderTimeout)
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadline(ctx, deadline)
		defer cancel()
	}
	if end := endOf(ctx); end != nil {
		return Ordered{}, end
	}
	request := &esimv1.DownloadProfileRequest{
		AccountName:    order.Account,
		Devices:        order.Devices,
		ServicePlan:    order.ServicePlan,
		IdempotencyKey: order.IdempotencyKey,
	}
	if err := checkEncodable(request); err != nil {
		return Ordered{}, err
	}
	unknown := &UnknownOutcomeError{Account: order.Account, IdempotencyKey: order.IdempotencyKey}
	mayBePlaced := false
	var pauses pauses
	for {
		// The service config ends each attempt after 90 s.
		response, err := c.stub.DownloadProfile(ctx, request)
		if err == nil {
			return Ordered{response.GetRequestId(), response.GetReplayed()}, nil
		}
		failure := newError(ctx, err)
		mayBePlaced = afterFailure(mayBePlaced, failure.Explanation)
		if id := failure.Metadata["orderId"]; id != "" {
			unknown.OrderID, unknown.RequestID = id, failure.Metadata["requestId"]
		}
		wait, ok := pauseBefore(deadline, &pauses, failure.RetryDelay)
		if failure.SafeToRepeat && ok {
			c.logger.LogAttrs(ctx, slog.LevelInfo, "repeating an order",
				slog.String("account", order.Account),
				slog.String("code", failure.Code.String()),
				slog.String("reason", failure.Reason),
				slog.Duration("wait", wait))
			if sleep(ctx, wait) {
				continue
			}
		}
		failure = failure.endedBy(endOf(ctx))
		if mayBePlaced {
			unknown.cause = failure
			return Ordered{}, unknown
		}
		return Ordered{}, failure
	}
}

// pauseBefore returns how long to wait before the next attempt, at least the delay of the gateway,
// and false if there is no time for one. It shortens a pause rather than omit the last attempt.
func pauseBefore(deadline time.Time, pauses *pauses, delay *time.Duration) (time.Duration, bool) {
	left := time.Until(deadline) - lastAttempt
	pause, jitter := pauses.next()
	least := time.Duration(0)
	if delay != nil {
		pause, least = *delay, *delay
	}
	return min(pause+jitter, left), left > least
}

// afterFailure returns whether an order may be placed after an attempt has failed, if it may or may
// not have been placed before.
func afterFailure(before bool, e Explanation) bool {
	switch e.Reason {
	case "":
		// The attempt had no answer, unless a proxy has refused it.
		return before || e.SafeToRepeat || e.Code == codes.Canceled
	case ReasonOrderInProgress, ReasonOrderOutcomeUnknown, ReasonInternal, ReasonSlowReader,
		ReasonStreamAge:
		return true
	case ReasonDeadline:
		return before || e.Metadata["nothingSent"] != "true"
	case ReasonInvalidField, ReasonIdempotencyKeyReused:
		// The gateway would have refused each earlier attempt, too.
		return false
	}
	// Before the gateway sends an order to ThingSpace, it looks up the order's key. So these errors
	// say that no order was placed with the key.
	if strings.HasPrefix(e.Reason, "UPSTREAM_") {
		return false
	}
	// The others say only that this attempt has placed nothing.
	return before
}

// checkEncodable returns an error for a message that gRPC cannot send, because a text is not UTF-8.
// gRPC would report it like an error of the network.
func checkEncodable(message proto.Message) error {
	if _, err := proto.Marshal(message); err != nil {
		return &Error{
			Explanation: Explanation{Code: codes.InvalidArgument, Message: err.Error()},
			cause:       fmt.Errorf("gateway: %w", err),
		}
	}
	return nil
}
