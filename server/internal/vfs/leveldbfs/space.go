package leveldbfs

import (
	"sync"
	"time"

	"github.com/stemedb/stemedb/server/internal/vfs"
)

// A full volume is not a failure of the index. goleveldb never recovers from a
// failed write to its journal, so here such a write waits until there is space.
// Meanwhile reads continue, and the log rejects writes to the store.

const spaceEvery = 250 * time.Millisecond

// patience says whether to wait, and ends the waiting.
type patience struct {
	mu      sync.Mutex
	waits   bool
	warned  bool
	ended   bool // aborted is closed
	aborted chan struct{}
}

// WaitForSpace makes writes wait for space from now on instead of failing.
func (s *Storage) WaitForSpace() {
	s.patience.mu.Lock()
	defer s.patience.mu.Unlock()
	s.patience.waits = !s.patience.ended
}

// Abort ends the current waits and prevents new ones, so that the storage can be closed.
func (s *Storage) Abort() {
	s.patience.mu.Lock()
	defer s.patience.mu.Unlock()
	s.patience.waits = false
	if !s.patience.ended {
		s.patience.ended = true
		close(s.patience.aborted)
	}
}

// withSpace retries do while it fails for lack of space.
func (s *Storage) withSpace(do func() error) error {
	for {
		err := do()
		if !vfs.IsNoSpace(err) || !s.awaitSpace(err) {
			return err
		}
	}
}

func (s *Storage) awaitSpace(cause error) bool {
	p := &s.patience
	p.mu.Lock()
	waits, warned := p.waits, p.warned
	p.warned = p.warned || waits
	p.mu.Unlock()
	if !waits {
		return false
	}
	if !warned {
		s.logger.Warn("the index waits for space on its volume; free or add space, and it continues by itself", "error", cause)
	}
	select {
	case <-time.After(spaceEvery):
		return true
	case <-p.aborted:
		return false
	}
}

// Write waits for space for the bytes that did not fit.
func (w *writer) Write(b []byte) (n int, err error) {
	err = w.s.withSpace(func() error {
		m, err := w.File.Write(b[n:])
		n += m
		return err
	})
	return n, err
}
