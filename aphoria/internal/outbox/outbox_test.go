package outbox

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/stemedb/stemedb/aphoria/internal/config"
	"github.com/stemedb/stemedb/client"
	"github.com/stemedb/stemedb/record"
)

func claims(from, n int) []*record.Assertion {
	key := ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize))
	as := make([]*record.Assertion, n)
	for i := range as {
		as[i] = &record.Assertion{Content: record.Content{
			Subject: fmt.Sprint(from + i), Predicate: "p", Object: record.Boolean(true), Confidence: 1,
			SourceClass: record.Observational, Timestamp: 1,
		}}
		as[i].Sign(key)
	}
	return as
}

var (
	errDown    = &client.Error{Status: 503, Code: "unavailable"}
	errRefused = &client.Error{Status: 400, Code: "future_timestamp"}
	errDenied  = &client.Error{Status: 403, Code: "forbidden"}
)

// fakeServer holds the claims sent to it; fate decides per claim, down per
// request.
type fakeServer struct {
	held  map[string]bool
	calls []int
	down  error
	fate  func(subject string) error
}

func (s *fakeServer) AssertBatch(_ context.Context, as []*record.Assertion) ([]client.BatchResult, error) {
	s.calls = append(s.calls, len(as))
	results := make([]client.BatchResult, len(as))
	for i, a := range as {
		switch {
		case s.down != nil:
			results[i].Err = s.down
		case s.fate != nil && s.fate(a.Subject) != nil:
			results[i].Err = s.fate(a.Subject)
		default:
			results[i].Result = client.Result{ID: a.ID(), Created: !s.held[a.Subject]}
			s.held[a.Subject] = true
		}
	}
	return results, s.down
}

func newOutbox(t *testing.T, fallback config.Fallback) (*Outbox, *fakeServer) {
	t.Helper()
	s := &fakeServer{held: map[string]bool{}}
	at := time.Unix(1, 0)
	return &Outbox{
		Sender: s, Queue: NewQueue(t.TempDir()), Fallback: fallback,
		Now:      func() time.Time { at = at.Add(time.Second); return at },
		Progress: func(int, int) {},
	}, s
}

func TestSendInBatches(t *testing.T) {
	o, s := newOutbox(t, config.Skip)
	sum, err := o.Send(t.Context(), claims(0, 1203))
	require.NoError(t, err)
	require.Equal(t, &Summary{Created: 1203}, sum)
	require.Equal(t, []int{500, 500, 203}, s.calls)
	sum, err = o.Send(t.Context(), claims(0, 10))
	require.NoError(t, err)
	require.Equal(t, &Summary{Exists: 10}, sum)
	sum, err = o.Send(t.Context(), nil)
	require.NoError(t, err)
	require.Equal(t, &Summary{}, sum)
}

func TestRefusedClaimsFail(t *testing.T) {
	for _, fallback := range []config.Fallback{config.Skip, config.Fail, config.Queue} {
		o, s := newOutbox(t, fallback)
		s.fate = func(subject string) error {
			if subject == "3" {
				return errRefused
			}
			return nil
		}
		sum, err := o.Send(t.Context(), claims(0, 5))
		require.ErrorIs(t, err, ErrRefused)
		require.Equal(t, 4, sum.Created)
		require.Equal(t, 1, sum.Failed)
		require.Len(t, sum.Errors, 1)
	}
}

func TestWrongKeyIsNoFallback(t *testing.T) {
	for _, fallback := range []config.Fallback{config.Skip, config.Queue} {
		o, s := newOutbox(t, fallback)
		s.down = errDenied
		sum, err := o.Send(t.Context(), claims(0, 5))
		require.ErrorIs(t, err, errDenied)
		require.Zero(t, sum.Skipped+sum.Queued)
		require.Equal(t, 5, sum.Failed)
		names, err := o.Queue.Names()
		require.NoError(t, err)
		require.Empty(t, names)
	}
}

func TestFallbackSkip(t *testing.T) {
	o, s := newOutbox(t, config.Skip)
	s.down = errDown
	sum, err := o.Send(t.Context(), claims(0, 1200))
	require.NoError(t, err)
	require.Equal(t, 1200, sum.Skipped)
	require.Equal(t, []int{500}, s.calls, "the server is not asked again for each batch")
	require.NotEmpty(t, sum.Errors)
}

func TestFallbackFail(t *testing.T) {
	o, s := newOutbox(t, config.Fail)
	s.down = errDown
	sum, err := o.Send(t.Context(), claims(0, 3))
	require.ErrorIs(t, err, ErrOffline)
	require.ErrorIs(t, err, errDown)
	require.NotErrorIs(t, err, ErrRefused)
	require.Equal(t, 3, sum.Failed)
}

