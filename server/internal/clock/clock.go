// Package clock is the door to a machine's wall clock: the one part of time that
// people and NTP set, and that differs between machines. Durations are measured
// with the time package, whose monotonic clock nobody sets.
//
// The rule for readers: a wall clock decides nothing that members have to agree
// on. Such decisions take control.Control's Now, which is the table's time.
package clock

import (
	"sync/atomic"
	"time"
)

// Clock shows a machine's time of day. It may be set at any moment, forwards or
// backwards. Two readings therefore give no duration.
type Clock interface{ Now() time.Time }

// Wall is this machine's clock.
func Wall() Clock { return wall{} }

type wall struct{}

// Now implements Clock. The monotonic reading is taken off, so that nobody
// measures with it by accident.
func (wall) Now() time.Time { return time.Now().Round(0) }

// Shifted is a clock that is wrong by a settable amount, for tests and
// simulations. Its zero value is right.
type Shifted struct{ by atomic.Int64 }

// Set makes the clock fast by d; a negative d makes it slow.
func (s *Shifted) Set(d time.Duration) { s.by.Store(int64(d)) }

// Now implements Clock.
func (s *Shifted) Now() time.Time { return Wall().Now().Add(time.Duration(s.by.Load())) }
