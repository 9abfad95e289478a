package gateway_test

import (
	"context"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	gateway "github.com/thingspace-gateway/thingspace-gateway/clients/go"
	"github.com/thingspace-gateway/thingspace-gateway/clients/go/esimv1"
)

func TestExplanationsHaveEveryDetailOfAnError(t *testing.T) {
	err := failure(codes.InvalidArgument, gateway.ReasonInvalidField, map[string]string{"a": "b"},
		&errdetails.BadRequest{FieldViolations: []*errdetails.BadRequest_FieldViolation{
			{Field: "devices[0].eid", Description: "must be 32 digits"},
			{Field: "account_name", Description: "is required"},
		}},
		retryAfter(1500*time.Millisecond),
		&errdetails.RequestInfo{RequestId: "log id"})
	e := gateway.Explain(fmt.Errorf("wrapped: %w", err))
	equal(t, e.Code, codes.InvalidArgument)
	equal(t, e.Reason, gateway.ReasonInvalidField)
	equal(t, e.Message, "a message")
	equal(t, len(e.Violations), 2)
	equal(t, e.Violations[0], gateway.Violation{
		Field: "devices[0].eid", Description: "must be 32 digits",
	})
	equal(t, *e.RetryDelay, 1500*time.Millisecond)
	equal(t, e.SafeToRepeat, false)
	equal(t, e.Metadata["a"], "b")
	equal(t, e.LogID, "log id")
}

func TestAnErrorWithoutDetailsHasNone(t *testing.T) {
	e := gateway.Explain(status.Error(codes.NotFound, "a message"))
	if e.Reason != "" || e.Violations != nil || e.RetryDelay != nil || e.Metadata != nil ||
		e.LogID != "" {
		t.Fatalf("%+v", e)
	}
}

func TestReasonsOfOtherDomainsAreIgnored(t *testing.T) {
	e := gateway.Explain(withDetails(codes.Internal,
		&errdetails.ErrorInfo{Domain: "example.com", Reason: "INTERNAL"}))
	equal(t, e.Reason, "")
	equal(t, e.SafeToRepeat, true)
}

func TestExplanationsSayWhetherRepeatingIsSafe(t *testing.T) {
	for _, one := range []struct {
		err  error
		safe bool
	}{
		{nil, false},
		{failure(codes.Unavailable, gateway.ReasonDraining, nil), true},
		{failure(codes.Unavailable, gateway.ReasonOrderInProgress, nil), true},
		{failure(codes.Unavailable, gateway.ReasonCallerUnauthenticated, nil), true},
		{status.Error(codes.Unavailable, "connection refused"), true},
		{failure(codes.ResourceExhausted, gateway.ReasonOverloaded, nil), true},
		{failure(codes.ResourceExhausted, gateway.ReasonUpstreamThrottled, nil), true},
		{failure(codes.ResourceExhausted, gateway.ReasonStoreFull, nil), true},
		{failure(codes.ResourceExhausted, "A_NEW_REASON", nil), false},
		{status.Error(codes.ResourceExhausted, "message too large"), false},
		{failure(codes.DeadlineExceeded, gateway.ReasonDeadline, nil), true},
		{status.Error(codes.DeadlineExceeded, "deadline"), true},
		{context.DeadlineExceeded, true},
		{failure(codes.FailedPrecondition, gateway.ReasonOrderOutcomeUnknown, nil), true},
		{failure(codes.FailedPrecondition, gateway.ReasonStillPending, nil), false},
		{failure(codes.Unauthenticated, gateway.ReasonCallerUnauthenticated, nil), false},
		{status.Error(codes.Canceled, "stream reset"), true},
		{status.Error(codes.Unknown, "no answer"), true},
		{status.Error(codes.Internal, "unexpected EOF"), true},
		{failure(codes.Internal, gateway.ReasonInternal, nil), false},
		{failure(codes.Internal, gateway.ReasonMalformedCall, nil), false},
		{status.FromContextError(context.Canceled).Err(), false},
		{context.Canceled, false},
		{errors.New("no error of a call"), false},
	} {
		if e := gateway.Explain(one.err); e.SafeToRepeat != one.safe {
			t.Errorf("%v: %+v", one.err, e)
		}
	}
}

func TestEveryReasonOfTheAPIHasAConstant(t *testing.T) {
	file, err := parser.ParseFile(token.NewFileSet(), "reasons.go", nil, 0)
	check(t, err)
	constants := map[string]string{}
	ast.Inspect(file, func(node ast.Node) bool {
		if spec, ok := node.(*ast.ValueSpec); ok {
			value, err := strconv.Unquote(spec.Values[0].(*ast.BasicLit).Value)
			check(t, err)
			constants[spec.Names[0].Name] = value
		}
		return true
	})
	for name, number := range esimv1.ErrorReason_value {
		if number == 0 {
			continue
		}
		reason := strings.TrimPrefix(name, "ERROR_REASON_")
		constant := "Reason"
		for _, word := range strings.Split(reason, "_") {
			constant += word[:1] + strings.ToLower(word[1:])
		}
		equal(t, constants[constant], reason)
		delete(constants, constant)
	}
	equal(t, len(constants), 0)
}
