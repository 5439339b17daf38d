package cluster

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/stemedb/stemedb/server/internal/control"
	"github.com/stemedb/stemedb/server/internal/store"
	"github.com/stemedb/stemedb/server/internal/wal"
)

// write holds one request's records on their way to a majority. It is shared by
// the waiting request, this node's log and one queue per peer.
type write struct {
	items []store.Item
	// wire holds the encoded items; message i ends at cuts[i]. Encoded when the
	// write is offered to the first peer.
	encoding sync.Once
	wire     []byte
	cuts     []int

	// done is closed when the write rule holds.
	done chan struct{}
	// settled means that nobody waits any longer, because the rule holds or the
	// request gave up: a queue may then drop the write, since catch-up delivers the
	// records too.
	settled atomic.Bool
	// abandoned is also set when the request gave up: a peer's queue that has not
	// sent the write by then drops it, so that nothing becomes durable long after
	// its Permit was asked.
	abandoned atomic.Bool

	mu sync.Mutex
	// acks are the ids of members that made every item durable, each with a
	// generation that the member had not passed then. A member that reports a loss
	// at a later generation may have lost the items again
	// (control.State.Acknowledged).
	acks map[string]uint64
	// fresh is the local store's report of new items; nil until the put is done.
	fresh    []bool
	localErr error
	won      bool
}

// ack records that member made every item durable before it passed the
// generation, and settles the write when the write rule holds.
func (w *write) ack(member string, generation uint64, newest func() *control.State) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.acks == nil {
		w.acks = map[string]uint64{}
	}
	w.acks[member] = max(w.acks[member], generation)
	w.evaluate(newest)
}

// judge reevaluates the rule after a change of the state.
func (w *write) judge(newest func() *control.State) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.evaluate(newest)
}

// evaluate reads the state under the lock, after the acks are known. So when the
// write succeeds by the rule of an old state, every ack that counted, this node's
// own included, came before this node passed to a newer state.
func (w *write) evaluate(newest func() *control.State) {
	if w.won || !newest().Acknowledged(w.acks) {
		return
	}
	w.won = true
	w.settled.Store(true)
	close(w.done)
}

// outcome ends the wait: afterwards nobody needs the write. It returns acks only
// if the write has not succeeded.
func (w *write) outcome() (fresh []bool, won bool, acks map[string]uint64, localErr error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.abandoned.Store(!w.won)
	w.settled.Store(true)
	if !w.won {
		acks = maps.Clone(w.acks)
	}
	return w.fresh, w.won, acks, w.localErr
}

// encode fills in wire and cuts, once.
func (w *write) encode(messageBytes int) { w.encoding.Do(func() { w.encodeNow(messageBytes) }) }

func (w *write) encodeNow(messageBytes int) {
	size := 0
	for i := range w.items {
		size += store.RecordSize(w.items[i].Payload)
	}
	w.wire = make([]byte, 0, size)
	start := 0
	for i := range w.items {
		if len(w.wire) > start && len(w.wire)-start+store.RecordSize(w.items[i].Payload) > messageBytes {
			w.cuts = append(w.cuts, len(w.wire))
			start = len(w.wire)
		}
		w.wire = store.AppendRecord(w.wire, w.items[i].Kind, w.items[i].Payload)
	}
	w.cuts = append(w.cuts, len(w.wire))
}

// inFlight is the set of writes that wait for their majority.
type inFlight struct {
	mu     sync.Mutex
	writes map[*write]struct{}
}

func (f *inFlight) add(w *write) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.writes[w] = struct{}{}
}

func (f *inFlight) remove(w *write) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.writes, w)
}

func (f *inFlight) all() []*write {
	f.mu.Lock()
	defer f.mu.Unlock()
	all := make([]*write, 0, len(f.writes))
	for w := range f.writes {
		all = append(all, w)
	}
	return all
}

