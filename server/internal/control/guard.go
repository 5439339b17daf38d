package control

import (
	"errors"
	"fmt"
	"io"
	"runtime"
	"sync"

	"github.com/hashicorp/raft"
)

// guard wraps the storage of one instance of Raft. After a failed write, or after
// reading damaged data, it writes nothing more, because the effect of a second
// attempt on the same file is unknown; this instance of Raft ends, the process
// continues, and Control starts another one.
//
// Raft panics when it cannot read a committed entry or write a term; the guard
// instead ends that goroutine with runtime.Goexit.
type guard struct {
	sealed
	failed func(*failure)
	remake func()      // a snapshot was found to be damaged
	renew  func()      // a snapshot is being sent: the next one should be newer
	missed func(error) // a snapshot could not be written; Raft retries
	// withheld reports whether no snapshot may be sent now.
	withheld func() bool

	mu  sync.Mutex // guards err
	err error
}

func (g *guard) Logs() raft.LogStore           { return guardedLogs{g.sealed.Logs(), g} }
func (g *guard) Stable() raft.StableStore      { return guardedStable{g.sealed.Stable(), g} }
func (g *guard) Snapshots() raft.SnapshotStore { return guardedSnapshots{g.sealed.Snapshots(), g} }

func (g *guard) write(what string, f func() error) error {
	if err := g.failure(); err != nil {
		return err
	}
	err := f()
	if err == nil {
		return nil
	}
	return g.fail(&failure{kind: storageFailed, err: fmt.Errorf("%s of the control table: %w", what, err)})
}

func (g *guard) fail(f *failure) error {
	g.mu.Lock()
	first := g.err == nil
	if first {
		g.err = f
	}
	g.mu.Unlock()
	if first {
		g.failed(f)
	}
	return f
}

// failure is the reason why nothing more is written, or nil.
func (g *guard) failure() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.err
}

type guardedLogs struct {
	raft.LogStore
	g *guard
}

// GetLog never returns a damaged entry, neither to the state machine nor to a
// goroutine that would replicate it.
func (l guardedLogs) GetLog(index uint64, e *raft.Log) error {
	err := l.LogStore.GetLog(index, e)
	if err == nil {
		return nil
	}
	applies := calledBy(inProcessLogs)
	if errors.Is(err, raft.ErrLogNotFound) {
		if !applies && calledBy(inAppendEntries) {
			return l.compareWith(index, e)
		}
		if !l.missing(index) {
			return err
		}
	}
	err = l.g.fail(&failure{kind: damaged, err: fmt.Errorf("read the log of the control table: %w", err)})
	if applies {
		runtime.Goexit()
	}
	return err
}

// compareWith handles an entry that is not in the log and that a follower
// compares with the leader's; only the term counts. Raft reads only the log: if
// that begins at or near a snapshot, the two never agree on an entry before it,
// and the leader retries forever. The snapshot has one term; for earlier entries
// this part ends, and the next one fetches the leader's table. (An empty log is
// filled from wherever the leader begins.)
func (l guardedLogs) compareWith(index uint64, e *raft.Log) error {
	snapshots, err := l.g.Snapshots().List()
	if err != nil || len(snapshots) == 0 {
		return raft.ErrLogNotFound
	}
	at := snapshots[0]
	last, err := l.LastIndex()
	switch {
	case err != nil || index > at.Index || last == 0:
		return raft.ErrLogNotFound
	case index == at.Index:
		*e = raft.Log{Index: index, Term: at.Term, Type: raft.LogNoop}
		return nil
	}
	return l.g.fail(&failure{kind: damaged, fetch: true, always: true, err: fmt.Errorf("the log of the control table lacks entry %d, from which the leader continues", index)})
}

// The places in Raft at which the guard behaves differently.
const (
	inProcessLogs     = "github.com/hashicorp/raft.(*Raft).processLogs"
	inAppendEntries   = "github.com/hashicorp/raft.(*Raft).appendEntries"
	inInstallSnapshot = "github.com/hashicorp/raft.(*Raft).installSnapshot"
	inSendSnapshot    = "github.com/hashicorp/raft.(*Raft).sendLatestSnapshot"
)

// calledBy reports whether the function is among the callers. Raft's main loop
// panics on an error; its other readers handle it, and some of them have to
// return because Raft waits for them.
func calledBy(function string) bool {
	pcs := make([]uintptr, 16)
	frames := runtime.CallersFrames(pcs[:runtime.Callers(2, pcs)])
	for {
		frame, more := frames.Next()
		if frame.Function == function {
			return true
		}
		if !more {
			return false
		}
	}
}

