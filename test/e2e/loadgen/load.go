package main

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	mrand "math/rand/v2"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/stemedb/stemedb/record"
)

// Summary describes one run between start and stop, or its progress so far.
// Every request is an assert, a read or a failure.
type Summary struct {
	Seconds           float64        `json:"seconds"` // in which requests were begun
	Requests          int            `json:"requests"`
	Asserts           int            `json:"asserts"`           // acknowledged
	Reads             int            `json:"reads"`             // answered with the record
	Fresh             int            `json:"fresh"`             // of these two, over a separate connection
	Failures          int            `json:"failures"`          // transport errors and every status that is not 2xx
	Unconnected       int            `json:"unconnected"`       // of the failures, those without a connection: nothing was sent
	FailureKinds      map[string]int `json:"failureKinds"`      // by message
	Examples          []string       `json:"examples"`          // the first few, with time since start
	LostReads         []string       `json:"lostReads"`         // acknowledged ids that a quorum read answered 404 for
	Acknowledged      int            `json:"acknowledged"`      // over all runs
	LongestGapSeconds float64        `json:"longestGapSeconds"` // without one success
	P50Millis         float64        `json:"p50Millis"`
	P99Millis         float64        `json:"p99Millis"`
}

// load sends requests at a fixed rate, regardless of the answers (open loop).
type load struct {
	target string
	apiKey string
	rate   int
	signer ed25519.PrivateKey
	kept   *http.Client // keep-alive connections
	fresh  *http.Client // a new connection for each request

	mu      sync.Mutex
	acked   []string // every id acknowledged since the process began
	current *run_
}

// run_ is the state of one run; its fields are guarded by load.mu.
type run_ struct {
	began       time.Time
	ended       time.Time // zero while requests are begun
	lastSuccess time.Time
	cancel      context.CancelFunc
	done        chan struct{}
	inFlight    sync.WaitGroup
	summary     Summary
	millis      []float64
}

func newLoad(target, apiKey string, rate int) *load {
	_, signer, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		panic(err) // the system has no randomness
	}
	return &load{
		target: strings.TrimSuffix(target, "/"), apiKey: strings.TrimSpace(apiKey), rate: rate, signer: signer,
		kept: keptClient(), fresh: freshClient(),
	}
}

func (l *load) start(parent context.Context) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.current != nil {
		return errors.New("already sending: POST /stop first")
	}
	ctx, cancel := context.WithCancel(parent)
	now := time.Now()
	r := &run_{began: now, lastSuccess: now, cancel: cancel, done: make(chan struct{}), summary: Summary{FailureKinds: map[string]int{}}}
	l.current = r
	go l.pace(ctx, parent, r)
	return nil
}

// pace starts a request when it is due: as many asserts as reads, every other
// one over a fresh connection.
func (l *load) pace(ctx, requests context.Context, r *run_) {
	defer close(r.done)
	gap := time.Second / time.Duration(l.rate)
	timer := time.NewTimer(0)
	defer timer.Stop()
	for n := 0; ; n++ {
		// Scheduled by the clock, not by ticks: a late wake-up is compensated,
		// so that a busy machine does not lower the rate.
		timer.Reset(time.Until(r.began.Add(time.Duration(n) * gap)))
		select {
		case <-ctx.Done():
			l.mu.Lock()
			r.ended = time.Now()
			l.mu.Unlock()
			return
		case <-timer.C:
		}
		client, fresh := l.kept, n%2 == 1
		if fresh {
			client = l.fresh
		}
		r.inFlight.Add(1)
		go func() {
			defer r.inFlight.Done()
			began := time.Now()
			read, err := l.one(requests, client, n)
			l.note(r, fresh, read, time.Since(began), err)
		}()
	}
}

var errIdle = errors.New("nothing is being sent: POST /start first")

// stop starts no further requests, waits for those in flight and sums up.
func (l *load) stop() (Summary, error) {
	l.mu.Lock()
	r := l.current
	l.mu.Unlock()
	if r == nil {
		return Summary{}, errIdle
	}
	r.cancel()
	<-r.done
	r.inFlight.Wait()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.current = nil
	return l.sum(r), nil
}

