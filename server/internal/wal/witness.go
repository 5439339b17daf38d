package wal

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// Openings and witnesses
//
// The control table knows a member's latest start (life.go). It does not detect
// a volume that was copied while the member ran and restored later, which is
// how ordinary snapshots work. Peers can detect that, because they read each
// other's logs. So each opening of the log has a number and random bits,
// recorded durably with the end of the log at that time, before any entry is
// written or any peer asks. Two logs that share an opening are the same log up
// to the start of the next opening in either of them. Hence a peer that saw the
// log up to End during an opening can check later whether everything that it
// saw is still there: the opening must be known, and the next one must not
// begin before End. The growth of the log since then does not matter.
//
// The same comparison finds a last batch that was damaged and then cut because
// nothing on this disk proved that it had been durable.

// Opening identifies one opening of a log. The zero value identifies none.
type Opening struct {
	Number uint64 `json:"number"` // 1, 2, 3… of this incarnation
	ID     uint64 `json:"id"`     // drawn at random
}

// opened is an opening in the manifest; Start is the end of the log at that time.
type opened struct {
	Opening
	Start Position `json:"start"`
}

// maxOpenings bounds the openings that are remembered. A peer that has not
// asked for that many starts reads the log again from its beginning.
const maxOpenings = 256

// Witness is a peer's knowledge of the log: everything before End was durable
// in it during that opening.
type Witness struct {
	Opening Opening
	End     Position
}

// Errors of Check; test with errors.Is.
var (
	// ErrRolledBack: a part that the peer saw is missing.
	ErrRolledBack = errors.New("this log was restored to an older state")
	// ErrForgotten: the opening is no longer known. Either it is too old, or the
	// loss of its later entries has been recorded since.
	ErrForgotten = errors.New("that opening of this log is no longer known")
)

// open adds the current opening, at the end of the log.
func (m *manifest) open(id uint64, start Position) {
	m.LastOpening++
	m.Openings = append(m.Openings, opened{Opening{m.LastOpening, id}, start})
	m.Openings = m.Openings[max(0, len(m.Openings)-maxOpenings):]
}

// beginOpening draws the id of this opening and adds it to the manifest.
func (r *recovery) beginOpening() error {
	var b [8]byte
	if _, err := io.ReadFull(r.l.opts.Rand, b[:]); err != nil {
		return fmt.Errorf("draw the id of an opening: %w", err)
	}
	start := r.l.End()
	if r.l.cur == nil {
		start = r.top() // the log continues in a new segment after that
	}
	r.m.open(binary.LittleEndian.Uint64(b[:]), start)
	return nil
}

// noteOpening lists this opening once there is space for it. Until then the log
// accepts no commit, so the end of the earlier opening stays true.
func (l *Log) noteOpening() error {
	if !l.openingDue.Load() {
		return nil
	}
	var b [8]byte
	if _, err := io.ReadFull(l.opts.Rand, b[:]); err != nil {
		return fmt.Errorf("draw the id of an opening: %w", err)
	}
	err := l.update(func(m *manifest) { m.open(binary.LittleEndian.Uint64(b[:]), l.End()) })
	if err == nil {
		l.openingDue.Store(false)
	}
	return err
}

// Opening returns the latest durable opening.
func (l *Log) Opening() Opening {
	m := l.manifest.Load()
	if n := len(m.Openings); n > 0 {
		return m.Openings[n-1].Opening
	}
	return Opening{}
}

// Check compares the log with a peer's witness: nil if everything that the peer
// saw is still there, otherwise ErrRolledBack or ErrForgotten.
func (l *Log) Check(w Witness) error {
	m := l.manifest.Load()
	first := m.LastOpening + 1 - uint64(len(m.Openings))
	if w.Opening.Number < first {
		return ErrForgotten
	}
	i := int(w.Opening.Number - first)
	switch {
	case i >= len(m.Openings) || m.Openings[i].ID != w.Opening.ID:
		return fmt.Errorf("%w: opening %d (%x), in which a peer saw it up to %v, is not one of its openings", ErrRolledBack, w.Opening.Number, w.Opening.ID, w.End)
	case i+1 < len(m.Openings) && m.Openings[i+1].Start < w.End:
		return fmt.Errorf("%w: a peer saw it up to %v, but it ended at %v at its next opening", ErrRolledBack, w.End, m.Openings[i+1].Start)
	}
	return nil
}

// forgetOpenings drops all openings: the loss of everything that peers may have
// seen is recorded, so their witnesses prove nothing more. Numbering continues
// after every number that can have been assigned.
func (m *manifest) forgetOpenings() {
	m.Openings = nil
	m.LastOpening += SkipAfterRollback
}
