package gateway_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	gateway "github.com/thingspace-gateway/thingspace-gateway/clients/go"
	"github.com/thingspace-gateway/thingspace-gateway/clients/go/esimv1"
)

const (
	pending   = esimv1.RequestState_REQUEST_STATE_PENDING
	succeeded = esimv1.RequestState_REQUEST_STATE_SUCCEEDED
)

func devices(iccids string) []*esimv1.DeviceStatus {
	var result []*esimv1.DeviceStatus
	for _, iccid := range strings.Fields(iccids) {
		result = append(result, &esimv1.DeviceStatus{
			Identifiers: &esimv1.DeviceIdentifiers{Iccid: iccid},
		})
	}
	return result
}

// snapshot returns a message. Its token is that of its revision, or empty if more follows.
func snapshot(revision int64, state esimv1.RequestState, iccids string, more bool) *esimv1.WatchRequestResponse {
	return message(revision, more, &esimv1.WatchRequestResponse{
		Event: &esimv1.WatchRequestResponse_Snapshot{Snapshot: &esimv1.RequestStatus{
			State: state, Revision: revision, Devices: devices(iccids),
		}},
	})
}

func change(revision int64, state esimv1.RequestState, iccids string, more bool) *esimv1.WatchRequestResponse {
	return message(revision, more, &esimv1.WatchRequestResponse{
		Event: &esimv1.WatchRequestResponse_Change{Change: &esimv1.RequestChange{
			State: state, Revision: revision, Devices: devices(iccids),
		}},
	})
}

func heartbeat(revision int64) *esimv1.WatchRequestResponse {
	return message(revision, false, &esimv1.WatchRequestResponse{
		Event: &esimv1.WatchRequestResponse_Heartbeat{Heartbeat: &esimv1.Heartbeat{
			Revision: revision,
		}},
	})
}

func message(revision int64, more bool, m *esimv1.WatchRequestResponse) *esimv1.WatchRequestResponse {
	if m.More = more; !more {
		m.ResumeToken = fmt.Sprint("token ", revision)
	}
	return m
}

// stream is what a peer sends, and the error after that.
type stream struct {
	messages []*esimv1.WatchRequestResponse
	err      error
}

func streams(all ...stream) func(int, *esimv1.WatchRequestRequest, watchStream) error {
	return func(number int, _ *esimv1.WatchRequestRequest, to watchStream) error {
		if number >= len(all) {
			return status.Error(codes.OutOfRange, "the watch was opened too often")
		}
		for _, one := range all[number].messages {
			if err := to.Send(one); err != nil {
				return err
			}
		}
		return all[number].err
	}
}

func watched(ctx context.Context, client *gateway.Client, opts *gateway.WatchOptions) ([]string, error) {
	var updates []string
	for update, err := range client.Watch(ctx, account, "the request", opts) {
		if err != nil {
			return updates, err
		}
		kind := "change"
		if update.Snapshot != nil {
			kind = "snapshot"
		}
		text := fmt.Sprintf("%s %d %s:", kind, update.Revision(), update.Token)
		for _, device := range update.Devices() {
			text += " " + device.GetIdentifiers().GetIccid()
		}
		updates = append(updates, text)
	}
	return updates, nil
}

func expect(t *testing.T, got []string, want ...string) {
	t.Helper()
	equal(t, strings.Join(got, "\n"), strings.Join(want, "\n"))
}

var streamAge = failure(codes.Unavailable, gateway.ReasonStreamAge, nil, retryAfter(0))

func TestAWatchEndsAfterTheFinalState(t *testing.T) {
	client := connect(t, startGateway(t))
	ordered, err := client.Order(contextOf(t), order("a key", good, bad))
	check(t, err)
	var last gateway.Update
	for update, err := range client.Watch(contextOf(t), account, ordered.RequestID, nil) {
		check(t, err)
		if last.Token == "" {
			equal(t, len(update.Devices()), 2)
		}
		last = update
	}
	equal(t, last.State(), esimv1.RequestState_REQUEST_STATE_PARTIALLY_SUCCEEDED)
	equal(t, last.Counts().GetSucceeded(), 1)
	equal(t, last.Counts().GetFailed(), 1)

	options := &gateway.WatchOptions{Token: last.Token}
	for update, err := range client.Watch(contextOf(t), account, ordered.RequestID, options) {
		t.Fatal(update, err)
	}
	for _, err := range client.Watch(contextOf(t), account, "unknown-request", nil) {
		equal(t, gateway.Explain(err).Reason, gateway.ReasonRequestNotFound)
	}
}

