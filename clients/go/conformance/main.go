// The driver of the conformance tests for the Go client: it reads commands as lines of JSON, and
// prints events as lines of JSON.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"os"
	"runtime"
	"strings"
	"sync"
	"time"

	rpccode "google.golang.org/genproto/googleapis/rpc/code"

	gateway "github.com/thingspace-gateway/thingspace-gateway/clients/go"
	"github.com/thingspace-gateway/thingspace-gateway/clients/go/esimv1"
)

type config struct {
	Target             string
	Plaintext          bool
	CAFile             string  `json:"ca_file"`
	CertFile           string  `json:"cert_file"`
	KeyFile            string  `json:"key_file"`
	TokenFile          string  `json:"token_file"`
	IdleTimeoutSeconds float64 `json:"idle_timeout_seconds"`
}

type device struct {
	EID   string
	ICCID string
	IMEI  string
}

type command struct {
	Do             string
	ID             string
	Account        string
	Key            string
	Devices        []device
	ServicePlan    string  `json:"service_plan"`
	TimeoutSeconds float64 `json:"timeout_seconds"`
	RequestID      string  `json:"request_id"`
	Token          string
	TokenFolder    string  `json:"token_folder"`
	PauseMS        float64 `json:"pause_ms"`
	StopAfter      int     `json:"stop_after"`
}

type event map[string]any

type driver struct {
	client *gateway.Client
	config config

	output  sync.Mutex
	running sync.WaitGroup

	mutex   sync.Mutex
	cancels map[string]context.CancelFunc
}

func main() {
	d := &driver{cancels: map[string]context.CancelFunc{}}
	content, err := os.ReadFile(os.Args[1])
	check(err)
	check(json.Unmarshal(content, &d.config))
	creds := gateway.Insecure()
	if !d.config.Plaintext {
		creds = gateway.TLS(gateway.TLSFiles{
			CA: d.config.CAFile, Cert: d.config.CertFile, Key: d.config.KeyFile,
		})
	}
	if d.config.TokenFile != "" {
		creds = creds.WithTokenFile(d.config.TokenFile)
	}
	logger := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
	d.client, err = gateway.Connect(d.config.Target, creds, &gateway.Options{Logger: logger})
	check(err)
	d.print(event{"event": "ready"})
	lines := bufio.NewReader(os.Stdin)
	for {
		line, err := lines.ReadBytes('\n')
		if len(line) == 0 && err != nil {
			break
		}
		var c command
		check(json.Unmarshal(line, &c))
		if c.Do == "close" {
			break
		}
		d.execute(c)
	}
	check(d.client.Close())
	d.running.Wait()
	d.print(event{"event": "closed"})
}

func check(err error) {
	if err != nil {
		panic(err)
	}
}

func (d *driver) print(e event) {
	d.output.Lock()
	defer d.output.Unlock()
	line, err := json.Marshal(e)
	check(err)
	_, err = os.Stdout.Write(append(line, '\n'))
	check(err)
}

func (d *driver) execute(c command) {
	switch c.Do {
	case "order":
		d.start(c, d.order)
	case "watch":
		d.start(c, d.watch)
	case "cancel":
		d.mutex.Lock()
		defer d.mutex.Unlock()
		if cancel, running := d.cancels[c.ID]; running {
			cancel()
		}
	case "resources":
		d.print(event{"event": "resources", "count": runtime.NumGoroutine(), "what": "goroutines"})
	default:
		panic("unknown command: " + c.Do)
	}
}

func (d *driver) start(c command, run func(context.Context, command) event) {
	ctx, cancel := context.WithCancel(context.Background())
	d.mutex.Lock()
	d.cancels[c.ID] = cancel
	d.mutex.Unlock()
	d.running.Add(1)
	go func() {
		defer d.running.Done()
		last := run(ctx, c)
		cancel()
		d.mutex.Lock()
		delete(d.cancels, c.ID)
		d.mutex.Unlock()
		last["id"] = c.ID
		d.print(last)
	}()
}

