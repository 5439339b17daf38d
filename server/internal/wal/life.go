package wal

import (
	"encoding/hex"
	"fmt"
	"io"
	"slices"

	"github.com/stemedb/stemedb/server/internal/remedy"
)

// Lives and rollbacks
//
// A volume can be put back to an older state: a snapshot is restored, a disk
// image is copied. What was acknowledged since is gone, the files are perfect,
// and only somebody else can tell. So each Open draws a life, a random name, and
// lists it in the manifest before anything is written. The user registers the
// life elsewhere (in the control table) and then calls SetLife, which forgets
// the earlier ones. A node whose registered life is not listed in its manifest
// has been rolled back: it was durable there before it was registered.
//
// The positions of the entries that a rollback took away are known to peers,
// and must not be given to others. So a log that was rolled back goes on far
// behind the place where it can have ended, and what lies between counts as lost.

// SkipAfterRollback is how many segments a log skips after a rollback: more than
// it can have written since the older state, 4 TiB at the default size.
const SkipAfterRollback = 1 << 16

// maxLives bounds the list while a node starts again and again and reaches nobody.
const maxLives = 256

// Lives returns the lives that may be registered for this log; the last one is
// the present one. It is empty when none could be noted for lack of space.
func (l *Log) Lives() []string { return slices.Clone(l.manifest.Load().Lives) }

// RolledBack reports whether a rollback was found and the present life is not
// set yet.
func (l *Log) RolledBack() bool { return l.manifest.Load().RolledBack }

// SetLife notes durably that the present life is registered.
func (l *Log) SetLife(life string) error {
	err := l.update(func(m *manifest) { m.Lives, m.RolledBack = []string{life}, false })
	if err != nil {
		return fmt.Errorf("note the life of the log: %w", err)
	}
	return nil
}

// NoteRollback records durably that the volume is older than the log was: it is
// no longer whole, and the log is not to be written before it was opened again.
// known is a position up to which the log is known to have reached.
func (l *Log) NoteRollback(known Position, why string) error {
	end := l.End()
	to := makePosition(max(known, end).Segment()+SkipAfterRollback, 0)
	lost := Range{From: end, To: to, Reason: why}
	l.log.Error("the WAL volume was put back to an older state: what was written since is lost on this node", "ends_at", end, "reached", known, "reason", why,
		"remedy", remedy.Lost(l.opts.Members, l.opts.Node))
	err := l.update(func(m *manifest) {
		m.lose(lost)
		m.LastLoss = max(m.LastLoss, to)
		m.Whole, m.RolledBack = false, true
		m.forgetOpenings()
	})
	if err != nil {
		return fmt.Errorf("note that the volume was put back: %w", err)
	}
	return nil
}

// draw adds a life to those of m.
func (r *recovery) draw() error {
	var life [16]byte
	if _, err := io.ReadFull(r.l.opts.Rand, life[:]); err != nil {
		return fmt.Errorf("draw a life: %w", err)
	}
	r.m.Lives = append(r.m.Lives, hex.EncodeToString(life[:]))
	if extra := len(r.m.Lives) - maxLives; extra > 0 {
		r.m.Lives = slices.Delete(r.m.Lives, 1, 1+extra) // the first one is registered for sure
	}
	return nil
}