// missing reports whether an absent entry should exist. Raft also asks for
// entries behind the last one, and for those that a snapshot replaced.
func (l guardedLogs) missing(index uint64) bool {
	last, err := l.LastIndex()
	if err != nil {
		return true
	}
	snapshots, err := l.g.Snapshots().List()
	if err != nil {
		return true
	}
	return index <= last && (len(snapshots) == 0 || index > snapshots[0].Index)
}

func (l guardedLogs) StoreLog(e *raft.Log) error { return l.StoreLogs([]*raft.Log{e}) }

func (l guardedLogs) StoreLogs(e []*raft.Log) error {
	return l.g.write("write the log", func() error { return l.LogStore.StoreLogs(e) })
}

// DeleteRange keeps the entries behind the older of the kept snapshots, so that a
// damaged snapshot can be rebuilt from this node's log.
func (l guardedLogs) DeleteRange(first, last uint64) error {
	return l.g.write("cut the log", func() error {
		end, err := l.LastIndex()
		if err != nil {
			return err
		}
		if last < end { // the front: a snapshot was taken
			snapshots, err := l.g.Snapshots().List()
			if err != nil {
				return err
			}
			if len(snapshots) < keptSnapshots {
				return nil
			}
			last = min(last, snapshots[keptSnapshots-1].Index)
		}
		if last < first {
			return nil
		}
		return l.LogStore.DeleteRange(first, last)
	})
}

type guardedStable struct {
	raft.StableStore
	g *guard
}

func (s guardedStable) Get(key []byte) ([]byte, error) {
	b, err := s.StableStore.Get(key)
	return b, s.readable(err)
}

func (s guardedStable) GetUint64(key []byte) (uint64, error) {
	n, err := s.StableStore.GetUint64(key)
	return n, s.readable(err)
}

func (s guardedStable) readable(err error) error {
	if errors.Is(err, errDamaged) {
		return s.g.fail(voteDamaged(err, s.g.members()))
	}
	return err
}

func (s guardedStable) Set(key, value []byte) error {
	return s.g.write("write the vote", func() error { return s.StableStore.Set(key, value) })
}

// SetUint64 ends the goroutine when a term cannot be written: see guard. Term 1
// is only written with the first configuration, whose caller handles the error.
func (s guardedStable) SetUint64(key []byte, value uint64) error {
	err := s.g.write("write the term", func() error { return s.StableStore.SetUint64(key, value) })
	if err != nil && string(key) == "CurrentTerm" && value > 1 {
		runtime.Goexit()
	}
	return err
}

// guardedSnapshots drops damaged snapshots: Raft would offer its followers the
// newest one forever.
type guardedSnapshots struct {
	raft.SnapshotStore
	g *guard
}

func (s guardedSnapshots) Create(version raft.SnapshotVersion, index, term uint64, servers raft.Configuration,
	serversIndex uint64, trans raft.Transport,
) (raft.SnapshotSink, error) {
	if calledBy(inInstallSnapshot) {
		// A snapshot older than the local one would leave a gap before the log.
		if held, err := s.List(); err == nil && len(held) > 0 && held[0].Index > index {
			return nil, fmt.Errorf("the leader's snapshot at %d is older than the one here at %d", index, held[0].Index)
		}
	}
	sink, err := s.SnapshotStore.Create(version, index, term, servers, serversIndex, trans)
	if err != nil {
		s.g.missed(err)
		return nil, err
	}
	return &guardedSink{SnapshotSink: sink, g: s.g}, nil
}

type guardedSink struct {
	raft.SnapshotSink
	g *guard
}

func (k *guardedSink) Write(p []byte) (int, error) {
	n, err := k.SnapshotSink.Write(p)
	if err != nil {
		k.g.missed(err)
	}
	return n, err
}

func (k *guardedSink) Close() error {
	err := k.SnapshotSink.Close()
	if err != nil {
		k.g.missed(err)
	}
	return err
}

func (s guardedSnapshots) Open(id string) (*raft.SnapshotMeta, io.ReadCloser, error) {
	sends := calledBy(inSendSnapshot)
	if sends && s.g.withheld() {
		return nil, nil, errUndecided
	}
	meta, r, err := s.SnapshotStore.Open(id)
	if errors.Is(err, errDamaged) {
		err = errors.Join(err, s.g.drop([]string{id}))
		s.g.remake()
	} else if sends {
		s.g.renew() // the follower may have a newer one
	}
	return meta, r, err
}

func (g *guard) drop(snapshots []string) error {
	return g.write("drop a damaged snapshot", func() error {
		var errs []error
		for _, id := range snapshots {
			errs = append(errs, g.DropSnapshot(id))
		}
		return errors.Join(errs...)
	})
}