func TestFallbackQueue(t *testing.T) {
	o, s := newOutbox(t, config.Queue)
	s.down = errDown
	sum, err := o.Send(t.Context(), claims(0, 700))
	require.NoError(t, err)
	require.Equal(t, 700, sum.Queued)
	// The same scan again, still offline, queues nothing twice.
	sum, err = o.Send(t.Context(), claims(0, 700))
	require.NoError(t, err)
	require.Equal(t, 700, sum.Queued)
	names, err := o.Queue.Names()
	require.NoError(t, err)
	require.Len(t, names, 2)

	s.down, s.calls = nil, nil
	sum, err = o.Send(t.Context(), claims(1000, 1))
	require.NoError(t, err)
	require.Equal(t, &Summary{Created: 701, FromQueue: 700}, sum)
	require.Equal(t, []int{500, 200, 1}, s.calls, "queued claims go first")
	names, err = o.Queue.Names()
	require.NoError(t, err)
	require.Empty(t, names)
}

// A full disk and a proxy timeout count as an outage: for a whole request and
// for single claims of it.
func TestFallbackIsForEverythingThatPasses(t *testing.T) {
	for _, status := range []int{504, 507} {
		later := &client.Error{Status: status}
		for name, fail := range map[string]func(*fakeServer){
			"the request": func(s *fakeServer) { s.down = fmt.Errorf("POST: %w", later) },
			"each claim":  func(s *fakeServer) { s.fate = func(string) error { return later } },
		} {
			t.Run(fmt.Sprint(status, " for ", name), func(t *testing.T) {
				o, s := newOutbox(t, config.Queue)
				fail(s)
				sum, err := o.Send(t.Context(), claims(0, 700))
				require.NoError(t, err)
				require.Equal(t, 700, sum.Queued)
				require.Zero(t, sum.Failed)

				// The same at the next run, which sends the queue first.
				sum, err = o.Send(t.Context(), claims(1000, 1))
				require.NoError(t, err)
				require.Equal(t, 1, sum.Queued)

				s.down, s.fate = nil, nil
				sum, err = o.Send(t.Context(), nil)
				require.NoError(t, err)
				require.Equal(t, &Summary{Created: 701, FromQueue: 701}, sum)

				o, s = newOutbox(t, config.Fail)
				fail(s)
				_, err = o.Send(t.Context(), claims(0, 3))
				require.ErrorIs(t, err, ErrOffline)
				o, s = newOutbox(t, config.Skip)
				fail(s)
				sum, err = o.Send(t.Context(), claims(0, 3))
				require.NoError(t, err)
				require.Equal(t, 3, sum.Skipped)
			})
		}
	}
}

func TestQueueKeepsWhatIsPartlyTaken(t *testing.T) {
	o, s := newOutbox(t, config.Queue)
	s.fate = func(subject string) error {
		switch subject {
		case "1":
			return errDown
		case "2":
			return errRefused
		}
		return nil
	}
	sum, err := o.Send(t.Context(), claims(0, 4))
	require.ErrorIs(t, err, ErrRefused)
	require.Equal(t, 2, sum.Created)
	require.Equal(t, 1, sum.Queued)
	require.Equal(t, 1, sum.Failed)

	// The batch stays while one of its claims is not accepted.
	require.NoError(t, o.Queue.Put(claims(0, 4), time.Unix(99, 0)))
	_, err = o.Send(t.Context(), nil)
	require.NoError(t, err)
	names, err := o.Queue.Names()
	require.NoError(t, err)
	require.Len(t, names, 2)

	// Permanently refused claims are kept aside and not sent again.
	s.fate = func(subject string) error {
		if subject == "2" {
			return errRefused
		}
		return nil
	}
	sum, err = o.Send(t.Context(), nil)
	require.ErrorIs(t, err, ErrRefused)
	require.Equal(t, 1, sum.Failed)
	names, err = o.Queue.Names()
	require.NoError(t, err)
	require.Empty(t, names)
	aside, err := filepath.Glob(filepath.Join(o.Queue.dir, "*"+refusedSuffix))
	require.NoError(t, err)
	require.Len(t, aside, 1)
	require.True(t, s.held["1"])
}

func TestQueueRefusesDamage(t *testing.T) {
	o, _ := newOutbox(t, config.Queue)
	require.NoError(t, o.Queue.Put(claims(0, 2), time.Unix(1, 0)))
	names, err := o.Queue.Names()
	require.NoError(t, err)
	file := filepath.Join(o.Queue.dir, names[0])
	body, err := os.ReadFile(file)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(file, body[:len(body)-1], 0o600))
	_, err = o.Send(t.Context(), claims(5, 1))
	require.ErrorContains(t, err, "damaged")
	_, err = os.Stat(file)
	require.NoError(t, err, "nothing is discarded")
	left, err := filepath.Glob(filepath.Join(o.Queue.dir, ".writing-*"))
	require.NoError(t, err)
	require.Empty(t, left)
}

func TestQueueWriteFails(t *testing.T) {
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, queueDir), nil, 0o600))
	o, s := newOutbox(t, config.Queue)
	o.Queue = NewQueue(dir)
	s.down = errDown
	_, err := o.Send(t.Context(), claims(0, 1))
	require.Error(t, err, "a claim that can neither be sent nor kept is an error")
	var path *os.PathError
	require.True(t, errors.As(err, &path))
}
