package store

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/util"

	"github.com/stemedb/stemedb/server/internal/wal"
)

// The applier brings into goleveldb what the log holds, behind the log, in
// unsynced batches. After a crash goleveldb may have lost any of them, also
// ones in the middle. What makes that harmless is the marker: a position below
// which nothing is missing. It is written only after a barrier that makes
// goleveldb write its memtable out as synced tables (see mark), so whenever a
// marker is found, that barrier has been passed. A marker written with
// Sync but without the barrier would not do: goleveldb syncs the current
// journal only, and data older than an acknowledged marker was seen lost.

const (
	maxBatch = 512 << 10 // bytes of one goleveldb batch
	// recentSubjects bounds the memory of what was lately put into the
	// dictionary, so that a busy subject is not written with each claim.
	recentSubjects = 4096
)

// apply runs until stopApply; what is left then is taken in before it ends.
// Markers are written beside it: a barrier waits for compactions, seconds when
// goleveldb is behind, and must hold up no Put meanwhile.
func (s *Store) apply() {
	defer s.goroutines.Done()
	timer := time.NewTimer(s.opts.MarkerInterval)
	defer timer.Stop()
	var marking chan struct{} // nil when no marker is being written
	var again <-chan time.Time
	room := room{s: s}
	for {
		due := s.opts.MarkerBytes
		select {
		case <-s.work:
			if room.look() {
				s.applyActive()
			} else {
				again = time.After(roomEvery)
			}
		case <-again:
			wake(s.work)
		case <-marking:
			marking = nil
			timer.Reset(s.opts.MarkerInterval)
		case <-timer.C:
			timer.Reset(s.opts.MarkerInterval)
			due /= 64 // what replays in a moment is not worth a barrier
			if room.look() {
				s.rejoin()
			}
		case <-s.stopApply:
			if marking != nil {
				<-marking
			}
			if s.writable() && s.applyActive() {
				_ = s.mark() // noted as the store's failure
			}
			return
		}
		if marking == nil && s.markerDue(due) && room.look() {
			done := make(chan struct{})
			marking = done
			go func() {
				defer close(done)
				_ = s.mark() // noted as the store's failure
			}()
		}
	}
}

// applyActive writes the active layer, which is frozen meanwhile. It reports
// whether the index is sound.
func (s *Store) applyActive() bool {
	s.mu.Lock()
	l := s.active
	if s.failure != nil || l.tree.Len() == 0 {
		sound := s.failure == nil
		s.mu.Unlock()
		return sound
	}
	s.frozen, s.active = l, newLayer()
	s.mu.Unlock()

	err := s.writeLayer(l)

	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil {
		// The frozen layer stays: what was acknowledged remains readable.
		s.failLocked(err)
		return false
	}
	s.frozen = nil
	s.pending -= l.bytes - l.written
	s.applied = max(s.applied, l.end)
	s.assertions += l.assertions
	return true
}

func (s *Store) writeLayer(l *layer) error {
	b := s.newBatcher()
	if l.end > s.applied {
		b.put(metaKey(metaSeen), binary.BigEndian.AppendUint64(nil, uint64(l.end)))
	}
	done, total := int64(0), int64(l.tree.Len())
	l.tree.Scan(func(e kv) bool {
		sound := b.put(e.k, e.v)
		if done++; b.bytes == 0 {
			s.makeRoom(l, l.bytes*done/(total+1)) // the rest goes with the layer
		}
		return sound
	})
	b.flush()
	if b.err != nil {
		return b.err
	}
	return s.join(l.contents, l.loose)
}

// makeRoom lets Puts in for the part of the frozen layer that is written.
// Without it all of them would wait for a whole layer at a time, seconds when
// goleveldb is behind with its compactions.
func (s *Store) makeRoom(l *layer, written int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pending -= written - l.written
	l.written = written
}

// batcher cuts what is written into goleveldb batches.
type batcher struct {
	db       *leveldb.DB
	batch    leveldb.Batch
	bytes    int
	limit    int // far below WriteBuffer: a larger batch goes another, slower way
	subjects map[string]struct{}
	err      error
}

func (s *Store) newBatcher() *batcher {
	return &batcher{db: s.db, limit: min(maxBatch, s.opts.WriteBuffer/4), subjects: s.subjects}
}

func (b *batcher) put(k, v []byte) bool {
	switch k[0] {
	case spaceLoose:
		return true
	case spaceSubject:
		if _, known := b.subjects[string(k)]; known {
			return true
		}
		if len(b.subjects) >= recentSubjects {
			clear(b.subjects)
		}
		b.subjects[string(k)] = struct{}{}
	}
	b.batch.Put(k, v)
	if b.bytes += len(k) + len(v); b.bytes >= b.limit {
		b.flush()
	}
	return b.err == nil
}