func TestAWatchIsResumedAfterTheLastCompleteRevision(t *testing.T) {
	peer := &peer{watch: streams(
		stream{[]*esimv1.WatchRequestResponse{
			snapshot(1, pending, "a b", true), snapshot(1, pending, "c", false),
			change(2, pending, "a", false), change(3, pending, "b", true),
		}, streamAge},
		stream{nil, status.Error(codes.Canceled, "a connection broke")},
		stream{[]*esimv1.WatchRequestResponse{
			heartbeat(2), change(3, pending, "b", true), change(3, pending, "c", false),
		}, status.Error(codes.Internal, "unexpected EOF")},
		stream{[]*esimv1.WatchRequestResponse{change(4, succeeded, "c", false)}, nil},
	)}
	updates, err := watched(contextOf(t), connect(t, peer.start(t)), nil)
	check(t, err)
	expect(t, updates, "snapshot 1 token 1: a b c", "change 2 token 2: a", "change 3 token 3: b c",
		"change 4 token 4: c")
	expect(t, peer.tokens(), "", "token 2", "token 2", "token 3")
}

func TestARefusedTokenIsReplacedByASnapshotWithoutARepetition(t *testing.T) {
	refused := failure(codes.InvalidArgument, gateway.ReasonInvalidResumeToken, nil)
	peer := &peer{watch: streams(
		stream{nil, refused},
		stream{[]*esimv1.WatchRequestResponse{snapshot(1, pending, "a", false)}, streamAge},
		stream{nil, refused},
		stream{[]*esimv1.WatchRequestResponse{snapshot(1, pending, "a", false)}, streamAge},
		stream{[]*esimv1.WatchRequestResponse{snapshot(3, succeeded, "a", false)}, nil},
	)}
	updates, err := watched(contextOf(t), connect(t, peer.start(t)),
		&gateway.WatchOptions{Token: "old"})
	check(t, err)
	expect(t, updates, "snapshot 1 token 1: a", "snapshot 3 token 3: a")
	expect(t, peer.tokens(), "old", "", "token 1", "", "token 1")
}

func TestARefusalWithoutATokenEndsAWatch(t *testing.T) {
	peer := &peer{watch: streams(
		stream{nil, failure(codes.InvalidArgument, gateway.ReasonInvalidResumeToken, nil)},
	)}
	_, err := watched(contextOf(t), connect(t, peer.start(t)), nil)
	equal(t, gateway.Explain(err).Reason, gateway.ReasonInvalidResumeToken)
}

func TestExpiredCredentialsAreReplacedOnce(t *testing.T) {
	expired := failure(codes.Unauthenticated, gateway.ReasonCallerUnauthenticated, nil)
	first := stream{[]*esimv1.WatchRequestResponse{snapshot(1, pending, "a", false)}, expired}
	peer := &peer{watch: streams(first, stream{nil, expired})}
	updates, err := watched(contextOf(t), connect(t, peer.start(t)), nil)
	expect(t, updates, "snapshot 1 token 1: a")
	equal(t, gateway.Explain(err).Reason, gateway.ReasonCallerUnauthenticated)
	expect(t, peer.tokens(), "", "token 1")
}

func TestAWatchIsNotResumedAfterOtherErrors(t *testing.T) {
	for _, err := range []error{
		failure(codes.FailedPrecondition, gateway.ReasonStillPending, nil),
		failure(codes.PermissionDenied, gateway.ReasonCallerNotAllowed, nil),
		failure(codes.Unauthenticated, gateway.ReasonCallerUnauthenticated, nil),
		status.Error(codes.Unimplemented, "no such service"),
	} {
		peer := &peer{watch: streams(stream{nil, err})}
		_, got := watched(contextOf(t), connect(t, peer.start(t)), nil)
		var failed *gateway.Error
		if !errors.As(got, &failed) {
			t.Fatal(got)
		}
		equal(t, failed.Code, status.Code(err))
		equal(t, len(peer.tokens()), 1)
	}
}

