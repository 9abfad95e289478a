// An example of a service that orders an eSIM profile for each device that is provisioned.
//
// It reads a line "EID ICCID" for each device from its standard input, and prints what happens to
// the device. It keeps a file for each device in a folder, so that it continues after a restart. It
// ends when its input has ended and each device has a result.
//
// Usage: go run . TARGET ACCOUNT FOLDER
package main

import (
	"bufio"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"log"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	gateway "github.com/thingspace-gateway/thingspace-gateway/clients/go"
	"github.com/thingspace-gateway/thingspace-gateway/clients/go/esimv1"
)

// How long to wait before an order is tried again whose outcome is not known.
const pause = 10 * time.Second

// device is what the service stores about a device.
type device struct {
	EID, ICCID string

	// Key names the order. It is stored before the first call, and every later call uses it.
	Key string

	// RequestID is known when the order is placed.
	RequestID string

	// Result is the final state, or the error that has ended the order.
	Result string
}

type service struct {
	client          *gateway.Client
	account, folder string
	running         sync.WaitGroup
}

func main() {
	log.SetFlags(0)
	log.SetOutput(os.Stdout)
	target, account, folder := os.Args[1], os.Args[2], os.Args[3]
	client, err := gateway.Connect(target, gateway.Insecure(), nil)
	check(err)
	defer client.Close()
	s := &service{client: client, account: account, folder: folder}

	files, err := filepath.Glob(filepath.Join(folder, "*.json"))
	check(err)
	for _, file := range files {
		content, err := os.ReadFile(file)
		check(err)
		known := &device{}
		check(json.Unmarshal(content, known))
		s.start(known)
	}
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		if fields := strings.Fields(lines.Text()); len(fields) == 2 {
			s.provision(fields[0], fields[1])
		}
	}
	s.running.Wait()
}

// provision orders a profile for a new device.
func (s *service) provision(eid, iccid string) {
	added := &device{EID: eid, ICCID: iccid, Key: rand.Text()}
	if _, err := os.Stat(s.file(added)); err == nil {
		return // It is known already.
	}
	s.store(added)
	s.start(added)
}

func (s *service) start(d *device) {
	if d.Result == "" {
		s.running.Add(1)
		go func() {
			defer s.running.Done()
			s.run(d)
		}()
	}
}

// run orders a profile, unless that is done, and follows the request until it is final.
func (s *service) run(d *device) {
	ctx := context.Background()
	for d.RequestID == "" {
		placed, err := s.client.Order(ctx, gateway.Order{
			Account:        s.account,
			Devices:        []*esimv1.DeviceIdentifiers{{Eid: d.EID, Iccid: d.ICCID}},
			IdempotencyKey: d.Key,
		})
		var unknown *gateway.UnknownOutcomeError
		switch {
		case err == nil:
			d.RequestID = placed.RequestID
			s.store(d)
			log.Print(d.ICCID, " ordered")
		case errors.As(err, &unknown) || gateway.Explain(err).SafeToRepeat:
			log.Print(d.ICCID, " is tried again: ", err)
			time.Sleep(pause)
		default:
			s.end(d, "refused: "+err.Error())
			return
		}
	}
	options := &gateway.WatchOptions{TokenStore: gateway.FileTokenStore{Directory: filepath.Join(s.folder, "tokens")}}
	state := ""
	for update, err := range s.client.Watch(ctx, s.account, d.RequestID, options) {
		if err != nil {
			s.end(d, "failed: "+err.Error())
			return
		}
		state = strings.TrimPrefix(update.State().String(), "REQUEST_STATE_")
		log.Print(d.ICCID, " ", state)
	}
	s.end(d, state)
}

func (s *service) end(d *device, result string) {
	d.Result = result
	s.store(d)
	log.Print(d.ICCID, " done: ", result)
}

// store replaces the file of a device in one step.
func (s *service) store(d *device) {
	content, err := json.Marshal(d)
	check(err)
	file := s.file(d)
	check(os.WriteFile(file+".new", content, 0o600))
	check(os.Rename(file+".new", file))
}

func (s *service) file(d *device) string {
	return filepath.Join(s.folder, filepath.Base(d.ICCID)+".json")
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
