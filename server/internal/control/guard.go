package control

import (
	"fmt"
	"runtime"
	"sync"

	"github.com/hashicorp/raft"
)

// guard stands between Raft and its storage. After a failed write nothing more
// is written, for nobody knows what a second try on the same file would leave
// there; this copy of the table then follows no more (Err), the process lives on.
type guard struct {
	RaftStorage
	failed func(error)

	mu  sync.Mutex // guards err
	err error
}

func (g *guard) Logs() raft.LogStore      { return guardedLogs{g.RaftStorage.Logs(), g} }
func (g *guard) Stable() raft.StableStore { return guardedStable{g.RaftStorage.Stable(), g} }

func (g *guard) write(what string, f func() error) error {
	g.mu.Lock()
	err := g.err
	g.mu.Unlock()
	if err != nil {
		return err
	}
	if err = f(); err == nil {
		return nil
	}
	err = fmt.Errorf("%s of the control table: %w; restart the node once its WAL volume works again", what, err)
	g.mu.Lock()
	g.err = err
	g.mu.Unlock()
	g.failed(err)
	return err
}

type guardedLogs struct {
	raft.LogStore
	g *guard
}

func (l guardedLogs) StoreLog(e *raft.Log) error { return l.StoreLogs([]*raft.Log{e}) }

func (l guardedLogs) StoreLogs(e []*raft.Log) error {
	return l.g.write("write the log", func() error { return l.LogStore.StoreLogs(e) })
}

func (l guardedLogs) DeleteRange(first, last uint64) error {
	return l.g.write("cut the log", func() error { return l.LogStore.DeleteRange(first, last) })
}

type guardedStable struct {
	raft.StableStore
	g *guard
}

func (s guardedStable) Set(key, value []byte) error {
	return s.g.write("write the vote", func() error { return s.StableStore.Set(key, value) })
}

// SetUint64 ends Raft's goroutine when a term cannot be written: Raft would
// panic, as it must not go on. Term 1 is written by the first configuration
// only, which handles the error.
func (s guardedStable) SetUint64(key []byte, value uint64) error {
	err := s.g.write("write the term", func() error { return s.StableStore.SetUint64(key, value) })
	if err != nil && string(key) == "CurrentTerm" && value > 1 {
		runtime.Goexit()
	}
	return err
}
