package cluster

import (
	"github.com/stemedb/stemedb/server/internal/cluster/peerpb"
	"github.com/stemedb/stemedb/server/internal/wal"
)

// hole is a part of a member's log that the member could not read. A puller goes
// on behind it, so that everything else comes, but its cursor stays before it: a
// cursor vouches for all that is below, and what the member could not read today
// it may give tomorrow, at the same place, when the outage of its disk is over.
//
// A member that is whole although its log has a hole has written the records of it
// anew, behind the hole. So the cursor passes when the whole log behind a hole has
// been looked at, up to an end that it had when it was whole and the hole was seen.
type hole struct {
	// at is where to go on behind the hole; 0 while there is none.
	at wal.Position
	// until is the end that has to be reached; 0 while the member has not been
	// seen whole since the hole was found.
	until wal.Position
	// fresh: the answer that is being taken in has a hole; lacks: it named records
	// that the member then did not give.
	fresh, lacks bool
}

// open reports whether the cursor has to stay where it is.
func (h *hole) open() bool { return h.at > 0 || h.fresh || h.lacks }

// unsettled reports whether the member has yet to make good for the hole.
func (h *hole) unsettled() bool { return h.at > 0 && h.until == 0 }

// found and missed note what the present answer lacks.
func (h *hole) found()  { h.fresh = true }
func (h *hole) missed() { h.lacks = true }

// next is where to go on pulling.
func (h *hole) next(cursor wal.Position) wal.Position { return max(cursor, h.at) }

// pass takes note of an answer that was taken in, and returns how far the cursor
// may go.
func (h *hole) pass(cursor, next wal.Position, res *peerpb.PullResponse) wal.Position {
	fresh, lacks := h.fresh, h.lacks
	h.fresh, h.lacks = false, false
	switch {
	case h.at == 0 && !fresh && !lacks:
		return next
	case !res.Whole || lacks:
		// What it cannot read is not made good for. It is all looked at again.
		h.at, h.until = next, 0
		return cursor
	case h.until == 0 && h.at > 0:
		// It is whole again: some of what was passed may be there now.
		*h = hole{}
		return cursor
	}
	h.at = next
	if fresh {
		h.until = max(h.until, wal.Position(res.End))
	}
	if next < h.until {
		return cursor
	}
	*h = hole{}
	return next
}
