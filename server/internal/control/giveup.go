package control

import (
	"errors"
	"slices"
	"time"

	"github.com/stemedb/stemedb/server/internal/control/controlpb"
)

// watch records whether the subject answers, and whether it makes progress
// towards the marks. A moving cursor is progress, and so is reading on behind an
// unreadable part of a log, before which the cursor has to stay. A subject that
// has reached all marks waits for others and is not timed. A newcomer that cannot
// be filled makes no progress. Reading a log again from its beginning does not
// count. Nor do records written meanwhile: a member may pull those of one log and
// still get nothing of another one.
func (d *driver) watch(change *Change, whole bool, p *controlpb.ProgressResponse) {
	before := d.unfillable
	if d.unfillable = change.unfillable(); before && !d.unfillable {
		d.moved = time.Now() // the time in which it could not be filled does not count
	}
	if p == nil {
		return
	}
	d.heard = time.Now()
	if p.Generation < change.Generation || d.unfillable {
		return
	}
	lacks, unread := uint64(0), uint64(0)
	for id, mark := range d.marks {
		if id == change.Subject {
			continue
		}
		old, _ := find(change.Old, func(m Member) bool { return m.ID() == id })
		cursor := p.Cursors[old.Incarnation]
		lacks += mark - min(mark, cursor)
		unread += mark - min(mark, max(cursor, p.Read[old.Incarnation]))
	}
	measured := d.measured == len(d.marks)
	if whole || lacks == 0 || measured && (lacks < d.lacks || unread < d.unread) {
		d.moved = time.Now()
	}
	if !measured {
		d.lacks, d.unread, d.measured = lacks, unread, len(d.marks)
	}
	d.lacks, d.unread = min(d.lacks, lacks), min(d.unread, unread)
}

// hopeless returns the reason to abandon an open change, or "". A subject that
// answers and makes no progress, because its volume is full or because it cannot
// pull, is treated like a silent one. The exception is a replacement: it has the
// vote of its lost incarnation, and without it the table might have no majority.
func (d *driver) hopeless(change *Change, after time.Duration) string {
	switch {
	case !change.dispensable():
	case time.Since(d.heard) >= after:
		return "does not answer"
	case change.unfillable() && time.Since(d.moved) >= after:
		return "cannot be filled, since too few of the other members are whole,"
	case change.Kind != Replace && time.Since(d.moved) >= after:
		return "answers, but makes no progress"
	}
	return ""
}

// unfillable reports whether too few members of the old set are whole for a newcomer
// to become whole. A join would not be opened in this state.
func (c *Change) unfillable() bool {
	if c.Kind != Join {
		return false
	}
	return wholeBesides(c.Old, "") < meeting(len(c.Old))
}

// dispensable reports whether an open change may be abandoned when its subject
// makes no progress. A join always may: while it is open, writes need one more
// member. An open replacement or refill costs nothing by itself, but blocks
// another member that lost its records.
func (c *Change) dispensable() bool {
	return c.Kind == Join || slices.ContainsFunc(c.Old, func(m Member) bool {
		subject, _ := find(c.New, func(n Member) bool { return n.ID() == c.Subject })
		return !m.Whole && m.Name != subject.Name
	})
}

// cancel ends the open change as if it had not been opened. Every record
// acknowledged or shown meanwhile is on a majority of Old too.
func (c *Control) cancel(state *State) error {
	_, err := c.decide(&cancelChange{Change: state.Change.ID, Generation: state.Generation})
	if errors.Is(err, errOutdated) {
		return nil // something else was decided in between: check again
	}
	return err
}
