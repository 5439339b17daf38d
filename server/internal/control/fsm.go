package control

import (
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"

	"github.com/hashicorp/raft"
)

// table is this node's copy: Raft's state machine. Readers take the newest
// State without a lock; Raft's one goroutine replaces it.
type table struct {
	state   atomic.Pointer[State]
	failed  atomic.Pointer[error] // set once: this copy follows no more
	changed *broadcast            // Control's
}

func newTable(changed *broadcast) *table {
	t := &table{changed: changed}
	t.state.Store((&State{}).clone())
	return t
}

// Apply implements raft.FSM. What is refused leaves only its index behind.
func (t *table) Apply(l *raft.Log) any {
	if err := t.err(); err != nil {
		return refuse(err)
	}
	old := t.state.Load()
	c, err := decodeCommand(l.Data, max(old.Format, 1))
	if errors.Is(err, ErrTooOld) {
		t.fail(err)
		return refuse(err)
	}
	next := old.clone()
	var answer *result
	switch _, founding := c.(*found); {
	case err != nil:
		answer = refuse(err)
	case !old.Formed() && !founding:
		answer = refuse(errUnformed)
	default:
		answer = c.apply(next)
	}
	next.Index = l.Index
	t.state.Store(next)
	t.changed.broadcast()
	return answer
}

func (t *table) err() error {
	if err := t.failed.Load(); err != nil {
		return *err
	}
	return nil
}

func (t *table) fail(err error) {
	t.failed.CompareAndSwap(nil, &err)
	t.changed.broadcast()
}

// Snapshot implements raft.FSM. A snapshot is one byte with its format and the
// State as CBOR.
func (t *table) Snapshot() (raft.FSMSnapshot, error) {
	if err := t.err(); err != nil {
		return nil, err
	}
	return snapshot{t.state.Load()}, nil
}

// Restore implements raft.FSM.
func (t *table) Restore(r io.ReadCloser) error {
	defer r.Close()
	b, err := io.ReadAll(r)
	if err != nil {
		return fmt.Errorf("read a snapshot of the control table: %w", err)
	}
	if len(b) == 0 {
		return errors.New("a snapshot of the control table is empty")
	}
	s := &State{}
	if int(b[0]) > Format {
		return fmt.Errorf("restore a snapshot of format %d: %w", b[0], ErrTooOld)
	}
	if err := unmarshal(b[1:], s); err != nil {
		return fmt.Errorf("decode a snapshot of the control table: %w", err)
	}
	t.state.Store(s.clone())
	t.changed.broadcast()
	return nil
}

type snapshot struct{ state *State }

func (s snapshot) Persist(sink raft.SnapshotSink) error {
	b, err := marshal(s.state)
	if err == nil {
		_, err = sink.Write(append([]byte{1}, b...))
	}
	if err != nil {
		return errors.Join(fmt.Errorf("write a snapshot of the control table: %w", err), sink.Cancel())
	}
	return sink.Close()
}

func (snapshot) Release() {}

// broadcast wakes everyone who waits for its channel.
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
