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

// Volumes can be put back to an older state, and neither this node's own files nor
// the control table need show it. Its peers know what they saw of its log, and say
// so with each pull: when a part of that is gone, this node has lost acknowledged
// records. It notes that durably before it answers. After a start it counts in no
// read before the other members have compared, as far as they can be heard of.
// Members that lost records are included: they still know how far they saw the log.

// vouches are the members that have compared since the start.
type vouches struct {
	mu    sync.Mutex
	by    map[string]bool // member ids
	given bool            // by enough of them; stays
}

// hearWitness compares this node's log with what a peer saw of it.
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
			// The peer keeps its knowledge, and says it again.
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
// A read counts no pair of which one has not compared the other: whoever can be
// asked can be heard.
func (c *Cluster) compared(member string) bool {
	v := &c.vouches
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.by[member]
}

// unvouched names the members that have not compared since the start and
// are still waited for; empty when there are none.
func (c *Cluster) unvouched(state *control.State) string {
	v := &c.vouches
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.given {
		return ""
	}
	if !state.Formed() {
		return "the control table, which names those who have to"
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
