package control

import (
	"errors"
	"slices"
	"time"

	"github.com/stemedb/stemedb/server/internal/control/controlpb"
)

// watch notes whether the subject answers, and whether it makes progress towards the
// marks. A cursor that moves is progress, and so is reading on after a part of a log
// that cannot be read, where the cursor has to stay. A subject that has reached all
// marks waits for others and loses no time. A newcomer that cannot be filled makes no
// progress. Reading a log again from its beginning does not count. Neither do records
// that are written meanwhile: a member that takes in those of one log may still get
// nothing of another one.
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

// hopeless says why an open change is to be given up, if it is. A subject that
// answers and gets nowhere, because its volume is full or because it cannot pull,
// is as good as one that is silent. Not so that of a replacement: it has the vote
// of its lost self, and without it the table might have no majority.
func (d *driver) hopeless(change *Change, after time.Duration) string {
	switch {
	case !change.dispensable():
	case time.Since(d.heard) >= after:
		return "does not answer"
	case change.unfillable() && time.Since(d.moved) >= after:
		return "cannot be filled, since too few of the other members are whole,"
	case change.Kind != Replace && time.Since(d.moved) >= after:
		return "answers, but takes in no more of what it lacks"
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

// dispensable reports whether an open change may be given up for a subject that
// gets nowhere. A join always may: while it is open, writes need one member
// more. A replacement and a refill cost nothing while they are open, but another
// member that lost its records has to wait for their end.
func (c *Change) dispensable() bool {
	return c.Kind == Join || slices.ContainsFunc(c.Old, func(m Member) bool {
		subject, _ := find(c.New, func(n Member) bool { return n.ID() == c.Subject })
		return !m.Whole && m.Name != subject.Name
	})
}

// cancel ends the open change as if it had not been opened. Whatever was
// acknowledged or shown meanwhile is on a majority of Old as well.
func (c *Control) cancel(state *State) error {
	_, err := c.decide(&cancelChange{Change: state.Change.ID, Generation: state.Generation})
	if errors.Is(err, errOutdated) {
		return nil // something else was decided in between: look again
	}
	return err
}
