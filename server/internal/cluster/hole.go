package cluster

import (
	"github.com/stemedb/stemedb/server/internal/cluster/peerpb"
	"github.com/stemedb/stemedb/server/internal/wal"
)

// hole is a part of a member's log that the member could not read. A puller
// continues behind it, so that everything else arrives, but its cursor stays
// before it: a cursor covers everything below it, and the member may be able to
// read the same place later, when the outage of its disk is over.
//
// A member that is whole although its log has a hole has rewritten the lost
// records behind the hole. So the cursor passes once the log behind the hole has
// been read up to the end that it had when the member was whole and the hole was
// seen.
type hole struct {
	// at is where to continue behind the hole; 0 while there is none.
	at wal.Position
	// until is the end that has to be reached; 0 until the member has been seen
	// whole after the hole was found.
	until wal.Position
	// fresh: the current answer has a hole; lacks: it named records that the member
	// then did not return.
	fresh, lacks bool
}

// open reports whether the cursor has to stay in place.
func (h *hole) open() bool { return h.at > 0 || h.fresh || h.lacks }

// unsettled reports whether the member has not repaired the hole yet.
func (h *hole) unsettled() bool { return h.at > 0 && h.until == 0 }

// found and missed record the gaps of the current answer.
func (h *hole) found()  { h.fresh = true }
func (h *hole) missed() { h.lacks = true }

// next is the position of the next pull.
func (h *hole) next(cursor wal.Position) wal.Position { return max(cursor, h.at) }

// pass records a processed answer and returns the cursor's new position.
func (h *hole) pass(cursor, next wal.Position, res *peerpb.PullResponse) wal.Position {
	fresh, lacks := h.fresh, h.lacks
	h.fresh, h.lacks = false, false
	switch {
	case h.at == 0 && !fresh && !lacks:
		return next
	case !res.Whole || lacks:
		// The lost records are not rewritten yet. The log is read again later.
		h.at, h.until = next, 0
		return cursor
	case h.until == 0 && h.at > 0:
		// The member is whole again: a part that was passed may be readable now.
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
