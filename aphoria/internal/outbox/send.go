package outbox

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/stemedb/stemedb/aphoria/internal/config"
	"github.com/stemedb/stemedb/client"
	"github.com/stemedb/stemedb/record"
)

// BatchSize is the number of claims in one request.
const BatchSize = 500

// Sender is the part of client.Client that this package uses.
type Sender interface {
	AssertBatch(ctx context.Context, as []*record.Assertion) ([]client.BatchResult, error)
}

// Summary is the outcome of sending.
type Summary struct {
	Created int `json:"created"`
	Exists  int `json:"exists"`
	Failed  int `json:"failed"`  // refused by the server, or abandoned with an error
	Queued  int `json:"queued"`  // kept for the next run
	Skipped int `json:"skipped"` // dropped, as offline_fallback says
	// FromQueue is how many of the above were queued by earlier runs.
	FromQueue int      `json:"from_queue"`
	Errors    []string `json:"errors,omitempty"` // the first few, for people
}

// ErrOffline is returned when the server could not be reached, or could not
// accept the claims now, and the fallback is to fail.
var ErrOffline = errors.New("the server could not be reached or cannot accept claims now")

// ErrRefused is returned when the server refused claims.
var ErrRefused = errors.New("the server refused claims")

// Outbox sends claims and falls back as configured.
type Outbox struct {
	Sender   Sender
	Queue    *Queue
	Fallback config.Fallback
	Now      func() time.Time
	// Progress is called with the number of claims handled so far and the total.
	Progress func(done, total int)
}

const maxErrors = 10

// Send sends the queued claims and then as to the server. The error is
// ErrOffline, ErrRefused, or an error of the server that a retry does not fix.
func (o *Outbox) Send(ctx context.Context, as []*record.Assertion) (*Summary, error) {
	s := &Summary{}
	queued, err := o.Queue.Names()
	if err != nil {
		return s, err
	}
	for _, name := range queued {
		if err := o.sendQueued(ctx, name, s); err != nil {
			if client.IsTemporary(err) {
				// Do not try the same server again for every batch.
				return s, o.fallBack(as, s, err)
			}
			s.Failed += len(as)
			return s, err
		}
	}
	for done := 0; done < len(as); done += BatchSize {
		batch := as[done:min(done+BatchSize, len(as))]
		kept := s.Created + s.Exists
		later, refused, err := o.batch(ctx, batch, s)
		if err != nil && !client.IsTemporary(err) {
			s.Failed += len(as) - done - (s.Created + s.Exists - kept)
			return s, err
		}
		s.Failed += len(refused)
		if len(later) > 0 {
			rest := append(later, as[done+len(batch):]...)
			refused := refusal(s)
			return s, errors.Join(refused, o.fallBack(rest, s, err))
		}
		o.Progress(done+len(batch), len(as))
	}
	return s, refusal(s)
}

func refusal(s *Summary) error {
	if s.Failed == 0 {
		return nil
	}
	return fmt.Errorf("%w: %d of them", ErrRefused, s.Failed)
}

// sendQueued sends one batch of an earlier run. The batch leaves the queue only
// when none of its claims has to be sent again.
func (o *Outbox) sendQueued(ctx context.Context, name string, s *Summary) error {
	as, err := o.Queue.Read(name)
	if err != nil {
		return err
	}
	later, refused, err := o.batch(ctx, as, s)
	if err != nil {
		return err
	}
	s.FromQueue += len(as) - len(later)
	s.Failed += len(refused)
	return o.Queue.Remove(name, refused)
}

// batch sends at most BatchSize claims. later are the claims that may succeed
// later; err is then the first of their errors, or the error of a request that
// failed as a whole.
func (o *Outbox) batch(ctx context.Context, as []*record.Assertion, s *Summary) (later, refused []*record.Assertion, err error) {
	results, callErr := o.Sender.AssertBatch(ctx, as)
	for i, r := range results {
		switch {
		case r.Err == nil && r.Created:
			s.Created++
		case r.Err == nil:
			s.Exists++
		case client.IsTemporary(r.Err):
			later = append(later, as[i])
			if err == nil {
				err = r.Err
			}
		case callErr != nil && errors.Is(r.Err, callErr):
			// The whole request was refused, so the result of this claim is unknown.
		default:
			refused = append(refused, as[i])
			if len(s.Errors) < maxErrors {
				s.Errors = append(s.Errors, fmt.Sprintf("%s: %v", as[i].Subject, r.Err))
			}
		}
	}
	if callErr != nil {
		err = callErr
	}
	return later, refused, err
}

// fallBack handles claims that could not be sent.
func (o *Outbox) fallBack(as []*record.Assertion, s *Summary, cause error) error {
	switch o.Fallback {
	case config.Queue:
		for start := 0; start < len(as); start += BatchSize {
			batch := as[start:min(start+BatchSize, len(as))]
			if err := o.Queue.Put(batch, o.Now()); err != nil {
				return errors.Join(err, cause)
			}
			s.Queued += len(batch)
		}
		s.Errors = append(s.Errors, cause.Error())
		return nil
	case config.Fail:
		s.Failed += len(as)
		return fmt.Errorf("%w: %w", ErrOffline, cause)
	default:
		s.Skipped += len(as)
		s.Errors = append(s.Errors, cause.Error())
		return nil
	}
}
