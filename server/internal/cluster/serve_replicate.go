package cluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/stemedb/stemedb/server/internal/cluster/peerpb"
	"github.com/stemedb/stemedb/server/internal/store"
	"github.com/stemedb/stemedb/server/internal/wal"
)

// Replicate makes a peer's records durable here and says so. Messages go to the
// log as they come, so that many are synced at once; what waits for the disk is
// bounded, and the stream's flow control then holds the peer back.
func (s *service) Replicate(stream peerpb.Peer_ReplicateServer) error {
	c := s.c
	t := &taken{c: c, wake: make(chan struct{}, 1), room: make(chan struct{}, 1), limit: c.limits.StreamBytes}
	// Receiving has a goroutine of its own; it ends with the stream, after this
	// call has returned, and Run waits for it.
	if !c.goServe(func() { t.fail(t.receive(stream)) }) {
		return status.Error(codes.Unavailable, "the node is shutting down")
	}
	told := uint64(0)
	hello := true
	for {
		select {
		case <-t.wake:
		case <-c.closing:
			return status.Error(codes.Unavailable, "the node is shutting down")
		}
		seq, started, durable, err := t.progress()
		if len(durable) > 0 {
			c.recent.add(durable)
		}
		if started && hello || seq > told {
			hello, told = false, seq
			if err := stream.Send(&peerpb.ReplicateResponse{Seq: seq}); err != nil {
				return err
			}
		}
		if err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
	}
}

// taken is what one stream has brought.
type taken struct {
	c     *Cluster
	wake  chan struct{} // cap 1: progress has something new
	room  chan struct{} // cap 1: waiting went down
	limit int64

	mu      sync.Mutex
	started bool
	// waiting is the size of the messages that are not durable yet.
	waiting int64
	// durableTo: every message up to it is durable; the states of those behind
	// it, which may finish in any order, are in pending.
	durableTo uint64
	pending   []message
	durable   []store.Item // since the last progress, for the recent keys
	err       error
}

// message is one that came and is not below durableTo yet.
type message struct {
	items   []store.Item
	size    int64
	durable bool
}

// receive takes messages until the stream ends; the error says why.
func (t *taken) receive(stream peerpb.Peer_ReplicateServer) error {
	for seq := uint64(0); ; seq++ {
		req, err := stream.Recv()
		if err != nil {
			return err
		}
		if err := t.c.control.CheckGeneration(req.Generation); err != nil {
			return err
		}
		if req.Seq != seq {
			return status.Errorf(codes.InvalidArgument, "message %d came where %d was due", req.Seq, seq)
		}
		if seq == 0 && len(req.Items) == 0 {
			t.start()
			continue
		}
		items, err := store.ParseRecords(req.Items)
		if err == nil && (len(items) == 0 || seq == 0) {
			err = errors.New("the first message has no records, the others have")
		}
		if err != nil {
			t.c.metrics.malformed.Inc()
			return status.Errorf(codes.InvalidArgument, "message %d: %v", seq, err)
		}
		if err := t.put(stream.Context(), seq, req.Generation, items, int64(len(req.Items))); err != nil {
			return err
		}
	}
}

func (t *taken) put(ctx context.Context, seq, generation uint64, items []store.Item, size int64) error {
	if err := t.admit(ctx, items, size); err != nil {
		return err
	}
	err := putPatiently(ctx, t.c.store, items, func(res store.PutResult) {
		err := res.Err
		if err == nil {
			// The record is durable. If this node has passed the caller's
			// generation, it may have noted the end of its log before the
			// record was in it; then the ack would count for nothing.
			err = t.c.control.CheckGeneration(generation)
		} else {
			err = storageStatus(err)
		}
		t.finish(seq, err)
	})
	if err == nil || ctx.Err() != nil {
		return err
	}
	return storageStatus(err)
}

// admit waits until there is room for the message and counts it in.
func (t *taken) admit(ctx context.Context, items []store.Item, size int64) error {
	for {
		t.mu.Lock()
		if t.waiting == 0 || t.waiting+size <= t.limit {
			t.waiting += size
			t.pending = append(t.pending, message{items: items, size: size})
			t.mu.Unlock()
			return nil
		}
		t.mu.Unlock()
		select {
		case <-t.room:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// finish is called by the store; it must not block.
func (t *taken) finish(seq uint64, err error) {
	t.mu.Lock()
	if err != nil {
		if t.err == nil {
			t.err = err
		}
	} else if t.err == nil {
		t.pending[seq-t.durableTo-1].durable = true
		n := 0
		for n < len(t.pending) && t.pending[n].durable {
			t.waiting -= t.pending[n].size
			t.durable = append(t.durable, t.pending[n].items...)
			n++
		}
		clear(t.pending[:n])
		t.pending = t.pending[n:]
		t.durableTo += uint64(n)
	}
	t.mu.Unlock()
	notify(t.wake)
	notify(t.room)
}

func (t *taken) start() {
	t.mu.Lock()
	t.started = true
	t.mu.Unlock()
	notify(t.wake)
}

func (t *taken) fail(err error) {
	t.mu.Lock()
	if t.err == nil {
		t.err = err
	}
	t.mu.Unlock()
	notify(t.wake)
}

func (t *taken) progress() (seq uint64, started bool, durable []store.Item, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	durable, t.durable = t.durable, nil
	return t.durableTo, t.started, durable, t.err
}

// notify wakes whoever waits on a channel of capacity 1.
func notify(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}

// busyPause is how long a writer waits for a full queue of the local disk.
const busyPause = 5 * time.Millisecond

// putPatiently puts items, waiting while the store's queues are full: whoever
// calls is held back by that, as it should be. The error is the store's; when
// ctx ended the wait it is ctx's as well.
func putPatiently(ctx context.Context, s Store, items []store.Item, done func(store.PutResult)) error {
	for {
		err := s.Put(items, done)
		if err == nil {
			return nil
		}
		if !errors.Is(err, wal.ErrBusy) && !errors.Is(err, store.ErrBusy) {
			return err
		}
		if pause(ctx, busyPause); ctx.Err() != nil {
			return fmt.Errorf("%w: %w", ctx.Err(), err)
		}
	}
}

// storageStatus tells a peer what the store said.
func storageStatus(err error) error {
	if errors.Is(err, wal.ErrReadOnly) {
		return status.Error(codes.ResourceExhausted, err.Error())
	}
	return status.Error(codes.Unavailable, err.Error())
}
