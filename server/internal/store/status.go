package store

import (
	"errors"

	"github.com/syndtr/goleveldb/leveldb"

	"github.com/stemedb/stemedb/server/internal/vfs"
	"github.com/stemedb/stemedb/server/internal/wal"
)

// End is the durable end of the log.
func (s *Store) End() wal.Position { return s.log.End() }

// Watch returns a channel that is closed when End moves after the call or when the store
// closes. Take the channel first, then End.
func (s *Store) Watch() <-chan struct{} { return s.log.Watch() }

// Failed returns a channel that is closed when the index fails: the process
// should restart, which heals it.
func (s *Store) Failed() <-chan struct{} { return s.failed }

// Empty tells whether nothing was ever written here.
func (s *Store) Empty() bool { return s.log.End() <= s.log.First() && len(s.log.Missing()) == 0 }

// Identity is the identity of this node's volumes.
func (s *Store) Identity() wal.Identity { return s.log.Identity() }

// SetClusterID binds the volumes to a cluster, durably; another id than the
// one that they carry is refused.
func (s *Store) SetClusterID(id string) error { return s.log.SetClusterID(id) }

// SetShared notes on the volumes, durably, that the cluster has other members.
func (s *Store) SetShared() error { return s.log.SetShared() }

// Whole tells whether the node holds all that it should: a durable note on the
// WAL volume, taken away by any loss and given by SetWhole.
func (s *Store) Whole() bool { return s.log.Whole() }

// SetWhole writes that note. losses is what Health counted when the caller
// began to make good for them: with one more it is wal.ErrMoreLost. The node
// does not become whole before the log holds that the cursors were forgotten
// after the last loss.
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

// Close refuses new Puts, waits for those under way and until the index has
// taken them in, writes the marker and closes everything. No other method may
// be running or be called any more. A second call does nothing. A goroutine of
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
		failure = nil // the next start takes in what found no space
	}
	err := s.closeFiles()
	if vfs.IsNoSpace(err) {
		err = nil
	}
	return errors.Join(failure, err)
}
