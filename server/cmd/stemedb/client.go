package main

import (
	"context"
	"errors"
	"net/http"
	"time"

	"github.com/stemedb/stemedb/client"
	"github.com/stemedb/stemedb/internal/sleep"
	"github.com/stemedb/stemedb/internal/target"
)

// serverTarget is the server that a client command talks to; its errors are usage errors.
type serverTarget struct{ target.Target }

// client makes a client for the server with the API key that is configured. Commands
// that need retries of their own turn those of the client off.
func (t *serverTarget) client(opts ...client.Option) (*client.Client, error) {
	key, err := t.APIKey()
	if err != nil {
		return nil, fail(exitUsage, "%w", err)
	}
	return t.clientWith(key, opts...)
}

// clientWith makes a client with the given API key.
func (t *serverTarget) clientWith(key string, opts ...client.Option) (*client.Client, error) {
	c, err := t.ClientWith(key, append([]client.Option{client.WithUserAgent("stemedb/" + versionString())}, opts...)...)
	if err != nil {
		return nil, fail(exitUsage, "%w", err)
	}
	return c, nil
}

// until repeats a step until it succeeds or ctx ends. Invalid keys and invalid
// requests are not retried.
func until(ctx context.Context, step func(context.Context) error) error {
	for {
		err := step(ctx)
		if err == nil {
			return nil
		}
		var refused *client.Error
		if errors.As(err, &refused) && refused.Status/100 == 4 && refused.Status != http.StatusTooManyRequests {
			return err
		}
		if !sleep.For(ctx, time.Second) {
			return err
		}
	}
}