func (d *driver) order(ctx context.Context, c command) event {
	if c.TimeoutSeconds > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, seconds(c.TimeoutSeconds))
		defer cancel()
	}
	order := gateway.Order{Account: c.Account, IdempotencyKey: c.Key, ServicePlan: c.ServicePlan}
	for _, one := range c.Devices {
		order.Devices = append(order.Devices,
			&esimv1.DeviceIdentifiers{Eid: one.EID, Iccid: one.ICCID, Imei: one.IMEI})
	}
	ordered, err := d.client.Order(ctx, order)
	if err != nil {
		return failed(err)
	}
	return event{"event": "ordered", "request_id": ordered.RequestID, "replayed": ordered.Replayed}
}

func (d *driver) watch(ctx context.Context, c command) event {
	options := &gateway.WatchOptions{
		Token:       c.Token,
		IdleTimeout: seconds(d.config.IdleTimeoutSeconds),
	}
	if c.TokenFolder != "" {
		options.TokenStore = gateway.FileTokenStore{Directory: c.TokenFolder}
	}
	printed := 0
	for update, err := range d.client.Watch(ctx, c.Account, c.RequestID, options) {
		if err != nil {
			return failed(err)
		}
		d.print(updated(c.ID, update))
		printed++
		if printed == c.StopAfter {
			return event{"event": "stopped"}
		}
		select {
		case <-ctx.Done():
		case <-time.After(seconds(c.PauseMS / 1000)):
		}
	}
	return event{"event": "end"}
}

func seconds(number float64) time.Duration {
	return time.Duration(number * float64(time.Second))
}

func updated(id string, update gateway.Update) event {
	kind := "change"
	if update.Snapshot != nil {
		kind = "snapshot"
	}
	devices := []event{}
	for _, one := range update.Devices() {
		devices = append(devices, event{
			"iccid": one.GetIdentifiers().GetIccid(),
			"state": strings.TrimPrefix(one.GetState().String(), "DEVICE_STATE_"),
			"fault": one.GetFault().GetCode(),
		})
	}
	counts := update.Counts()
	return event{
		"id":       id,
		"event":    kind,
		"state":    strings.TrimPrefix(update.State().String(), "REQUEST_STATE_"),
		"revision": update.Revision(),
		"counts": event{
			"total":     counts.GetTotal(),
			"pending":   counts.GetPending(),
			"succeeded": counts.GetSucceeded(),
			"failed":    counts.GetFailed(),
		},
		"devices": devices,
		"token":   update.Token,
	}
}

func failed(err error) event {
	if errors.Is(err, context.Canceled) || errors.Is(err, gateway.ErrClosed) {
		return event{"event": "cancelled"}
	}
	e := gateway.Explain(err)
	violations := []event{}
	for _, one := range e.Violations {
		violations = append(violations, event{"field": one.Field, "description": one.Description})
	}
	result := event{
		"event":               "error",
		"kind":                "gateway",
		"code":                rpccode.Code(e.Code).String(),
		"reason":              e.Reason,
		"message":             e.Message,
		"violations":          violations,
		"retry_delay_seconds": nil,
		"safe_to_repeat":      e.SafeToRepeat,
		"metadata":            e.Metadata,
		"order_id":            nil,
		"request_id":          nil,
	}
	if e.RetryDelay != nil {
		result["retry_delay_seconds"] = e.RetryDelay.Seconds()
	}
	if e.Metadata == nil {
		result["metadata"] = event{}
	}
	var unknown *gateway.UnknownOutcomeError
	if errors.As(err, &unknown) {
		result["kind"] = "unknown_outcome"
		if unknown.OrderID != "" {
			result["order_id"] = unknown.OrderID
		}
		if unknown.RequestID != "" {
			result["request_id"] = unknown.RequestID
		}
	}
	return result
}
