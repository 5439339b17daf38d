package main

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"time"
)

// Verdict lists the acknowledged ids that a replica does not hold.
type Verdict struct {
	Acknowledged int      `json:"acknowledged"` // ids in all
	Checked      int      `json:"checked"`      // of them, in this answer
	Missing      int      `json:"missing"`
	Examples     []string `json:"examples"` // of missing ids, at most 20
	Error        string   `json:"error"`    // why the replica could not be queried
}

const (
	verifyWorkers = 16
	verifyTimeout = 30 * time.Second // of one read
)

// verify reads count of the acknowledged ids, beginning with the one at from,
// from the replica at url alone. The caller reads all of them piece by piece,
// so that no answer takes long, regardless of their number.
func (l *load) verify(ctx context.Context, url string, from, count int) Verdict {
	l.mu.Lock()
	all := len(l.acked)
	from = min(max(from, 0), all)
	ids := slices.Clone(l.acked[from : from+min(max(count, 0), all-from)])
	l.mu.Unlock()
	missing, err := l.missingAt(ctx, url, ids)
	v := Verdict{Acknowledged: all, Checked: len(ids), Missing: len(missing), Examples: missing[:min(20, len(missing))]}
	if err != nil {
		v.Error = err.Error()
	}
	return v
}

func (l *load) missingAt(ctx context.Context, url string, ids []string) ([]string, error) {
	var (
		mu      sync.Mutex
		missing []string
		failed  error
		wg      sync.WaitGroup
		next    = make(chan string)
	)
	for range verifyWorkers {
		wg.Go(func() {
			for id := range next {
				held, err := l.holds(ctx, url, id)
				mu.Lock()
				if err != nil && failed == nil {
					failed = fmt.Errorf("read %s: %w", id, err)
				} else if err == nil && !held {
					missing = append(missing, id)
				}
				mu.Unlock()
			}
		})
	}
	for _, id := range ids {
		mu.Lock()
		stop := failed != nil
		mu.Unlock()
		if stop { // a replica that fails one read is not queried for the rest
			break
		}
		next <- id
	}
	close(next)
	wg.Wait()
	return missing, failed
}

func (l *load) holds(ctx context.Context, url, id string) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, verifyTimeout)
	defer cancel()
	status, body, err := l.send(ctx, l.kept, http.MethodGet, url+"/v1/assertions/"+id+"?consistency=local", nil)
	switch {
	case err != nil:
		return false, err
	case status == http.StatusOK:
		return true, nil
	case status == http.StatusNotFound:
		return false, nil
	default:
		return false, fmt.Errorf("status %d: %.200s", status, body)
	}
}
