package store

import (
	"context"
	"fmt"
	"time"

	"github.com/stemedb/stemedb/server/internal/vfs"
	"github.com/stemedb/stemedb/server/internal/wal"
)

// The index is not written while its volume has too little room: a start needs
// some, and goleveldb does not recover from a journal that could not be written.
// What is durable in the log stays in the overlay then, where it can be read; the log
// refuses writes long before, see wal.Options.Reserve. A start without room:
//
//   - goleveldb opens in memory (leveldbfs.Stage): nothing on disk changes.
//   - Replay fills the overlay with what the log holds behind the marker, up to
//     maxHeldBack. With more to come, Open waits for room, or until its context ends.
//   - No marker is written, for none of this survives a crash.
//
// With room the applier brings goleveldb's files to disk, then the overlay.

// roomEvery is how often somebody who waits for room looks whether there is some.
const roomEvery = 250 * time.Millisecond

// maxHeldBack times Options.ApplyBytes bounds what a start holds back, but for one
// chunk of the log.
const maxHeldBack = 4

const msgNoRoom = "the index waits for space on its volume; free or add space, and it goes on by itself"

// hasRoom tells whether a memtable and what its compaction takes fit on the volume,
// besides what is staged.
func (s *Store) hasRoom() bool { return s.free(3) }

// ample tells whether Open may write the index: not when what goleveldb compacts
// beside it could take the rest, for then the write would wait, and Open with it.
func (s *Store) ample() bool { return s.free(8) }

func (s *Store) free(memtables uint64) bool {
	staged, _ := s.files.Staged()
	free, _, err := s.opts.FS.Free(s.opts.DBDir)
	return err != nil || free >= staged+memtables*uint64(s.opts.WriteBuffer)
}

// makeWritable tells whether the index can be written, and brings goleveldb's files to
// disk before that. The applier calls it, and before that replay.
func (s *Store) makeWritable() (bool, error) {
	if !s.hasRoom() {
		return false, nil
	}
	err := s.files.Commit()
	if vfs.IsNoSpace(err) {
		return false, nil // somebody else took it
	}
	return err == nil, err
}

// writable is makeWritable for the applier: an error fails the index.
func (s *Store) writable() bool {
	ok, err := s.makeWritable()
	if err != nil {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.failLocked(err)
	}
	return ok
}

// room is the applier's memory of writable.
type room struct {
	s      *Store
	at     time.Time
	there  bool
	warned bool
}

func (r *room) look() bool {
	if now := time.Now(); r.at.IsZero() || now.Sub(r.at) >= roomEvery {
		r.at, r.there = now, r.s.writable()
	}
	switch {
	case r.there:
		r.warned = false
	case !r.warned:
		r.warned = true
		r.s.logger.Warn(msgNoRoom, "dir", r.s.opts.DBDir)
	}
	return r.there
}

// awaitRoom is for a replay that may hold no more in memory.
func (s *Store) awaitRoom(ctx context.Context) error {
	for warned := false; ; warned = true {
		if ok, err := s.makeWritable(); ok || err != nil {
			return err
		}
		if !warned {
			s.logger.Warn(msgNoRoom, "dir", s.opts.DBDir)
		}
		select {
		case <-time.After(roomEvery):
		case <-ctx.Done():
			return fmt.Errorf("wait for space on the volume of %s; free or add space: %w", s.opts.DBDir, ctx.Err())
		}
	}
}

// heldBack tells whether the start has put something into the overlay. What comes
// later must go there too, for the overlay is newer than goleveldb.
func (s *Store) heldBack() bool { return s.active.tree.Len() > 0 }

// holdBack puts a part of the log into the overlay instead of the index. The
// applier brings it there when there is room.
func (s *Store) holdBack(items []Item, positions []wal.Position) error {
	for len(items) > 0 {
		n, reset := untilReset(items)
		c := makeChange(items[:n])
		s.active.add(&c, positions[:n])
		bytes := int64(n) * itemOverhead
		s.active.bytes += bytes
		s.pending += bytes
		for i := range n {
			// The entry at the marker comes again.
			if items[i].Kind == KindContent && positions[i] > s.applied {
				s.active.assertions++
			}
		}
		for i := range c.cursors {
			s.setCursor(&c.cursors[i])
		}
		if reset {
			if err := s.resetCursors(s.hold); err != nil {
				return err
			}
		}
		items, positions = items[n:], positions[n:]
	}
	return nil
}

// untilReset counts the items up to the first reset, which is counted too.
func untilReset(items []Item) (n int, reset bool) {
	for i := range items {
		if items[i].Kind == KindReset {
			return i + 1, true
		}
	}
	return len(items), false
}

// putOrHold writes what Open has to note, or holds it back.
func (s *Store) putOrHold(k, v []byte) error {
	if s.heldBack() || !s.ample() {
		return s.hold(k, v)
	}
	return s.putDB(k, v)
}

func (s *Store) putDB(k, v []byte) error { return s.db.Put(k, v, nil) }

func (s *Store) hold(k, v []byte) error {
	s.active.end = max(s.active.end, s.applied)
	s.active.tree.Set(kv{k: k, v: v})
	return nil
}
