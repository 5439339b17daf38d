// Package sleep holds the two halves of waiting in the background: a pause that its
// context ends, and a signal that wakes a goroutine without waiting for it.
package sleep

import (
	"context"
	"time"
)

// For waits and reports whether the time has passed; it returns false as soon as ctx
// ends.
func For(ctx context.Context, d time.Duration) bool {
	if ctx.Err() != nil {
		return false
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// Wake puts a token into a channel of capacity one, unless one is there already. It
// never waits: the goroutine that receives the token finds out for itself how much
// there is to do.
func Wake(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