// write makes items durable on a majority; the local log and the peers' streams
// work in parallel. fresh reports for each item whether this node has just
// written it; it is nil when a majority acknowledged before this node's log did.
// Errors are *UnavailableError, or the error of the Permit in ctx.
func (c *Cluster) write(ctx context.Context, items []store.Item) (fresh []bool, err error) {
	if err := c.mayDecide(); err != nil {
		return nil, err
	}
	state := c.control.State()
	if _, ok := state.MemberByID(c.id); !ok {
		return nil, c.notMember(state)
	}
	began := time.Now()
	// First come, first served, as long as the caller waits.
	cost := writeCost(items, c.limits.InFlightBytes)
	if err := c.writeMemory.Acquire(ctx, cost); err != nil {
		return nil, unavailable(CodeOverloadedWrites, "too many writes are waiting for the disks", err)
	}
	defer c.writeMemory.Release(cost)
	by := time.Now().Add(c.timings.WriteWait)
	if err := Permitted(ctx, by); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithDeadline(ctx, by)
	defer cancel()
	w := &write{items: items, done: make(chan struct{})}
	generation := c.generation() // before the records can be lost again
	// In this order: a peer that is added from now on is offered this write.
	c.inFlight.add(w)
	defer c.inFlight.remove(w)
	peers := c.currentPeers()

	if err := putPatiently(ctx, c.store, w.items, func(res store.PutResult) { c.putDone(w, generation, res) }); err != nil {
		return nil, c.storageError(err)
	}
	if refused := c.offer(w, peers); len(refused) > 0 {
		reachable := func(id string) bool { return !slices.Contains(refused, id) }
		if !state.WriteQuorum(reachable) {
			w.abandoned.Store(true) // nobody waits for it
			w.settled.Store(true)
			return nil, unavailable(CodeOverloadedPeers, "the queues to the other members are full", nil)
		}
	}
	waitErr := c.await(ctx, w)
	fresh, won, acks, localErr := w.outcome()
	if !won {
		return nil, c.noQuorum(waitErr, localErr, acks, len(items))
	}
	c.metrics.writeSeconds.Observe(time.Since(began).Seconds())
	if fresh != nil && len(peers) > 0 { // peers send them again
		c.recent.add(items)
	}
	return fresh, nil
}

// writeCost is the weight of a write among those in flight: about the memory that
// it takes on each member until it is in the index. A write above the limit runs
// alone.
func writeCost(items []store.Item, limit int64) int64 {
	cost := int64(0)
	for i := range items {
		cost += int64(len(items[i].Payload)) + 1024
	}
	return min(cost, limit)
}

// await returns nil when the write rule holds.
func (c *Cluster) await(ctx context.Context, w *write) error {
	select {
	case <-w.done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-c.closing:
		return errClosing
	}
}

var errClosing = errors.New("the node is shutting down")

// putDone is called by the local store; it must not block.
func (c *Cluster) putDone(w *write, generation uint64, res store.PutResult) {
	w.mu.Lock()
	if res.Err != nil {
		w.localErr = res.Err
		w.mu.Unlock()
		return
	}
	w.fresh = res.New
	w.mu.Unlock()
	w.ack(c.id, generation, c.control.State)
}

// offer queues w at peers and returns the ids of those whose queue is full.
func (c *Cluster) offer(w *write, peers []*peer) (refused []string) {
	if len(peers) == 0 {
		return nil
	}
	w.encode(c.limits.MessageBytes)
	for _, p := range peers {
		if !p.offer(w) {
			refused = append(refused, p.id)
		}
	}
	return refused
}

func (c *Cluster) noQuorum(waitErr, localErr error, acks map[string]uint64, items int) error {
	switch {
	case errors.Is(waitErr, errClosing):
		return unavailable(CodeClosed, "the node is shutting down; the records may have been stored, send them again", nil)
	case localErr != nil:
		return c.storageError(localErr)
	}
	state := c.control.State()
	return unavailable(CodeNoQuorum, fmt.Sprintf(
		"durable on %d of %d members, which is no majority; the %d records may still become visible, send them again",
		state.Durable(acks), len(state.Current()), items), waitErr)
}

// storageError is storageError with the number of members, on which the remedy
// depends.
func (c *Cluster) storageError(err error) error {
	u := storageError(err)
	u.Members = len(c.control.State().Members)
	return u
}

// storageError translates an error of the local store for a caller.
func storageError(err error) *UnavailableError {
	switch {
	case errors.Is(err, wal.ErrReadOnly):
		return unavailable(CodeReadOnly, "this node is read-only because a volume is nearly full", err)
	case errors.Is(err, wal.ErrBusy), errors.Is(err, store.ErrBusy):
		return unavailable(CodeOverloadedDisk, "this node's disk cannot keep up", err)
	case errors.Is(err, wal.ErrClosed), errors.Is(err, store.ErrClosed):
		return unavailable(CodeClosed, "the node is shutting down", err)
	default:
		return unavailable(CodeStorageFailed, "this node's storage failed", err)
	}
}

func (c *Cluster) notMember(state *control.State) error {
	message := "this node is not a member of the cluster yet"
	if !state.Formed() {
		message = "the cluster has not formed yet"
	}
	var waits error
	if phase := c.control.Phase(); phase != "" {
		waits = errors.New(phase)
	}
	return unavailable(CodeNotMember, message, waits)
}
