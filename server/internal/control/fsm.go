package control

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/hashicorp/raft"

	"github.com/stemedb/stemedb/internal/sleep"
)

// table is this node's copy: Raft's state machine. Readers load the newest State
// without a lock; a single goroutine of Raft replaces it. When Raft is restarted
// in this process, it begins with a separate, empty State (replayed), and readers
// keep the previous one until the replay has reached it: values that members rely
// on, such as the generation, never decrease.
type table struct {
	state    atomic.Pointer[State]
	replayed *State // owned by Raft's goroutine; equal to state except during a replay
	digests  history
	failed   atomic.Pointer[error] // why the current instance no longer follows
	broken   chan struct{}         // holds one value after fail
	changed  *broadcast            // Control's
}

func newTable(changed *broadcast) *table {
	t := &table{changed: changed, broken: make(chan struct{}, 1)}
	t.state.Store((&State{}).clone())
	t.restart()
	return t
}

// restart prepares the table for another instance of Raft; none is running. It
// clears the failure before that instance begins: the commands of its replay are
// applied, and a new failure counts, however long the start takes. The value in
// broken is removed first, so that a concurrent fail leaves one.
func (t *table) restart() {
	t.replayed = (&State{}).clone()
	t.digests.reset()
	select {
	case <-t.broken:
	default:
	}
	t.failed.Store(nil)
}

// publish makes next the State, unless readers have seen a newer one.
func (t *table) publish(next *State) {
	t.replayed = next
	if next.Index >= t.state.Load().Index {
		t.state.Store(next)
	}
	t.changed.broadcast()
}

// Apply implements raft.FSM.
func (t *table) Apply(l *raft.Log) any { return t.ApplyBatch([]*raft.Log{l})[0] }

// ApplyBatch implements raft.BatchingFSM. Each change copies the State, at a cost
// proportional to the number of keys, so a replay copies it once for many
// commands. Readers see all of them or none.
func (t *table) ApplyBatch(logs []*raft.Log) []any {
	answers := make([]any, len(logs))
	next := t.replayed.clone()
	for i, l := range logs {
		if l.Type == raft.LogCommand { // Raft's internal entries are passed here too
			answers[i] = t.applyTo(next, l)
		}
	}
	t.publish(next)
	return answers
}

// applyTo applies one command. A refused command only changes the index.
func (t *table) applyTo(next *State, l *raft.Log) *result {
	if err := t.err(); err != nil {
		return refuse(err)
	}
	c, err := decodeCommand(l.Data, max(next.Format, 1))
	if errors.Is(err, ErrTooOld) {
		t.fail(err)
		return refuse(err)
	}
	var answer *result
	switch _, founding := c.(*found); {
	case err != nil:
		answer = refuse(err)
	case !next.Formed() && !founding:
		answer = refuse(errUnformed)
	default:
		answer = c.apply(next)
	}
	next.Index = l.Index
	next.sealDigest()
	t.digests.add(next.Index, next.digest)
	return answer
}

var _ raft.BatchingFSM = (*table)(nil)

func (t *table) err() error {
	if err := t.failed.Load(); err != nil {
		return *err
	}
	return nil
}

// fail stops this copy. Only the first reason counts.
func (t *table) fail(err error) {
	t.failed.CompareAndSwap(nil, &err)
	sleep.Wake(t.broken)
	t.changed.broadcast()
}

// Snapshot implements raft.FSM. A snapshot is one byte with its format, the
// digest (32 bytes) and the State as CBOR.
func (t *table) Snapshot() (raft.FSMSnapshot, error) {
	if err := t.err(); err != nil {
		return nil, err
	}
	return snapshot{t.replayed, t.fail}, nil
}

// Restore implements raft.FSM.
func (t *table) Restore(r io.ReadCloser) error {
	defer r.Close()
	b, err := io.ReadAll(r)
	if err != nil {
		return fmt.Errorf("read a snapshot of the control table: %w", err)
	}
	s, err := decodeSnapshot(b)
	if err != nil {
		return err
	}
	t.digests.add(s.Index, s.digest)
	t.publish(s)
	return nil
}

func decodeSnapshot(b []byte) (*State, error) {
	if len(b) == 0 {
		return nil, errors.New("a snapshot of the control table is empty")
	}
	if int(b[0]) > Format {
		return nil, fmt.Errorf("restore a snapshot of format %d: %w", b[0], ErrTooOld)
	}
	held := &State{}
	if len(b) < snapshotPreamble || b[0] == 0 {
		return nil, fmt.Errorf("a snapshot of the control table has %d bytes: it %w", len(b), errDamaged)
	}
	if err := unmarshal(b[snapshotPreamble:], held); err != nil {
		return nil, fmt.Errorf("decode a snapshot of the control table: %w", err)
	}
	s := held.clone()
	if s.recount(); s.digest != digest(b[1:snapshotPreamble]) {
		return nil, fmt.Errorf("a snapshot of the control table at %d %w", s.Index, errDamaged)
	}
	return s, nil
}

const snapshotPreamble = 1 + len(digest{})

type snapshot struct {
	state *State
	fail  func(error)
}

// Persist verifies the State and does not write a damaged one.
func (s snapshot) Persist(sink raft.SnapshotSink) error {
	err := s.state.verify()
	if err != nil {
		s.fail(&failure{kind: inMemory, err: err})
	}
	var b []byte
	if err == nil {
		b, err = marshal(s.state)
	}
	if err == nil {
		_, err = sink.Write(slices.Concat([]byte{1}, s.state.digest[:], b))
	}
	if err != nil {
		return errors.Join(fmt.Errorf("write a snapshot of the control table: %w", err), sink.Cancel())
	}
	return sink.Close()
}

func (snapshot) Release() {}

// broadcast wakes all waiters of its channel.
type broadcast struct {
	mu sync.Mutex
	ch chan struct{}
}

func (b *broadcast) wait() <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ch == nil {
		b.ch = make(chan struct{})
	}
	return b.ch
}

func (b *broadcast) broadcast() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ch != nil {
		close(b.ch)
		b.ch = nil
	}
}
