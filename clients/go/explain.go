package gateway

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// The domain of the gateway's reasons in google.rpc.ErrorInfo.
const domain = "thingspace-gateway"

// Explanation says what an error means and what to do about it.
type Explanation struct {
	// Code is the gRPC code.
	Code codes.Code

	// Reason is one of the constants that begin with Reason, or a reason of a later gateway. Empty:
	// the error comes from a proxy, the network or the library, not from the gateway.
	Reason string

	// Message is for people. Decide by Reason and Code.
	Message string

	// Violations are the wrong fields of a request.
	Violations []Violation

	// RetryDelay is how long to wait at least before the call is repeated. Nil: the gateway does not
	// say.
	RetryDelay *time.Duration

	// SafeToRepeat says that the same call with the same key can be repeated, and may succeed
	// without a change by anybody who calls.
	SafeToRepeat bool

	// Metadata is the metadata of the gateway's google.rpc.ErrorInfo, such as "orderId".
	Metadata map[string]string

	// LogID is an id with which the gateway's operator finds the cause in its log, or empty.
	LogID string
}

// Violation describes a wrong field of a request.
type Violation struct {
	// Field is the path of the field, such as "devices[0].eid".
	Field string

	// Description says what is wrong with it.
	Description string
}

// Error is a call or a watch that has failed. The rest of its chain is the gRPC error, and the error
// of the caller's context if that has ended.
type Error struct {
	Explanation

	cause error
}

// Error implements error.
func (e *Error) Error() string {
	text := "gateway: " + e.Code.String()
	if e.Reason != "" {
		text += " " + e.Reason
	}
	return text + ": " + e.Message
}

// Unwrap returns the gRPC error.
func (e *Error) Unwrap() error {
	return e.cause
}

// UnknownOutcomeError is an order that may or may not be placed. Order it again with the same key:
// that never places a second order, and returns the outcome when it is known. A new key may place a
// second one. It is an [*Error], too, for [errors.As].
type UnknownOutcomeError struct {
	// Account and IdempotencyKey are those of the order.
	Account, IdempotencyKey string

	// OrderID names the order for the gateway's operator. It may be empty.
	OrderID string

	// RequestID is ThingSpace's id of the request, if ThingSpace has accepted the order and the
	// gateway cannot store that yet. It is usually empty.
	RequestID string

	cause *Error
}

// Error implements error. The text does not contain the key.
func (e *UnknownOutcomeError) Error() string {
	return "gateway: the order may or may not be placed; call again with the same key: " +
		strings.TrimPrefix(e.cause.Error(), "gateway: ")
}

// Unwrap returns the last error, an [*Error].
func (e *UnknownOutcomeError) Unwrap() error {
	return e.cause
}

// Explain says what an error of this package or of a gRPC call means. An error that comes from
// neither has the code UNKNOWN and is not safe to repeat.
func Explain(err error) Explanation {
	var known *Error
	if errors.As(err, &known) {
		return known.Explanation
	}
	var call interface{ GRPCStatus() *status.Status }
	if errors.As(err, &call) {
		answer := call.GRPCStatus()
		// gRPC for Go reports the caller's own cancellation with this text.
		own := strings.HasSuffix(answer.Message(), context.Canceled.Error())
		return explain(answer, own)
	}
	answer := status.FromContextError(err)
	return explain(answer, answer.Code() != codes.DeadlineExceeded)
}

// explain takes whether the caller itself has ended a call that ended with CANCELLED, or with an
// error that is not from gRPC.
func explain(answer *status.Status, own bool) Explanation {
	e := Explanation{Code: answer.Code(), Message: answer.Message()}
	for _, detail := range answer.Details() {
		switch detail := detail.(type) {
		case *errdetails.ErrorInfo:
			if detail.GetDomain() == domain {
				e.Reason, e.Metadata = detail.GetReason(), detail.GetMetadata()
			}
		case *errdetails.BadRequest:
			for _, violation := range detail.GetFieldViolations() {
				e.Violations = append(e.Violations,
					Violation{Field: violation.GetField(), Description: violation.GetDescription()})
			}
		case *errdetails.RetryInfo:
			delay := max(detail.GetRetryDelay().AsDuration(), 0)
			e.RetryDelay = &delay
		case *errdetails.RequestInfo:
			e.LogID = detail.GetRequestId()
		}
	}
	switch e.Code {
	case codes.Unavailable, codes.DeadlineExceeded:
		e.SafeToRepeat = true
	case codes.ResourceExhausted:
		e.SafeToRepeat = e.Reason == ReasonOverloaded || e.Reason == ReasonUpstreamThrottled ||
			e.Reason == ReasonStoreFull
	case codes.Canceled, codes.Unknown, codes.Internal:
		e.SafeToRepeat = e.Reason == "" && !own
	default:
		e.SafeToRepeat = e.Reason == ReasonOrderOutcomeUnknown
	}
	return e
}

// newError explains an error of a gRPC call that was made with a context.
func newError(ctx context.Context, err error) *Error {
	end := endOf(ctx)
	e := &Error{Explanation: explain(status.Convert(err), end != nil), cause: err}
	return e.endedBy(end)
}

// endedBy returns the error with the end of the caller's context in its chain.
func (e *Error) endedBy(end error) *Error {
	if end == nil || errors.Is(e.cause, end) {
		return e
	}
	return &Error{Explanation: e.Explanation, cause: fmt.Errorf("%w: %w", end, e.cause)}
}
