package store

import (
	"errors"

	"github.com/syndtr/goleveldb/leveldb"

	"github.com/stemedb/stemedb/server/internal/vfs"
	"github.com/stemedb/stemedb/server/internal/wal"
)

// End is the durable end of the log.
func (s *Store) End() wal.Position { return s.log.End() }

// First is the position at which the log begins.
func (s *Store) First() wal.Position { return s.log.First() }

// Watch returns a channel that is closed when End moves after the call or when the store
// closes. Take the channel first, then End.
func (s *Store) Watch() <-chan struct{} { return s.log.Watch() }

// Failed returns a channel that is closed when the index fails: the process
// should then restart, which repairs it.
func (s *Store) Failed() <-chan struct{} { return s.failed }

// Empty reports whether nothing was ever written here.
func (s *Store) Empty() bool { return s.log.End() <= s.log.First() && len(s.log.Missing()) == 0 }

// Identity is the identity of this node's volumes.
func (s *Store) Identity() wal.Identity { return s.log.Identity() }

// SetClusterID binds the volumes to a cluster, durably; it refuses an id that
// differs from theirs.
func (s *Store) SetClusterID(id string) error { return s.log.SetClusterID(id) }

// SetShared records on the volumes, durably, that the cluster has other members.
func (s *Store) SetShared() error { return s.log.SetShared() }

// Whole reports whether the node holds everything that it should: a durable
// flag on the WAL volume, cleared by any loss and set by SetWhole.
func (s *Store) Whole() bool { return s.log.Whole() }

// SetWhole sets that flag. losses is the number from Health when the caller
// began to repair them: if there is one more, the error is wal.ErrMoreLost. The
// node becomes whole only after the log holds the reset of the cursors for the
// last loss.
func (s *Store) SetWhole(losses int) error {
	if err := s.awaitReset(); err != nil {
		return err
	}
	return s.log.SetWhole(losses)
}

// Packs lists the sealed segments on the DB volume, oldest first.
func (s *Store) Packs() []wal.Pack { return s.log.Packs() }

// Health is the condition of log and index.
func (s *Store) Health() Health {
	h := Health{
		State: StateOK, Whole: s.log.Whole(), Space: s.log.Space(),
		Damage: append(s.log.Missing(), s.log.Damage()...), Losses: s.log.Losses(),
	}
	state, err := s.log.State()
	s.mu.Lock()
	failure := s.failure
	s.mu.Unlock()
	switch {
	case state == wal.StateFailed:
		h.State, h.Err = StateFailed, err
	case failure != nil:
		h.State, h.Err = StateIndexFailed, failure
	case state == wal.StateReadOnly:
		h.State, h.Err = StateReadOnly, err
	}
	return h
}

// Stats are figures for status pages.
func (s *Store) Stats() Stats {
	s.mu.Lock()
	st := Stats{Applied: s.applied, Marker: s.marker, PendingBytes: s.pending, Assertions: s.assertions + s.active.assertions}
	if s.frozen != nil {
		st.Assertions += s.frozen.assertions
	}
	closed := s.closed
	s.mu.Unlock()
	st.End = s.log.End()
	if closed {
		return st
	}
	var d leveldb.DBStats
	if err := s.db.Stats(&d); err == nil {
		st.WriteDelays, st.WriteDelay = int64(d.WriteDelayCount), d.WriteDelayDuration
		for _, n := range d.LevelSizes {
			st.IndexBytes += n
		}
	}
	return st
}

// Close rejects new Puts, waits for those in progress and until the index has
// applied them, writes the marker and closes everything. No other method may be
// running or be called later. A second call does nothing. A goroutine of
// goleveldb's lingers for up to a second.
func (s *Store) Close() error {
	s.mu.Lock()
	if s.closing {
		s.mu.Unlock()
		return nil
	}
	s.closing = true
	s.mu.Unlock()

	s.underWay.Wait()
	close(s.stopApply)
	close(s.stopPublish)
	s.files.Abort()
	s.goroutines.Wait()

	s.mu.Lock()
	s.closed = true
	failure := s.failure
	s.mu.Unlock()
	if vfs.IsNoSpace(failure) {
		failure = nil // the next start applies the entries that found no space
	}
	err := s.closeFiles()
	if vfs.IsNoSpace(err) {
		err = nil
	}
	return errors.Join(failure, err)
}
