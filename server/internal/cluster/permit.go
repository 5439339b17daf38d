package cluster

import (
	"context"
	"time"
)

// Permit tells whether records that are handed to the logs now, and durable or
// given up by the time by, may be written: nil, or why not.
type Permit func(by time.Time) error

type permitKey struct{}

// WithPermit makes Assert and Vote ask the permit once they have their turn,
// right before anything is handed to a log or to a peer. What the permit refuses
// is written nowhere, and its error is that of every record.
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
