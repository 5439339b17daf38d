// Package clock is the only access to a machine's wall clock, which people and
// NTP set and which differs between machines. Durations are measured with the
// time package, whose monotonic clock cannot be set.
//
// The rule for callers: nothing that members have to agree on is decided by a
// wall clock. Such decisions use control.Control's Now, the table's time.
package clock

import (
	"sync/atomic"
	"time"
)

// Clock shows a machine's time of day. It may be set forwards or backwards at
// any moment, so the difference of two readings is not a duration.
type Clock interface{ Now() time.Time }

// Wall is this machine's clock.
func Wall() Clock { return wall{} }

type wall struct{}

// Now implements Clock. It strips the monotonic reading, so that nobody
// measures a duration with it by accident.
func (wall) Now() time.Time { return time.Now().Round(0) }

// Shifted is a clock with a settable error, for tests and simulations. The
// error of its zero value is 0.
type Shifted struct{ by atomic.Int64 }

// Set makes the clock fast by d; a negative d makes it slow.
func (s *Shifted) Set(d time.Duration) { s.by.Store(int64(d)) }

// Now implements Clock.
func (s *Shifted) Now() time.Time { return Wall().Now().Add(time.Duration(s.by.Load())) }
