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
// A volume can be restored to an older state, from a snapshot or a copy of a
// disk image. Entries acknowledged since then are missing, the files are
// intact, and only another node can notice. So each Open draws a life, a random
// name, and lists it in the manifest before it writes anything else. The user
// registers the life elsewhere (in the control table) and then calls SetLife,
// which forgets the earlier ones. A node whose registered life is not in its
// manifest has been rolled back: the life was durable there before it was
// registered.
//
// Peers know the positions of the entries that a rollback removed, so the log
// must not assign these positions again. A log that was rolled back therefore
// continues far beyond the last place where it can have ended, and the range in
// between counts as lost.

// SkipAfterRollback is the number of segments that a log skips after a rollback:
// more than it can have written since the older state, 4 TiB at the default size.
const SkipAfterRollback = 1 << 16

// maxLives bounds the list while a node restarts repeatedly and reaches no other node.
const maxLives = 256

// Lives returns the lives that may be registered for this log; the last one is
// the current one. It is empty if lack of space prevented recording any.
func (l *Log) Lives() []string { return slices.Clone(l.manifest.Load().Lives) }

// RolledBack reports whether a rollback was found and the current life is not
// set yet.
func (l *Log) RolledBack() bool { return l.manifest.Load().RolledBack }

// SetLife records durably that the current life is registered.
func (l *Log) SetLife(life string) error {
	err := l.update(func(m *manifest) { m.Lives, m.RolledBack = []string{life}, false })
	if err != nil {
		return fmt.Errorf("record the life of the log: %w", err)
	}
	return nil
}

// NoteRollback records durably that the volume is older than the log was. The
// log is no longer whole and must be reopened before the next write. known is a
// position that the log is known to have reached.
func (l *Log) NoteRollback(known Position, why string) error {
	end := l.End()
	to := makePosition(max(known, end).Segment()+SkipAfterRollback, 0)
	lost := Range{From: end, To: to, Reason: why}
	l.log.Error("the WAL volume was restored to an older state: entries written since then are lost on this node", "ends_at", end, "reached", known, "reason", why,
		"remedy", remedy.Lost(l.opts.Members, l.opts.Node))
	err := l.update(func(m *manifest) {
		m.lose(lost)
		m.LastLoss = max(m.LastLoss, to)
		m.Whole, m.RolledBack = false, true
		m.forgetOpenings()
	})
	if err != nil {
		return fmt.Errorf("record that the volume was restored to an older state: %w", err)
	}
	return nil
}

// draw adds a new life to m.
func (r *recovery) draw() error {
	var life [16]byte
	if _, err := io.ReadFull(r.l.opts.Rand, life[:]); err != nil {
		return fmt.Errorf("draw a life: %w", err)
	}
	r.m.Lives = append(r.m.Lives, hex.EncodeToString(life[:]))
	if extra := len(r.m.Lives) - maxLives; extra > 0 {
		r.m.Lives = slices.Delete(r.m.Lives, 1, 1+extra) // the first one is certainly registered
	}
	return nil
}
