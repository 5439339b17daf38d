package cluster

import (
	"errors"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/stemedb/stemedb/server/internal/cluster/peerpb"
	"github.com/stemedb/stemedb/server/internal/control"
	"github.com/stemedb/stemedb/server/internal/wal"
)

// Volumes can be restored to an older state, and this node's files and the
// control table may not show it. Its peers remember how far they have seen its
// log (the witness) and send that with each pull: if a part of it is missing,
// this node has lost acknowledged records. It records that durably before it
// answers. After a start it counts in no read until the reachable members have
// compared. That includes members that lost records: they still have their
// witness.

// vouches holds the members that have compared since the start.
type vouches struct {
	mu    sync.Mutex
	by    map[string]bool // member ids
	given bool            // by enough of them; never reset
}

// hearWitness compares this node's log with a peer's witness.
func (c *Cluster) hearWitness(req *peerpb.PullRequest) error {
	w := wal.Witness{Opening: wal.Opening{Number: req.OpeningNumber, ID: req.OpeningId}, End: wal.Position(req.SeenEnd)}
	if w.Opening.Number == 0 {
		c.vouch(req.Member)
		return nil
	}
	err := c.store.CheckWitness(w)
	if errors.Is(err, wal.ErrRolledBack) {
		c.metrics.rolledBack.Inc()
		if !c.progress.rolledBack(w.End, req.Member+" has seen more of it: "+err.Error()) {
			// The peer keeps its witness and sends it again.
			return status.Error(codes.Unavailable, err.Error())
		}
	}
	if err != nil {
		return status.Error(codes.OutOfRange, err.Error())
	}
	c.vouch(req.Member)
	return nil
}

func (c *Cluster) vouch(member string) {
	v := &c.vouches
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.by == nil {
		v.by = map[string]bool{}
	}
	v.by[member] = true
}

// compared reports whether a member has compared this node's log since the start.
// A read counts no pair of members of which one has not compared the other's log:
// a member that can be asked can also compare.
func (c *Cluster) compared(member string) bool {
	v := &c.vouches
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.by[member]
}

// unvouched names the members that have not compared since the start and for
// which this node still waits; empty if there are none.
func (c *Cluster) unvouched(state *control.State) string {
	v := &c.vouches
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.given {
		return ""
	}
	if !state.Formed() {
		return "the control table, which names the members that have to"
	}
	var waits []string
	for _, m := range state.Members {
		if m.ID() != c.id && !v.by[m.ID()] {
			waits = append(waits, m.Name)
		}
	}
	linked := c.linked.Load()
	if linked == nil {
		return "the other members, which it answers once the leader has confirmed its copy of the control table,"
	}
	if len(waits) == 0 || time.Since(*linked) > c.timings.StartWait {
		v.given = true
		return ""
	}
	slices.Sort(waits)
	return strings.Join(waits, ", ")
}
