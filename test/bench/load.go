package main

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// op does one request on behalf of a client. seq counts from 0 over all
// clients, so that every request carries new records.
type op func(ctx context.Context, client int, seq int64) error

// result is one measured run.
type result struct {
	Requests int64
	Records  int64 // Requests times the records per request
	Elapsed  time.Duration
	Latency  *hdrhistogram.Histogram // microseconds per request
	ServerMS float64                 // processor time of the server, milliseconds
}

func (r result) rate() float64 { return float64(r.Records) / r.Elapsed.Seconds() }

// measure sends requests requests from clients concurrent clients and waits for
// every answer. The first error ends the run, because a benchmark with failures
// is meaningless.
func measure(ctx context.Context, clients int, requests, recordsEach int64, do op) (result, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var (
		next  atomic.Int64
		wg    sync.WaitGroup
		hists = make([]*hdrhistogram.Histogram, clients)
	)
	start := time.Now()
	for c := range clients {
		hists[c] = hdrhistogram.New(1, 60_000_000, 3)
		wg.Go(func() {
			for {
				seq := next.Add(1) - 1
				if seq >= requests || ctx.Err() != nil {
					return
				}
				began := time.Now()
				if err := do(ctx, c, seq); err != nil {
					cancel(fmt.Errorf("client %d, request %d: %w", c, seq, err))
					return
				}
				_ = hists[c].RecordValue(time.Since(began).Microseconds())
			}
		})
	}
	wg.Wait()
	elapsed := time.Since(start)
	if err := context.Cause(ctx); err != nil {
		return result{}, err
	}
	all := hists[0]
	for _, h := range hists[1:] {
		all.Merge(h)
	}
	return result{Requests: requests, Records: requests * recordsEach, Elapsed: elapsed, Latency: all}, nil
}
