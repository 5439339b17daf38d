package store

import (
	"context"
	"errors"
	"fmt"

	"github.com/stemedb/stemedb/server/internal/wal"
)

// replay brings the index up to the end of the log. It begins at the marker,
// or at the beginning when the index is new, and moves the marker as it goes,
// so that an interrupted rebuild resumes.
func (s *Store) replay(ctx context.Context) error {
	r := replay{s: s, from: s.marker, end: s.log.End()}
	r.progress.Rebuild = s.marker == 0
	if s.marker == 0 {
		r.from = s.log.First()
	}
	s.replayedFrom = s.marker
	r.progress.Total = s.distance(r.from, r.end)
	start := r.from
	for r.from < r.end {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("replay of the log: %w", err)
		}
		if err := r.chunk(ctx); err != nil {
			return err
		}
		r.progress.Done = s.distance(start, r.from)
		s.opts.Progress(r.progress)
		if s.markerDue(s.opts.MarkerBytes) && !s.heldBack() && s.ample() {
			if err := s.mark(); err != nil {
				return err
			}
		}
	}
	s.opts.Progress(Progress{Rebuild: r.progress.Rebuild, Done: r.progress.Total, Total: r.progress.Total})
	if s.heldBack() || !s.ample() {
		return nil // the applier continues
	}
	return s.mark()
}

type replay struct {
	s         *Store
	from, end wal.Position
	progress  Progress
}

// chunk applies the next part of the log.
func (r *replay) chunk(ctx context.Context) error {
	s := r.s
	var items []Item
	var positions []wal.Position
	var gaps []wal.Range
	next, err := s.log.Scan(r.from, s.opts.replayChunk, func(pos wal.Position, e wal.Entry) error {
		// The payload is valid during the call only; parsing copies the parts that it
		// keeps, and the payload itself is not needed.
		kind := Kind(e.Kind)
		if kind < KindContent || kind > KindReset {
			// Skipping it would leave it out of the index permanently.
			return fmt.Errorf("entry at %v is of kind %d: it was written by a later release; start that one again", pos, kind)
		}
		it, err := ParseItem(kind, e.Payload)
		if err != nil {
			// The checksum is right, so this was written like that, and the record
			// that should be here may have been acknowledged: it counts as damage.
			gaps = append(gaps, s.log.Condemn(pos, len(e.Payload), err))
			return nil
		}
		it.Payload = nil
		items = append(items, it)
		positions = append(positions, pos)
		return nil
	})
	var gap *wal.Gap
	switch {
	case errors.As(err, &gap):
		s.logger.Error("a part of the log is lost", "gap", gap)
		if !gap.Lost { // a lost file is known before the replay begins
			gaps = append(gaps, gap.Range)
		}
	case err != nil:
		return fmt.Errorf("replay of the log at %v: %w", r.from, err)
	case next <= r.from && len(items) == 0:
		return fmt.Errorf("replay of the log makes no progress at %v", r.from)
	}
	// Before a marker passes them: the next start may begin behind them.
	if err := s.noteGaps(gaps); err != nil {
		return err
	}
	r.from = next
	if len(items) == 0 {
		return nil
	}
	if !s.heldBack() && s.ample() {
		if writable, err := s.makeWritable(); err != nil {
			return fmt.Errorf("write the index: %w", err)
		} else if writable {
			return s.replayItems(items, positions)
		}
	}
	if s.active.bytes < maxHeldBack*s.opts.ApplyBytes {
		return s.holdBack(items, positions)
	}
	if err := s.awaitRoom(ctx); err != nil {
		return err
	}
	if !s.applyActive() {
		return s.failure
	}
	return s.replayItems(items, positions)
}

// replayItems does the work of the publisher and the applier for a commit,
// without the overlay.
func (s *Store) replayItems(items []Item, positions []wal.Position) error {
	b := s.newBatcher()
	for len(items) > 0 {
		n, reset := untilReset(items)
		c := makeChange(items[:n])
		for i := range c.ops {
			c.ops[i].setPosition(positions)
			b.put(c.ops[i].k, c.ops[i].v)
		}
		b.flush()
		if b.err != nil {
			return fmt.Errorf("write the index: %w", b.err)
		}
		if err := s.join(c.contents, c.loose); err != nil {
			return fmt.Errorf("write the index: %w", err)
		}
		for i := range c.cursors {
			s.setCursor(&c.cursors[i])
		}
		if reset {
			if err := s.resetCursors(s.putDB); err != nil {
				return err
			}
		}
		for i := range n {
			// The entry at the marker is read again.
			if items[i].Kind == KindContent && positions[i] > s.applied {
				s.assertions++
			}
		}
		s.applied = positions[n-1]
		items, positions = items[n:], positions[n:]
	}
	return nil
}

// setCursor keeps the known witness of a log if a cursor has none.
func (s *Store) setCursor(it *Item) {
	s.cursors[it.Key.Project] = it.cursor
	if it.witness != (wal.Witness{}) {
		s.witnesses[it.Key.Project] = it.witness
	}
}

// resetCursors drops the cursors of the peers' logs. The witnesses stay true.
func (s *Store) resetCursors(put func(k, v []byte) error) error {
	for name := range s.cursors {
		key := appendName([]byte{spaceCursor}, name)
		if err := put(key, cursorValue(0, s.witnesses[name])); err != nil {
			return fmt.Errorf("drop a cursor: %w", err)
		}
	}
	clear(s.cursors)
	return nil
}
