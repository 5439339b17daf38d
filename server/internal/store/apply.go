package store

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/util"

	"github.com/stemedb/stemedb/internal/sleep"
	"github.com/stemedb/stemedb/server/internal/wal"
)

// The applier copies the log into goleveldb, asynchronously and in unsynced
// batches. After a crash goleveldb may have lost any of them, even ones in the
// middle. The marker makes that harmless: it is a position below which nothing
// is missing. It is written only after a barrier that makes goleveldb flush its
// memtable into synced tables (see mark), so a marker proves that the barrier
// is complete. A marker written with Sync but without the barrier would not be
// enough: goleveldb syncs only the current journal, and data older than an
// acknowledged marker has been lost that way.

const (
	maxBatch = 512 << 10 // bytes of one goleveldb batch
	// recentSubjects bounds the memory for subjects recently put into the
	// dictionary, so that a busy subject is not written with each claim.
	recentSubjects = 4096
)

// apply runs until stopApply and applies the remaining entries before it ends.
// Markers are written concurrently: a barrier waits for compactions, seconds
// when goleveldb is behind, and must not hold up any Put meanwhile.
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
			sleep.Wake(s.work)
		case <-marking:
			marking = nil
			timer.Reset(s.opts.MarkerInterval)
		case <-timer.C:
			timer.Reset(s.opts.MarkerInterval)
			due /= 64 // a short replay is not worth a barrier
			if room.look() {
				s.rejoin()
			}
		case <-s.stopApply:
			if marking != nil {
				<-marking
			}
			if s.writable() && s.applyActive() {
				_ = s.mark() // recorded as the store's failure
			}
			return
		}
		if marking == nil && s.markerDue(due) && room.look() {
			done := make(chan struct{})
			marking = done
			go func() {
				defer close(done)
				_ = s.mark() // recorded as the store's failure
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
		// The frozen layer stays: acknowledged entries remain readable.
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
			s.makeRoom(l, l.bytes*done/(total+1)) // the rest is released with the layer
		}
		return sound
	})
	b.flush()
	if b.err != nil {
		return b.err
	}
	return s.join(l.contents, l.loose)
}

// makeRoom admits Puts for the written part of the frozen layer. Otherwise all
// of them would wait for a whole layer at a time, seconds when goleveldb is
// behind with its compactions.
func (s *Store) makeRoom(l *layer, written int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pending -= written - l.written
	l.written = written
}

// batcher splits writes into goleveldb batches.
type batcher struct {
	db       *leveldb.DB
	batch    leveldb.Batch
	bytes    int
	limit    int // far below WriteBuffer: a larger batch takes another, slower path
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
	metaSeen     = "seen"     // position 8: of an entry that was durable; it guarantees nothing below it
	metaIdentity = "identity" // incarnation of the index's log
	metaFormat   = "format"   // 1
	metaGaps     = "gaps"     // (from 8, to 8)*: losses of the log that the index does not cover
	metaReset    = "reset"    // position 8: of the last reset (loss.go)
)

const indexFormat = 1

func metaKey(name string) []byte { return append([]byte{spaceMeta}, name...) }

// markerDue reports whether enough was applied since the last marker for the
// next one to be worth its barrier.
func (s *Store) markerDue(bytes int64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.failure == nil && s.distance(s.marker, s.applied) >= bytes
}

// mark writes the marker and reports it to the log. The applier causes the
// calls, or before that replay, one at a time.
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

// barrier returns when everything written to goleveldb before it is in synced
// tables that a synced manifest names. CompactRange flushes the memtable if it
// overlaps the range. The range begins at a key after all others, new each
// time, so that only the youngest level of tables is compacted.
// (OpenTransaction is the same barrier without that compaction, but if it fails
// it keeps goleveldb's write lock permanently, and Close hangs.)
//
// The applier writes meanwhile, and may replace the memtable between the key
// and CompactRange, which then waits for nothing. A memtable is in tables once
// its journal is gone. If the journal still exists, a second round is enough: a
// memtable is replaced only after the previous one is in tables.
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

// distance is the approximate number of log bytes between two positions.
func (s *Store) distance(from, to wal.Position) int64 {
	if to <= from {
		return 0
	}
	return int64(to.Segment()-from.Segment())*s.opts.SegmentSize + int64(to.Offset()) - int64(from.Offset())
}

// indexError converts an error of goleveldb into one of this package. Damage
// and any other permanent error fail the index.
func (s *Store) indexError(doing string, err error) error {
	if errors.Is(err, leveldb.ErrClosed) || errors.Is(err, leveldb.ErrSnapshotReleased) {
		return ErrClosed
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.failLocked(err)
	return fmt.Errorf("%s: %w", doing, s.failure)
}

// failLocked is sticky. A damaged index is recorded on disk, so that the next
// start rebuilds it; other failures (a full disk) are left to replay.
func (s *Store) failLocked(err error) {
	if s.failure != nil || s.closed {
		return
	}
	s.failure = fmt.Errorf("%w: %w", ErrIndexFailed, err)
	s.logger.Error("the index failed", "err", err)
	if damagedIndex(err) {
		if nerr := s.noteRebuild(); nerr != nil {
			s.logger.Error("cannot record that the index must be rebuilt", "err", nerr)
		}
	}
	close(s.failed)
}
