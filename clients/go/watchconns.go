package gateway

import (
	"slices"
	"sync"

	"google.golang.org/grpc"

	"github.com/thingspace-gateway/thingspace-gateway/clients/go/esimv1"
)

const (
	// The gateway and proxies limit the streams of a connection. A call above the limit waits
	// without an error.
	maxWatchesPerConn = 100

	// The bytes that a watch buffers for a slow consumer, besides one message. gRPC would increase
	// its window without this, and the gateway would not notice the slow reader.
	watchWindow = 64 << 10
)

// watchConns are the connections for watches. Each carries at most maxWatchesPerConn watches.
type watchConns struct {
	target  string
	options []grpc.DialOption

	mutex  sync.Mutex
	conns  []*watchConn
	closed bool
}

type watchConn struct {
	conn    *grpc.ClientConn
	stub    esimv1.EsimServiceClient
	watches int
}

// acquire returns a connection with room for a watch. The caller must release it.
func (w *watchConns) acquire() (*watchConn, error) {
	w.mutex.Lock()
	defer w.mutex.Unlock()
	if w.closed {
		return nil, ErrClosed
	}
	for _, one := range w.conns {
		if one.watches < maxWatchesPerConn {
			one.watches++
			return one, nil
		}
	}
	options := append(slices.Clone(w.options), grpc.WithStaticStreamWindowSize(watchWindow))
	conn, err := grpc.NewClient(w.target, options...)
	if err != nil {
		return nil, err
	}
	one := &watchConn{conn: conn, stub: esimv1.NewEsimServiceClient(conn), watches: 1}
	w.conns = append(w.conns, one)
	return one, nil
}

// release ends the use of a connection, and closes it if it is not used and not the only one.
func (w *watchConns) release(one *watchConn) {
	w.mutex.Lock()
	defer w.mutex.Unlock()
	one.watches--
	if one.watches == 0 && len(w.conns) > 1 {
		w.conns = slices.DeleteFunc(w.conns, func(other *watchConn) bool { return other == one })
		_ = one.conn.Close() // Fails only if it is closed already.
	}
}

func (w *watchConns) close() {
	w.mutex.Lock()
	defer w.mutex.Unlock()
	w.closed = true
	for _, one := range w.conns {
		_ = one.conn.Close() // Fails only if it is closed already.
	}
	w.conns = nil
}
