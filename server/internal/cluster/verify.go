package cluster

import (
	"context"
	"runtime"
	"sync/atomic"

	"github.com/stemedb/stemedb/record"
)

// verifiers is the number of goroutines that check signatures. With two, a second
// group is checked while the first one's requests go to the log.
const verifiers = 2

// batchChunk is the number of signatures of one large request that are checked at
// once: enough to gain from batching, few enough to share the processors with
// other requests.
const batchChunk = 128

// verifyJob is a part of one request's signatures.
type verifyJob struct {
	items []record.SignedItem
	valid []bool // one for each item, filled in by the verifier
	left  *atomic.Int32
	done  chan struct{} // closed when left reaches 0
}

// signatureCheck checks signatures of concurrent requests together: everything
// that is queued when a verifier becomes free is one group.
type signatureCheck struct {
	verifier *record.Verifier
	group    int
	queue    chan verifyJob
}

// maxYields is how often an incomplete group yields to other goroutines. Under
// load many requests are about to queue a signature, and a signature costs half
// as much in a group; without load a yield costs almost nothing, so that a single
// caller does not wait.
const maxYields = 2

func newSignatureCheck(cachedKeys, group int) *signatureCheck {
	return &signatureCheck{
		verifier: record.NewVerifier(cachedKeys),
		group:    group,
		queue:    make(chan verifyJob, 256),
	}
}

// run checks queued signatures until ctx ends.
func (s *signatureCheck) run(ctx context.Context) {
	var items []record.SignedItem
	var jobs []verifyJob
	for {
		select {
		case <-ctx.Done():
			return
		case job := <-s.queue:
			jobs = append(jobs[:0], job)
		}
		size := len(jobs[0].items)
		for yields := 0; size < s.group && yields <= maxYields; {
			select {
			case job := <-s.queue:
				jobs = append(jobs, job)
				size += len(job.items)
			default:
				runtime.Gosched()
				yields++
			}
		}
		group := jobs[0].items
		if len(jobs) > 1 {
			items = items[:0]
			for _, j := range jobs {
				items = append(items, j.items...)
			}
			group = items
		}
		valid := s.verifier.Verify(group)
		for _, j := range jobs {
			valid = valid[copy(j.valid, valid):]
			if j.left.Add(-1) == 0 {
				close(j.done)
			}
		}
		clear(jobs)
	}
}

// check reports for each signature whether it is valid; an error means that ctx
// ended first.
func (s *signatureCheck) check(ctx context.Context, items []record.SignedItem) ([]bool, error) {
	chunks := (len(items) + batchChunk - 1) / batchChunk
	if chunks == 0 {
		return nil, nil
	}
	valid := make([]bool, len(items))
	left, done := new(atomic.Int32), make(chan struct{})
	left.Store(int32(chunks))
	for start := 0; start < len(items); start += batchChunk {
		end := min(start+batchChunk, len(items))
		select {
		case s.queue <- verifyJob{items[start:end], valid[start:end], left, done}:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	select {
	case <-done:
		return valid, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}
