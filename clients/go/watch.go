package gateway

import (
	"context"
	"errors"
	"io"
	"iter"
	"log/slog"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/thingspace-gateway/thingspace-gateway/clients/go/esimv1"
)

// DefaultIdleTimeout is the IdleTimeout of [WatchOptions] that do not set one.
const DefaultIdleTimeout = time.Minute

// errStopped ends a watch whose consumer has ended its loop.
var errStopped = errors.New("the consumer has ended its loop")

// errIdle ends a stream without messages.
var errIdle = status.Error(codes.Unavailable, "no message came within the idle timeout")

// WatchOptions are the optional settings of [Client.Watch].
type WatchOptions struct {
	// Token continues after the update that had it. Empty: TokenStore has it, or the watch begins
	// with a snapshot.
	Token string

	// TokenStore keeps the token of the last processed update. An update is processed when the
	// consumer asks for the next one: only then its token is saved. If the process ends before
	// that, the update comes again in the next watch with the store (at least once). The token is
	// deleted after the final update was processed. Nil: tokens are not stored.
	TokenStore TokenStore

	// IdleTimeout is how long a stream may be without a message, also without a heartbeat, before
	// it is opened again. It must be longer than the gateway's heartbeat (25 s). 0:
	// DefaultIdleTimeout.
	IdleTimeout time.Duration
}

// Update is a new state of a request.
type Update struct {
	// Snapshot is the whole state of the request. It replaces all that is known about it. Nil if
	// the update is a change.
	Snapshot *esimv1.RequestStatus

	// Change has the devices that have changed, in the sequence of their changes. A device may
	// occur more than once. Nil if the update is a snapshot.
	Change *esimv1.RequestChange

	// Token continues a later watch after this update: see [WatchOptions].
	Token string
}

// State returns the state of the request as a whole. Every state but PENDING is final.
func (u Update) State() esimv1.RequestState {
	if u.Snapshot != nil {
		return u.Snapshot.GetState()
	}
	return u.Change.GetState()
}

// Revision returns the number of the last change of the request.
func (u Update) Revision() int64 {
	if u.Snapshot != nil {
		return u.Snapshot.GetRevision()
	}
	return u.Change.GetRevision()
}

// Counts returns the number of devices in each state.
func (u Update) Counts() *esimv1.DeviceCounts {
	if u.Snapshot != nil {
		return u.Snapshot.GetCounts()
	}
	return u.Change.GetCounts()
}

// Devices returns all devices of a snapshot, or the changed devices of a change.
func (u Update) Devices() []*esimv1.DeviceStatus {
	if u.Snapshot != nil {
		return u.Snapshot.GetDevices()
	}
	return u.Change.GetDevices()
}

// Watch returns the updates of a request: a snapshot, unless the watch continues after a token, then
// each change once and in order. The loop ends after the final state. After a break of the
// connection, the watch is resumed where it was. An error is the last element, and is an [*Error],
// the error of the context, [ErrClosed], or an error of the token store.
//
// The end of the loop or of the context ends the watch at once. Do not end the loop at the final
// state: it ends by itself then, after it has deleted the token. Each loop over the result is a
// watch of its own. Opts may be nil.
//
// While the consumer works on an update, the client buffers at most a few messages. After 30 s, the
// gateway ends the stream of a slow consumer. The client resumes it without loss when the consumer
// asks for the next update.
func (c *Client) Watch(
	ctx context.Context, account, requestID string, opts *WatchOptions,
) iter.Seq2[Update, error] {
	if opts == nil {
		opts = &WatchOptions{}
	}
	return func(yield func(Update, error) bool) {
		ctx, unbind := c.bind(ctx)
		defer unbind()
		w := watch{
			client:      c,
			account:     account,
			requestID:   requestID,
			token:       opts.Token,
			store:       opts.TokenStore,
			idleTimeout: opts.IdleTimeout,
			revision:    -1,
		}
		if w.store == nil {
			w.store = noTokens{}
		}
		if w.idleTimeout <= 0 {
			w.idleTimeout = DefaultIdleTimeout
		}
		err := w.run(ctx, func(update Update) bool { return yield(update, nil) })
		if end := endOf(ctx); end != nil && err != nil && !errors.Is(err, errStopped) {
			err = end
		}
		if err != nil && !errors.Is(err, errStopped) {
			yield(Update{}, err)
		}
	}
}

