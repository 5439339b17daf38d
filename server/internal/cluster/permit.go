package cluster

import (
	"context"
	"time"
)

// Permit reports whether records may be handed to the logs now that become
// durable, or are abandoned, at the time by: nil, or the reason for the refusal.
type Permit func(by time.Time) error

type permitKey struct{}

// WithPermit makes Assert and Vote ask the permit when their turn comes,
// immediately before anything is handed to a log or to a peer. If it refuses,
// nothing is written, and every record gets its error.
func WithPermit(ctx context.Context, p Permit) context.Context {
	return context.WithValue(ctx, permitKey{}, p)
}

// Permitted asks the permit in ctx; without one, everything is permitted.
func Permitted(ctx context.Context, by time.Time) error {
	if p, ok := ctx.Value(permitKey{}).(Permit); ok {
		return p(by)
	}
	return nil
}
