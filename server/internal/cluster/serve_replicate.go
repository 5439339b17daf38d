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

	"github.com/stemedb/stemedb/internal/sleep"
	"github.com/stemedb/stemedb/server/internal/cluster/peerpb"
	"github.com/stemedb/stemedb/server/internal/store"
	"github.com/stemedb/stemedb/server/internal/wal"
)

// Replicate makes a peer's records durable here and acknowledges them. Messages
// go to the log as they arrive, so that many share a sync; the amount that waits
// for the disk is bounded, and the stream's flow control then slows the peer
// down.
func (s *service) Replicate(stream peerpb.Peer_ReplicateServer) error {
	c := s.c
	t := &taken{c: c, wake: make(chan struct{}, 1), room: make(chan struct{}, 1), limit: c.limits.StreamBytes}
	// Receiving has a separate goroutine, which ends with the stream, after this
	// call has returned; Run waits for it.
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

// taken holds the messages of one stream.
type taken struct {
	c     *Cluster
	wake  chan struct{} // cap 1: progress has changed
	room  chan struct{} // cap 1: waiting has decreased
	limit int64

	mu      sync.Mutex
	started bool
	// waiting is the size of the messages that are not durable yet.
	waiting int64
	// durableTo: every message up to it is durable; pending holds the states of
	// those behind it, which may finish in any order.
	durableTo uint64
	pending   []message
	durable   []store.Item // since the last call of progress, for the recent keys
	err       error
}

// message is a received message that is not below durableTo yet.
type message struct {
	items   []store.Item
	size    int64
	durable bool
}

// receive reads messages until the stream ends; the error is the reason.
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
			return status.Errorf(codes.InvalidArgument, "got message %d, want %d", req.Seq, seq)
		}
		if seq == 0 && len(req.Items) == 0 {
			t.start()
			continue
		}
		items, err := store.ParseRecords(req.Items)
		if err == nil && (len(items) == 0 || seq == 0) {
			err = errors.New("the first message must be empty, the others must have records")
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
			// The record is durable. If this node has passed the caller's generation, it
			// may have recorded the end of its log before the record was in it; the ack
			// would then be invalid.
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

// admit waits until there is room for the message and reserves it.
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
	sleep.Wake(t.wake)
	sleep.Wake(t.room)
}

func (t *taken) start() {
	t.mu.Lock()
	t.started = true
	t.mu.Unlock()
	sleep.Wake(t.wake)
}

func (t *taken) fail(err error) {
	t.mu.Lock()
	if t.err == nil {
		t.err = err
	}
	t.mu.Unlock()
	sleep.Wake(t.wake)
}

func (t *taken) progress() (seq uint64, started bool, durable []store.Item, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	durable, t.durable = t.durable, nil
	return t.durableTo, t.started, durable, t.err
}

// busyPause is the interval between attempts while the store's queue is full.
const busyPause = 5 * time.Millisecond

// putPatiently puts items and waits while the store's queues are full; this
// backpressure is intended. The error is the store's, joined with that of ctx if
// ctx ended the wait.
func putPatiently(ctx context.Context, s Store, items []store.Item, done func(store.PutResult)) error {
	for {
		err := s.Put(items, done)
		if err == nil {
			return nil
		}
		if !errors.Is(err, wal.ErrBusy) && !errors.Is(err, store.ErrBusy) {
			return err
		}
		if !sleep.For(ctx, busyPause) {
			return fmt.Errorf("%w: %w", ctx.Err(), err)
		}
	}
}

// storageStatus translates an error of the store for a peer.
func storageStatus(err error) error {
	if errors.Is(err, wal.ErrReadOnly) {
		return status.Error(codes.ResourceExhausted, err.Error())
	}
	return status.Error(codes.Unavailable, err.Error())
}
