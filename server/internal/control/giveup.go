package control

import (
	"errors"
	"slices"
	"time"

	"github.com/stemedb/stemedb/server/internal/control/controlpb"
)

// watch notes whether the subject answers, and whether it comes nearer to the
// marks. A subject that has reached all of them waits for others, which is not its
// fault. Records that are written meanwhile are no progress: a member that takes in
// those of one log may still get nothing of another one.
func (d *driver) watch(change *Change, whole bool, p *controlpb.ProgressResponse) {
	if p == nil {
		return
	}
	d.heard = time.Now()
	if p.Generation < change.Generation {
		return
	}
	left := uint64(0)
	for id, mark := range d.marks {
		old, _ := find(change.Old, func(m Member) bool { return m.ID() == id })
		if cursor := p.Cursors[old.Incarnation]; id != change.Subject && cursor < mark {
			left += mark - cursor
		}
	}
	if whole || left == 0 || d.measured && left < d.left {
		d.moved = time.Now()
	}
	d.left, d.measured = left, true
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
	case change.Kind != Replace && time.Since(d.moved) >= after:
		return "answers, but takes in no more of what it lacks"
	}
	return ""
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
	_, err := c.decide(&cancelChange{Change: state.Change.ID})
	if errors.Is(err, errOutdated) {
		return nil // something else was decided in between: look again
	}
	return err
}
