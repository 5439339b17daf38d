package store

import (
	"context"
	"fmt"
	"time"

	"github.com/stemedb/stemedb/server/internal/vfs"
	"github.com/stemedb/stemedb/server/internal/wal"
)

// The index is not written while its volume has too little space: a start needs
// some, and goleveldb does not recover from a failed write to its journal.
// Entries that are durable in the log then stay in the overlay, where they can be
// read; the log rejects writes long before that, see wal.Options.Reserve. A start
// without space:
//
//   - goleveldb opens in memory (leveldbfs.Stage): nothing on disk changes.
//   - Replay fills the overlay with the log's entries after the marker, up to
//     maxHeldBack. If there are more, Open waits for space, or until its context ends.
//   - No marker is written, because none of this survives a crash.
//
// Once there is space, the applier writes goleveldb's files to disk, then the overlay.

// roomEvery is the interval between checks for space.
const roomEvery = 250 * time.Millisecond

// maxHeldBack times Options.ApplyBytes bounds the entries that a start holds
// back, except for one chunk of the log.
const maxHeldBack = 4

const msgNoRoom = "the index waits for space on its volume; free or add space, and it continues by itself"

// hasRoom reports whether a memtable and the output of its compaction fit on
// the volume, besides the staged files.
func (s *Store) hasRoom() bool { return s.free(3) }

// ample reports whether Open may write the index. It may not if goleveldb's concurrent
// compaction could use up the rest, because the write would then wait, and Open with it.
func (s *Store) ample() bool { return s.free(8) }

func (s *Store) free(memtables uint64) bool {
	staged, _ := s.files.Staged()
	free, _, err := s.opts.FS.Free(s.opts.DBDir)
	return err != nil || free >= staged+memtables*uint64(s.opts.WriteBuffer)
}

// makeWritable reports whether the index can be written, and writes goleveldb's
// staged files to disk before that. The applier calls it, and before that replay.
func (s *Store) makeWritable() (bool, error) {
	if !s.hasRoom() {
		return false, nil
	}
	err := s.files.Commit()
	if vfs.IsNoSpace(err) {
		return false, nil // something else used it
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

// room remembers for the applier whether the index is writable.
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

// awaitRoom waits for space when a replay has reached its limit of memory.
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

// heldBack reports whether the start has put something into the overlay. Later
// entries must go there too, because the overlay is newer than goleveldb.
func (s *Store) heldBack() bool { return s.active.tree.Len() > 0 }

// holdBack puts a part of the log into the overlay instead of the index. The
// applier writes it once there is space.
func (s *Store) holdBack(items []Item, positions []wal.Position) error {
	for len(items) > 0 {
		n, reset := untilReset(items)
		c := makeChange(items[:n])
		s.active.add(&c, positions[:n])
		bytes := int64(n) * itemOverhead
		s.active.bytes += bytes
		s.pending += bytes
		for i := range n {
			// The entry at the marker is read again.
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

// untilReset counts the items up to and including the first reset.
func untilReset(items []Item) (n int, reset bool) {
	for i := range items {
		if items[i].Kind == KindReset {
			return i + 1, true
		}
	}
	return len(items), false
}

// putOrHold writes a note of Open, or holds it back.
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
