package control

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"github.com/stemedb/stemedb/server/internal/control/controlpb"
	"github.com/stemedb/stemedb/server/internal/remedy"
)

// Deciding which table is right. Each confirmation compares the asker's digest
// with the leader's, on both sides: the asker trusts its copy only when the
// digests at the leader's index are equal, and the leader remembers the result
// for each asker. If two tables differ, the voters decide: a copy is right when a
// majority holds the same one.
//   - The asker differs, and a majority of the voters, the leader included, agreed
//     with the leader at that command or later: the asker fetches the leader's.
//   - A majority differs from the leader: the leader hands over and fetches its
//     successor's.
//   - Neither: undecided. If that lasts for longer than the others need to
//     report, the leader confirms no copy, its own included.
//
// A copy of the leader's table is no evidence for it. So a newcomer, whose table
// is the leader's, gets a vote only while a majority of the existing voters holds
// the leader's table (backed), and the leader sends no snapshot while the
// question is undecided.

// opinion is the result of comparing a member's digest with the leader's.
type opinion struct {
	index  uint64
	agrees bool
}

// jury holds the opinions that the leader of a term has received.
type jury struct {
	mu       sync.Mutex
	term     uint64
	opinions map[string]opinion // by member id
	doubtful time.Time          // since when it is undecided; zero otherwise
}

// hear records a member's digest; a digest that cannot be compared is ignored.
func (j *jury) hear(term uint64, id string, at dated, own *history) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.term != term {
		j.term, j.opinions, j.doubtful = term, map[string]opinion{}, time.Time{}
	}
	if held, known := own.at(at.index); id != "" && known {
		j.opinions[id] = opinion{index: at.index, agrees: held == at.digest}
	}
}

// verdict is the result of the voters' opinions.
type verdict struct {
	outvoted  bool            // a majority differs from the leader
	undecided []string        // members that differ without a majority against them
	since     time.Time       // when the first of those was received
	differs   map[string]bool // members with a majority against them
}

func (j *jury) verdict(voters []string) verdict {
	j.mu.Lock()
	defer j.mu.Unlock()
	v := verdict{differs: map[string]bool{}}
	against := 0
	for id, o := range j.opinions {
		if o.agrees {
			continue
		}
		agree := 1 // the leader
		for _, voter := range voters {
			if other := j.opinions[voter]; other.agrees && other.index >= o.index {
				agree++
			}
		}
		votes := slices.Contains(voters, id)
		if votes {
			against++
		}
		switch {
		case agree >= Majority(len(voters)):
			v.differs[id] = true
		case votes:
			v.undecided = append(v.undecided, id)
		}
	}
	v.outvoted = against >= Majority(len(voters))
	switch {
	case len(v.undecided) == 0:
		j.doubtful = time.Time{}
	case j.doubtful.IsZero():
		j.doubtful = time.Now()
	}
	v.since = j.doubtful
	return v
}

// backed reports whether a majority of the voters, the leader included, held the
// leader's table at their last report in this term.
func (j *jury) backed(term uint64, voters []string) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	agree := 1
	for _, voter := range voters {
		if j.term == term && j.opinions[voter].agrees {
			agree++
		}
	}
	return agree >= Majority(len(voters))
}

// undecided reports whether the latest verdict was undecided.
func (j *jury) undecided() bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return !j.doubtful.IsZero()
}

// errUndecided: see undecided.
var errUndecided = errors.New("the leader's table differs from another member's, and no majority decides which one is right")

// hearingRounds is the number of confirmation rounds that the leader waits for
// the others' opinions before it doubts its table.
const hearingRounds = 3

// judge records a member's digest, if there is one. differs: that member has to
// fetch the leader's table. doubt: why the leader may not confirm any copy.
func (c *Control) judge(term uint64, id string, at dated) (differs bool, doubt string, err error) {
	c.jury.hear(term, id, at, &c.table.digests)
	future := c.raft.Load().GetConfiguration()
	if err := future.Error(); err != nil {
		return false, "", err
	}
	voters := votersOf(future.Configuration())
	switch v := c.jury.verdict(voters); {
	case v.outvoted:
		err := &failure{kind: diverged, fetch: true, always: true, err: errors.New("this node's copy of the control table differs from that of a majority")}
		c.table.fail(err)
		return false, "", err
	case len(v.undecided) > 0 && time.Since(v.since) > hearingRounds*c.cfg.Timings.ConfirmEvery:
		return false, fmt.Sprintf("the control table of %v differs from that of the leader %s, and no majority is known to hold the same one: "+
			"start the members that are down; if all of them are up, %s", v.undecided, c.id,
			remedy.Volumes(len(voters), "the member whose table is wrong", "restore the folder \"control\" of its WAL volume from a copy or a snapshot")), nil
	default:
		return v.differs[id], "", nil
	}
}

func votersOf(servers raft.Configuration) (ids []string) {
	for _, s := range servers.Servers {
		if s.Suffrage == raft.Voter {
			ids = append(ids, string(s.ID))
		}
	}
	return ids
}

// compare compares this copy with the leader's answer. Without an error, the copy
// is the majority's up to the leader's index.
func (c *Control) compare(answer *controlpb.ConfirmResponse) error {
	if answer.Differs {
		err := &failure{kind: diverged, fetch: true, always: true, err: errors.New("this node's copy of the control table differs from that of a majority")}
		c.table.fail(err)
		return err
	}
	own, known := c.table.digests.at(answer.Index)
	switch {
	case answer.Doubt != "":
		err := errors.New(answer.Doubt)
		c.doubts(err)
		return err
	case !known || !c.table.digests.reaches(c.State().Index):
		return fmt.Errorf("this node's copy cannot be compared with the leader's at %d yet", answer.Index)
	case !bytes.Equal(own[:], answer.Digest):
		err := fmt.Errorf("this node's copy of the control table differs from the leader's at %d; it is not trusted until a majority holds the same one", answer.Index)
		c.doubts(err)
		return err
	}
	c.doubt.Store(nil)
	return nil
}

// doubts marks this copy as not trusted until a comparison succeeds.
func (c *Control) doubts(err error) {
	if c.doubt.Swap(&err) == nil {
		c.failures.WithLabelValues(diverged).Inc()
		c.log.Error("this node's copy of the control table is in doubt", "error", err)
	}
	c.distrust()
	c.changed.broadcast()
}

func (c *Control) distrust() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.confirmed = time.Time{}
}
