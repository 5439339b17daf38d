// Package logs keeps repeated lines from filling the log.
//
// Promised: the first line of a kind is logged immediately, then at most one in
// each interval, with the number of lines that were left out.
package logs

import (
	"context"
	"log/slog"
	"sync"
	"time"
)

// Seldom logs lines of a bounded number of kinds. Its methods are safe for
// concurrent use.
type Seldom struct {
	log   *slog.Logger
	every time.Duration

	mu    sync.Mutex
	kinds map[string]*kind
}

type kind struct {
	last    time.Time // when a line of it was logged
	leftOut int       // since then
}

// NewSeldom logs to log, at most one line of a kind in each interval.
func NewSeldom(log *slog.Logger, every time.Duration) *Seldom {
	return &Seldom{log: log, every: every, kinds: map[string]*kind{}}
}

// Log logs a line of a kind, or counts it.
func (s *Seldom) Log(level slog.Level, name, message string, args ...any) {
	leftOut, now := s.take(name, time.Now())
	if !now {
		return
	}
	if leftOut > 0 {
		args = append(args, "left_out", leftOut)
	}
	s.log.Log(context.Background(), level, message, args...)
}

// take reports whether a line may be logged now, and how many were left out before.
func (s *Seldom) take(name string, at time.Time) (leftOut int, now bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	k := s.kinds[name]
	switch {
	case k == nil:
		s.kinds[name] = &kind{last: at}
		return 0, true
	case at.Sub(k.last) < s.every:
		k.leftOut++
		return 0, false
	}
	leftOut, k.last, k.leftOut = k.leftOut, at, 0
	return leftOut, true
}