// progress sums up a running run.
func (l *load) progress() (Summary, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.current == nil {
		return Summary{}, errIdle
	}
	return l.sum(l.current), nil
}

// sum is called with l.mu held.
func (l *load) sum(r *run_) Summary {
	s := r.summary
	s.FailureKinds, s.Examples, s.LostReads = maps.Clone(s.FailureKinds), slices.Clone(s.Examples), slices.Clone(s.LostReads)
	until := r.ended
	if until.IsZero() {
		until = time.Now()
	}
	s.Seconds = until.Sub(r.began).Seconds()
	s.LongestGapSeconds = max(s.LongestGapSeconds, until.Sub(r.lastSuccess).Seconds())
	s.Acknowledged = len(l.acked)
	if n := len(r.millis); n > 0 {
		sorted := slices.Sorted(slices.Values(r.millis))
		s.P50Millis, s.P99Millis = sorted[n/2], sorted[n*99/100]
	}
	return s
}

// errLost marks a quorum read that did not find an acknowledged record.
var errLost = errors.New("acknowledged but not found")

// one sends the n-th request and reports whether it was a read.
func (l *load) one(ctx context.Context, client *http.Client, n int) (read bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	// Pairs, so that both kinds of connection see asserts and reads alike.
	if n/2%2 == 0 {
		return false, l.assert(ctx, client, n)
	}
	l.mu.Lock()
	var id string
	if len(l.acked) > 0 {
		id = l.acked[mrand.IntN(len(l.acked))]
	}
	l.mu.Unlock()
	if id == "" {
		return false, l.assert(ctx, client, n)
	}
	status, _, err := l.send(ctx, client, http.MethodGet, l.target+"/v1/assertions/"+id, nil)
	if err == nil && status == http.StatusNotFound {
		err = fmt.Errorf("%s: %w", id, errLost)
	} else if err == nil && status != http.StatusOK {
		err = fmt.Errorf("read: status %d", status)
	}
	return true, err
}

func (l *load) assert(ctx context.Context, client *http.Client, n int) error {
	content := record.Content{
		Subject:     fmt.Sprintf("code://go/e2e/module-%d/dep/library-%d", n%97, n%1009),
		Predicate:   "version",
		Object:      record.Text(fmt.Sprintf("v1.%d.0-%016x", n, mrand.Uint64())),
		Confidence:  0.9,
		SourceClass: record.Observational,
		Timestamp:   uint64(time.Now().Unix()),
	}
	id := content.ID()
	a := record.Assertion{Content: content, Signatures: []record.Signature{record.SignContent(l.signer, id)}}
	body, err := json.Marshal(&a)
	if err != nil {
		return fmt.Errorf("encode assertion: %w", err)
	}
	status, answer, err := l.send(ctx, client, http.MethodPost, l.target+"/v1/assert", body)
	if err != nil {
		return err
	}
	if status != http.StatusCreated && status != http.StatusOK {
		return fmt.Errorf("assert: status %d: %.200s", status, answer)
	}
	l.mu.Lock()
	l.acked = append(l.acked, id.String())
	l.mu.Unlock()
	return nil
}

func (l *load) note(r *run_, fresh, read bool, took time.Duration, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := &r.summary
	s.Requests++
	if err == nil {
		if read {
			s.Reads++
		} else {
			s.Asserts++
		}
		if fresh {
			s.Fresh++
		}
		now := time.Now()
		s.LongestGapSeconds = max(s.LongestGapSeconds, now.Sub(r.lastSuccess).Seconds())
		r.lastSuccess = now
		r.millis = append(r.millis, float64(took.Microseconds())/1000)
		return
	}
	s.Failures++
	if dial := (*net.OpError)(nil); errors.As(err, &dial) && dial.Op == "dial" {
		s.Unconnected++
	}
	if errors.Is(err, errLost) {
		s.LostReads = append(s.LostReads, err.Error())
	}
	kind := err.Error()
	if i := strings.LastIndex(kind, ": "); i >= 0 {
		kind = kind[i+2:]
	}
	s.FailureKinds[kind]++
	if len(s.Examples) < 20 {
		s.Examples = append(s.Examples, fmt.Sprintf("%.1fs (took %s): %v", time.Since(r.began).Seconds(), took.Round(time.Millisecond), err))
	}
}
