package wal

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// Openings and witnesses
//
// The control table knows a member's latest start (life.go). It does not know a
// volume that was copied while the member ran, and put back later: that is the
// ordinary snapshot. Peers do know, for they read each other's logs. So each
// opening of the log has a number and random bits, noted durably with the place
// where the log ended, before any entry is written or any peer asks. Two logs
// that have an opening in common are the same log up to where the next opening
// begins in either of them. Hence a peer that saw the log up to End during an
// opening can tell at any later time whether all that it saw is still there: the
// opening must be known, and the one after it must not begin before End. How far
// the log has grown since does not matter.
//
// The same comparison finds a last batch that rotted and was cut because nothing
// on this disk proved that it had been durable.

// Opening names one opening of a log. The zero value names none.
type Opening struct {
	Number uint64 `json:"number"` // 1, 2, 3… of this incarnation
	ID     uint64 `json:"id"`     // drawn at random
}

// opened is an opening in the manifest; Start is where the log ended then.
type opened struct {
	Opening
	Start Position `json:"start"`
}

// maxOpenings bounds those that are remembered. A peer that has not asked for so
// many starts reads the log again from its beginning.
const maxOpenings = 256

// Witness is what a peer saw of the log: everything before End was durable in it
// during that opening.
type Witness struct {
	Opening Opening
	End     Position
}

// Errors of Check; test with errors.Is.
var (
	// ErrRolledBack: a part of what was seen is no longer there.
	ErrRolledBack = errors.New("this log was put back to an older state")
	// ErrForgotten: nothing is known about that opening any longer. Either it is
	// long ago, or the loss of what followed it has been noted since.
	ErrForgotten = errors.New("nothing is known about that opening of this log any longer")
)

// open adds the opening that is under way, at the place where the log ends.
func (m *manifest) open(id uint64, start Position) {
	m.LastOpening++
	m.Openings = append(m.Openings, opened{Opening{m.LastOpening, id}, start})
	m.Openings = m.Openings[max(0, len(m.Openings)-maxOpenings):]
}

// beginOpening draws the name of this opening and adds it to the manifest.
func (r *recovery) beginOpening() error {
	var b [8]byte
	if _, err := io.ReadFull(r.l.opts.Rand, b[:]); err != nil {
		return fmt.Errorf("draw the name of an opening: %w", err)
	}
	start := r.l.End()
	if r.l.cur == nil {
		start = r.top() // the log goes on in a new segment behind that
	}
	r.m.open(binary.LittleEndian.Uint64(b[:]), start)
	return nil
}

// noteOpening lists this opening once there is space for it. Until then the log
// takes no commit, so the end that the earlier opening had stays true.
func (l *Log) noteOpening() error {
	if !l.openingDue.Load() {
		return nil
	}
	var b [8]byte
	if _, err := io.ReadFull(l.opts.Rand, b[:]); err != nil {
		return fmt.Errorf("draw the name of an opening: %w", err)
	}
	err := l.update(func(m *manifest) { m.open(binary.LittleEndian.Uint64(b[:]), l.End()) })
	if err == nil {
		l.openingDue.Store(false)
	}
	return err
}

// Opening is the latest one that is durable.
func (l *Log) Opening() Opening {
	m := l.manifest.Load()
	if n := len(m.Openings); n > 0 {
		return m.Openings[n-1].Opening
	}
	return Opening{}
}

// Check compares the log with what a peer saw of it: nil when all of that is
// still there, otherwise ErrRolledBack or ErrForgotten.
func (l *Log) Check(w Witness) error {
	m := l.manifest.Load()
	first := m.LastOpening + 1 - uint64(len(m.Openings))
	if w.Opening.Number < first {
		return ErrForgotten
	}
	i := int(w.Opening.Number - first)
	switch {
	case i >= len(m.Openings) || m.Openings[i].ID != w.Opening.ID:
		return fmt.Errorf("%w: opening %d (%x), in which it was seen up to %v, is not one of its own", ErrRolledBack, w.Opening.Number, w.Opening.ID, w.End)
	case i+1 < len(m.Openings) && m.Openings[i+1].Start < w.End:
		return fmt.Errorf("%w: it was seen up to %v, and ended at %v when it was opened next", ErrRolledBack, w.End, m.Openings[i+1].Start)
	}
	return nil
}

// forgetOpenings: the loss of everything that peers may have seen is noted, so
// what they saw proves nothing further. The numbers go on behind every one that
// can have been given.
func (m *manifest) forgetOpenings() {
	m.Openings = nil
	m.LastOpening += SkipAfterRollback
}