// watch is one loop over the result of [Client.Watch].
type watch struct {
	client             *Client
	account, requestID string
	store              TokenStore
	idleTimeout        time.Duration

	// The token of the last complete revision, and the revision of the last update.
	token    string
	revision int64

	// Whether the gateway has accepted the credentials since it last refused them.
	accepted bool
	pauses   pauses
}

// run returns nil after the final state, and errStopped if the consumer has ended its loop.
func (w *watch) run(ctx context.Context, yield func(Update) bool) error {
	if err := checkEncodable(w.request()); err != nil {
		return err
	}
	conn, err := w.client.watches.acquire()
	if err != nil {
		return err
	}
	defer w.client.watches.release(conn)
	if w.token == "" {
		if w.token, err = w.store.Load(ctx, w.account, w.requestID); err != nil {
			return err
		}
	}
	for {
		broken, err := w.stream(ctx, conn.stub, yield)
		if broken == nil {
			return err
		}
		if err := w.resume(ctx, broken); err != nil {
			return err
		}
	}
}

func (w *watch) request() *esimv1.WatchRequestRequest {
	return &esimv1.WatchRequestRequest{
		AccountName: w.account,
		RequestId:   w.requestID,
		ResumeToken: w.token,
	}
}

// stream opens the stream and delivers its updates. The first error is that of a stream that broke.
// If it is nil, the watch has ended, and the second error says how.
func (w *watch) stream(ctx context.Context, stub esimv1.EsimServiceClient,
	yield func(Update) bool) (broken, end error) {
	call, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	idle := time.AfterFunc(w.idleTimeout, func() { cancel(errIdle) })
	defer idle.Stop()
	stream, err := stub.WatchRequest(call, w.request())
	var earlier []*esimv1.DeviceStatus // The devices of the earlier parts of the revision.
	for err == nil {
		var message *esimv1.WatchRequestResponse
		if message, err = stream.Recv(); err != nil {
			break
		}
		idle.Stop() // The time of the consumer does not count.
		w.accepted = true
		w.pauses.reset()
		update := Update{message.GetSnapshot(), message.GetChange(), message.GetResumeToken()}
		if message.GetMore() {
			earlier = append(earlier, update.Devices()...)
		} else {
			if update.Token != "" {
				w.token = update.Token
			}
			update.prepend(earlier)
			earlier = nil
			if end = w.deliver(ctx, update, yield); end != nil {
				return nil, end
			}
		}
		idle.Reset(w.idleTimeout)
	}
	if errors.Is(err, io.EOF) {
		return nil, w.store.Delete(ctx, w.account, w.requestID)
	}
	if errors.Is(context.Cause(call), errIdle) {
		err = errIdle
	}
	return err, nil
}

// prepend adds the devices of the earlier parts of the same revision.
func (u Update) prepend(earlier []*esimv1.DeviceStatus) {
	if len(earlier) == 0 {
		return
	}
	devices := append(earlier, u.Devices()...)
	if u.Snapshot != nil {
		u.Snapshot.Devices = devices
	} else if u.Change != nil {
		u.Change.Devices = devices
	}
}

// deliver delivers a complete update, and saves its token when the consumer asks for the next one. A
// heartbeat is not delivered, and neither is a snapshot of the revision that was delivered last.
func (w *watch) deliver(ctx context.Context, update Update, yield func(Update) bool) error {
	if update.Snapshot == nil && update.Change == nil || update.Revision() == w.revision {
		return nil
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	w.revision = update.Revision()
	if !yield(update) {
		return errStopped
	}
	return w.store.Save(ctx, w.account, w.requestID, update.Token)
}

// resume waits before the stream is opened again. It returns an error if it must not be opened.
func (w *watch) resume(ctx context.Context, broken error) error {
	failure := newError(ctx, broken)
	switch {
	case failure.SafeToRepeat:
	case failure.Reason == ReasonInvalidResumeToken && w.token != "":
		w.token = ""
	case failure.Code == codes.Unauthenticated && w.accepted:
		// The credentials have expired. If new ones are refused, too, they are wrong.
		w.accepted = false
	default:
		return failure
	}
	wait, jitter := w.pauses.next()
	if failure.RetryDelay != nil {
		wait = max(wait, *failure.RetryDelay)
	}
	wait += jitter
	w.client.logger.LogAttrs(ctx, slog.LevelDebug, "resuming a watch",
		slog.String("account", w.account),
		slog.String("request_id", w.requestID),
		slog.String("code", failure.Code.String()),
		slog.String("reason", failure.Reason),
		slog.Duration("wait", wait))
	if !sleep(ctx, wait) {
		return endOf(ctx)
	}
	return nil
}
