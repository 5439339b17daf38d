package cluster

import (
	"context"
	"time"
)

// Permit reports whether records may be written that are handed to the logs now,
// and are durable or given up at the time by: nil, or the reason against it.
type Permit func(by time.Time) error

type permitKey struct{}

// WithPermit makes Assert and Vote ask the permit once they have their turn,
// right before anything is handed to a log or to a peer. If it refuses, nothing is
// written, and every record gets its error.
func WithPermit(ctx context.Context, p Permit) context.Context {
	return context.WithValue(ctx, permitKey{}, p)
}

// Permitted asks the permit that ctx carries; without one everything is
// permitted.
func Permitted(ctx context.Context, by time.Time) error {
	if p, ok := ctx.Value(permitKey{}).(Permit); ok {
		return p(by)
	}
	return nil
}
