package gateway

import (
	"math/rand/v2"
	"time"
)

const (
	firstPause   = 500 * time.Millisecond
	longestPause = 30 * time.Second
)

// pauses are the waits between repetitions. Each is twice as long as the one before.
type pauses struct {
	last time.Duration
}

// next returns the next pause without jitter, and the jitter to add, which is up to half of it.
func (p *pauses) next() (pause, jitter time.Duration) {
	p.last = min(max(2*p.last, firstPause), longestPause)
	return p.last, rand.N(p.last / 2)
}

func (p *pauses) reset() {
	p.last = 0
}