func (b *batcher) flush() {
	if b.err == nil && b.batch.Len() > 0 {
		b.err = b.db.Write(&b.batch, nil)
	}
	b.batch.Reset()
	b.bytes = 0
}

// Names in the meta space.
const (
	metaApplied  = "applied"  // position 8, count 8: everything up to the position is in the index, that many contents
	metaSeen     = "seen"     // position 8: of an entry that was durable; it vouches for nothing below it
	metaIdentity = "identity" // incarnation of the log that the index is of
	metaFormat   = "format"   // 1
	metaGaps     = "gaps"     // (from 8, to 8)*: losses of the log that the index holds nothing of
	metaReset    = "reset"    // position 8: of the last reset (loss.go)
)

const indexFormat = 1

func metaKey(name string) []byte { return append([]byte{spaceMeta}, name...) }

// markerDue tells whether so much was taken in since the last marker that the
// next one is worth its barrier.
func (s *Store) markerDue(bytes int64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.failure == nil && s.distance(s.marker, s.applied) >= bytes
}

// mark writes the marker and tells the log. It is called on behalf of the
// applier, or before that by replay, one at a time.
func (s *Store) mark() error {
	s.mu.Lock()
	pos, due := s.applied, s.applied > s.marker && s.failure == nil
	value := binary.BigEndian.AppendUint64(nil, uint64(pos))
	value = binary.BigEndian.AppendUint64(value, uint64(s.assertions))
	s.mu.Unlock()
	if !due {
		return nil
	}
	err := s.barrier(pos)
	if err == nil {
		err = s.db.Put(metaKey(metaApplied), value, nil)
	}
	if err != nil {
		err = fmt.Errorf("write the index's marker: %w", err)
		s.mu.Lock()
		s.failLocked(err)
		s.mu.Unlock()
		return err
	}
	s.mu.Lock()
	s.marker = pos
	s.mu.Unlock()
	s.log.SetApplied(pos)
	return nil
}

// barrier returns when everything that was written to goleveldb before it
// stands in synced tables, named by a synced manifest. CompactRange writes the
// memtable out when it overlaps the range. The range begins at a key behind
// all others, which is new each time, so that of the tables only the youngest
// level is compacted. (OpenTransaction is the same barrier without that
// compaction, but when it fails it keeps goleveldb's write lock for ever, and
// Close hangs.)
//
// The applier writes meanwhile, and may replace the memtable between the key
// and CompactRange, which then waits for nothing. A memtable is in tables when
// its journal is gone. If it is not, a second round does: a memtable is not
// replaced before the one before it is in tables.
func (s *Store) barrier(pos wal.Position) error {
	for round := range byte(2) {
		key := append(binary.BigEndian.AppendUint64([]byte{spaceBarrier}, uint64(pos)), round)
		var b leveldb.Batch
		if s.barrierKey != nil {
			b.Delete(s.barrierKey)
		}
		b.Put(key, nil)
		if err := s.db.Write(&b, nil); err != nil {
			return err
		}
		s.barrierKey = key
		journal := s.files.Journal() // the key's, or a later one
		if s.opts.betweenBarrier != nil {
			s.opts.betweenBarrier()
		}
		if err := s.db.CompactRange(util.Range{Start: key}); err != nil {
			return err
		}
		if gone, err := s.files.Gone(journal); gone || err != nil {
			return err
		}
	}
	return nil
}

func (s *Store) putMeta(values map[string][]byte) error {
	var b leveldb.Batch
	for name, v := range values {
		b.Put(metaKey(name), v)
	}
	if err := s.db.Write(&b, nil); err != nil {
		return fmt.Errorf("write the index's notes: %w", err)
	}
	return nil
}

// distance is about how many bytes of log lie between two positions.
func (s *Store) distance(from, to wal.Position) int64 {
	if to <= from {
		return 0
	}
	return int64(to.Segment()-from.Segment())*s.opts.SegmentSize + int64(to.Offset()) - int64(from.Offset())
}

// indexError makes what goleveldb said an error of this package. Damage and
// whatever else will not pass fails the index.
func (s *Store) indexError(doing string, err error) error {
	if errors.Is(err, leveldb.ErrClosed) || errors.Is(err, leveldb.ErrSnapshotReleased) {
		return ErrClosed
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.failLocked(err)
	return fmt.Errorf("%s: %w", doing, s.failure)
}

// failLocked is sticky. An index that is damaged is noted on disk, so that the
// next start makes it anew; what else failed (a full disk) is left to replay.
func (s *Store) failLocked(err error) {
	if s.failure != nil || s.closed {
		return
	}
	s.failure = fmt.Errorf("%w: %w", ErrIndexFailed, err)
	s.logger.Error("the index failed", "err", err)
	if damagedIndex(err) {
		if nerr := s.noteRebuild(); nerr != nil {
			s.logger.Error("cannot note that the index must be rebuilt", "err", nerr)
		}
	}
	close(s.failed)
}