func TestASilentStreamIsOpenedAgain(t *testing.T) {
	peer := &peer{watch: func(number int, _ *esimv1.WatchRequestRequest, to watchStream) error {
		switch number {
		case 0:
			if err := to.Send(snapshot(1, pending, "a", false)); err != nil {
				return err
			}
		case 2:
			return to.Send(change(2, succeeded, "a", false))
		}
		<-to.Context().Done()
		return nil
	}}
	updates, err := watched(contextOf(t), connect(t, peer.start(t)),
		&gateway.WatchOptions{IdleTimeout: 50 * time.Millisecond})
	check(t, err)
	expect(t, updates, "snapshot 1 token 1: a", "change 2 token 2: a")
	expect(t, peer.tokens(), "", "token 1", "token 1")
}

func TestTheTimeOfTheConsumerIsNotIdle(t *testing.T) {
	const idleTimeout = 200 * time.Millisecond
	consumed := make(chan struct{}, 2)
	peer := &peer{watch: func(_ int, _ *esimv1.WatchRequestRequest, to watchStream) error {
		if err := to.Send(snapshot(1, pending, "a", false)); err != nil {
			return err
		}
		<-consumed
		return to.Send(change(2, succeeded, "a", false))
	}}
	client := connect(t, peer.start(t))
	options := &gateway.WatchOptions{IdleTimeout: idleTimeout}
	for _, err := range client.Watch(contextOf(t), account, "the request", options) {
		check(t, err)
		time.Sleep(2 * idleTimeout) // The work of the consumer.
		consumed <- struct{}{}
	}
	equal(t, len(peer.tokens()), 1)
}

// openEnded sends a snapshot and waits for the caller. It signals when the stream has ended.
func openEnded() (watch func(int, *esimv1.WatchRequestRequest, watchStream) error, ended chan struct{}) {
	ended = make(chan struct{}, 1000)
	return func(_ int, _ *esimv1.WatchRequestRequest, to watchStream) error {
		defer func() { ended <- struct{}{} }()
		if err := to.Send(snapshot(1, pending, "a", false)); err != nil {
			return err
		}
		<-to.Context().Done()
		return to.Context().Err()
	}, ended
}

func TestTheEndOfTheLoopEndsTheStreamAndLeavesNothing(t *testing.T) {
	watch, ended := openEnded()
	client := connect(t, (&peer{watch: watch}).start(t))
	once := func() {
		for _, err := range client.Watch(contextOf(t), account, "the request", nil) {
			check(t, err)
			break
		}
		receive(t, ended, "the end of the stream")
	}
	once() // Opens the connection.
	leftNothing := leavesNothing(t)
	for range 20 {
		once()
	}
	leftNothing()
}

func TestACancelledWatchEndsAtOnce(t *testing.T) {
	watch, ended := openEnded()
	client := connect(t, (&peer{watch: watch}).start(t))
	ctx, cancel := context.WithCancel(contextOf(t))
	defer cancel()
	begun := make(chan struct{}, 1)
	errs := make(chan error, 1)
	go func() {
		for _, err := range client.Watch(ctx, account, "the request", nil) {
			if err != nil {
				errs <- err
			} else {
				begun <- struct{}{}
			}
		}
	}()
	receive(t, begun, "the watch")
	cancel()
	if err := receive(t, errs, "the end of the watch"); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	receive(t, ended, "the end of the stream")
}

// lines passes each line of a log on.
type lines chan string

func (l lines) Write(line []byte) (int, error) {
	l <- string(line)
	return len(line), nil
}

func TestAWatchIsCancelledDuringAPause(t *testing.T) {
	overloaded := failure(codes.ResourceExhausted, gateway.ReasonOverloaded, nil, retryAfter(time.Hour))
	peer := &peer{watch: streams(stream{nil, overloaded})}
	log := make(lines, 1)
	client, err := gateway.Connect(peer.start(t), gateway.Insecure(), &gateway.Options{
		Logger: slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug})),
	})
	check(t, err)
	defer client.Close()
	ctx, cancel := context.WithCancel(contextOf(t))
	defer cancel()
	errs := make(chan error, 1)
	go func() {
		_, err := watched(ctx, client, &gateway.WatchOptions{Token: "secret"})
		errs <- err
	}()
	line := receive(t, log, "the pause")
	if !strings.Contains(line, "reason=OVERLOADED wait=1h") || strings.Contains(line, "secret") {
		t.Fatal(line)
	}
	cancel()
	if err := receive(t, errs, "the end of the watch"); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
}

