package main

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"time"
)

// Verdict tells for each replica which acknowledged ids it does not hold.
type Verdict struct {
	Checked int                 `json:"checked"`
	Missing map[string][]string `json:"missing"` // URL → ids, at most 20 of them
	Counts  map[string]int      `json:"counts"`  // URL → how many are missing
	Errors  map[string]string   `json:"errors"`  // URL → why it could not be asked
}

const verifyWorkers = 16

// verify reads every acknowledged id from each URL alone.
func (l *load) verify(ctx context.Context, urls []string) Verdict {
	l.mu.Lock()
	ids := slices.Clone(l.acked)
	l.mu.Unlock()
	v := Verdict{Checked: len(ids), Missing: map[string][]string{}, Counts: map[string]int{}, Errors: map[string]string{}}
	for _, url := range urls {
		missing, err := l.missingAt(ctx, url, ids)
		if err != nil {
			v.Errors[url] = err.Error()
			continue
		}
		v.Counts[url] = len(missing)
		v.Missing[url] = missing[:min(20, len(missing))]
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
		next <- id
	}
	close(next)
	wg.Wait()
	return missing, failed
}

func (l *load) holds(ctx context.Context, url, id string) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
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