func TestCloseEndsWatchesAndLeavesNothing(t *testing.T) {
	watch, ended := openEnded()
	address := (&peer{watch: watch}).start(t)
	leftNothing := leavesNothing(t)
	client := connect(t, address)
	for _, err := range client.Watch(contextOf(t), account, "the request", nil) {
		if err != nil {
			if !errors.Is(err, gateway.ErrClosed) {
				t.Fatal(err)
			}
			continue
		}
		check(t, client.Close())
		receive(t, ended, "the end of the stream")
	}
	leftNothing()
	_, err := watched(contextOf(t), client, nil)
	if !errors.Is(err, gateway.ErrClosed) {
		t.Fatal(err)
	}
}

func TestAConnectionCarriesAtMost100Watches(t *testing.T) {
	watch, _ := openEnded()
	peer := &peer{watch: watch}
	client := connect(t, peer.start(t))
	begun := make(chan struct{}, 300)
	ends := make(chan error, 300)
	open := func(ctx context.Context, count int) {
		for range count {
			go func() {
				for _, err := range client.Watch(ctx, account, "the request", nil) {
					if err != nil {
						ends <- err
						return
					}
					begun <- struct{}{}
				}
			}()
		}
		for range count {
			receive(t, begun, "a watch")
		}
	}
	connections := func(count int) {
		t.Helper()
		waitUntil(t, fmt.Sprint(count, " connections"), func() bool {
			open, _ := peer.listener.counts()
			return open == count
		})
	}
	first, cancelFirst := context.WithCancel(contextOf(t))
	defer cancelFirst()
	open(first, 100)
	connections(1)
	second, cancelSecond := context.WithCancel(contextOf(t))
	defer cancelSecond()
	open(second, 1)
	connections(2)
	cancelSecond()
	receive(t, ends, "the end of a watch")
	connections(1)
	cancelFirst()
	for range 100 {
		receive(t, ends, "the end of a watch")
	}
	// The last connection stays, and the next watch uses it.
	open(contextOf(t), 1)
	_, accepted := peer.listener.counts()
	equal(t, accepted, 2)
}

func TestATokenIsStoredWhenTheNextUpdateIsRequested(t *testing.T) {
	store := gateway.FileTokenStore{Directory: t.TempDir()}
	stored := func() string {
		token, err := store.Load(context.Background(), account, "the request")
		check(t, err)
		return token
	}
	peer := &peer{watch: streams(
		stream{[]*esimv1.WatchRequestResponse{
			snapshot(1, pending, "a", false), change(2, pending, "a", false),
		}, streamAge},
		stream{[]*esimv1.WatchRequestResponse{
			change(2, pending, "a", false), change(3, succeeded, "a", false),
		}, nil},
	)}
	client := connect(t, peer.start(t))
	options := &gateway.WatchOptions{TokenStore: store}
	for update, err := range client.Watch(contextOf(t), account, "the request", options) {
		check(t, err)
		if update.Revision() == 1 {
			equal(t, stored(), "")
		} else {
			equal(t, stored(), "token 1")
			break // The update was not processed.
		}
	}
	equal(t, stored(), "token 1")
	updates, err := watched(contextOf(t), client, options)
	check(t, err)
	expect(t, updates, "change 2 token 2: a", "change 3 token 3: a")
	expect(t, peer.tokens(), "", "token 1")
	equal(t, stored(), "")
}

type brokenStore struct{ gateway.FileTokenStore }

var errStore = errors.New("the disk is full")

func (brokenStore) Save(context.Context, string, string, string) error { return errStore }

func TestAnErrorOfTheTokenStoreEndsAWatch(t *testing.T) {
	watch, ended := openEnded()
	client := connect(t, (&peer{watch: watch}).start(t))
	options := &gateway.WatchOptions{
		TokenStore: brokenStore{gateway.FileTokenStore{Directory: t.TempDir()}},
	}
	updates, err := watched(contextOf(t), client, options)
	equal(t, len(updates), 1)
	if !errors.Is(err, errStore) {
		t.Fatal(err)
	}
	receive(t, ended, "the end of the stream")
}
