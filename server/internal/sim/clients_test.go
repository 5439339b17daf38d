package sim

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/stemedb/stemedb/server/internal/cluster"
	"github.com/stemedb/stemedb/server/internal/store"
	"github.com/stemedb/stemedb/server/record"
)

const simProject = "sim"

// fact is what was acknowledged about one id: the content and a signature, and
// perhaps a vote.
type fact struct {
	id      record.Hash
	subject string
	agent   record.AgentID
	vote    record.Hash // zero: none
}

// clients write and read while the world is disturbed, and remember what was
// acknowledged to them.
type clients struct {
	w      *world
	stop   chan struct{}
	once   sync.Once
	wait   sync.WaitGroup
	mu     sync.Mutex
	facts  []fact
	wrong  []string // violations
	writes int      // acknowledged
	failed int      // refused or timed out, which is no violation
	reads  int
}

func (w *world) startClients(seed uint64, writers, readers int) *clients {
	c := &clients{w: w, stop: make(chan struct{})}
	for i := range writers {
		c.wait.Go(func() { c.write(rand.New(rand.NewPCG(seed, 100+uint64(i))), i) })
	}
	for i := range readers {
		c.wait.Go(func() { c.read(rand.New(rand.NewPCG(seed, 200+uint64(i)))) })
	}
	return c
}

// end may be called again: a test that fails ends them on its way out.
func (c *clients) end() {
	c.once.Do(func() { close(c.stop) })
	c.wait.Wait()
}

// pause waits for a fraction of a second; false when it is over.
func (c *clients) pause(r *rand.Rand) bool {
	select {
	case <-c.stop:
		return false
	case <-time.After(time.Duration(100+r.IntN(1000)) * time.Millisecond):
		return true
	}
}

// someNode is a node that is up, whatever its condition.
func (c *clients) someNode(r *rand.Rand) *cluster.Cluster {
	for range 6 {
		c.w.mu.Lock()
		m := c.w.machines[r.IntN(len(c.w.machines))]
		n := m.node
		up := m.up()
		c.w.mu.Unlock()
		if up {
			return n.Cluster()
		}
	}
	return nil
}

func (c *clients) write(r *rand.Rand, number int) {
	signer := ed25519.NewKeyFromSeed(append(make([]byte, 31), byte(number+1)))
	var known []*record.Assertion
	for c.pause(r) {
		target := c.someNode(r)
		if target == nil {
			continue
		}
		if len(known) > 0 && r.IntN(6) == 0 {
			c.vote(target, signer, known[r.IntN(len(known))])
			continue
		}
		var batch []*record.Assertion
		for range 1 + r.IntN(4) {
			// Some are sent again: also a duplicate must be durable then.
			if len(known) > 0 && r.IntN(5) == 0 {
				batch = append(batch, known[r.IntN(len(known))])
				continue
			}
			a := &record.Assertion{Content: record.Content{
				Subject: fmt.Sprintf("code://sim/%d", r.IntN(20)), Predicate: "version",
				Object: record.Text(fmt.Sprintf("w%d-%x", number, r.Uint64())), Confidence: 0.5,
				SourceClass: record.Observational, Timestamp: uint64(time.Now().Unix()),
			}}
			a.Sign(signer)
			batch = append(batch, a)
			known = append(known, a)
		}
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		results := target.Assert(ctx, simProject, batch)
		cancel()
		c.mu.Lock()
		for i, res := range results {
			if res.Err != nil {
				c.refused("record", res.Err)
				continue
			}
			c.writes++
			c.facts = append(c.facts, fact{id: batch[i].ID(), subject: batch[i].Subject, agent: batch[i].Signatures[0].Agent})
		}
		c.mu.Unlock()
	}
}

// refused notes the answer to something valid that was not acknowledged; mu is
// held.
func (c *clients) refused(what string, err error) {
	c.failed++
	if !errors.Is(err, cluster.ErrUnavailable) && !errors.Is(err, context.DeadlineExceeded) {
		c.wrong = append(c.wrong, fmt.Sprintf("write of a valid %s answered: %v", what, err))
	}
}

func (c *clients) vote(target *cluster.Cluster, signer ed25519.PrivateKey, a *record.Assertion) {
	v := &record.Vote{Assertion: a.ID(), Weight: 0.5, Timestamp: uint64(time.Now().Unix())}
	record.SignVote(signer, v)
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	res := target.Vote(ctx, simProject, v)
	c.mu.Lock()
	defer c.mu.Unlock()
	if res.Err != nil {
		c.refused("vote", res.Err)
		return
	}
	c.writes++
	c.facts = append(c.facts, fact{id: v.Assertion, subject: a.Subject, agent: v.Agent, vote: v.ID()})
}

// read asks some node for something that was acknowledged before the read
// began: it may be refused, but never be missing.
func (c *clients) read(r *rand.Rand) {
	for c.pause(r) {
		target := c.someNode(r)
		c.mu.Lock()
		if target == nil || len(c.facts) == 0 {
			c.mu.Unlock()
			continue
		}
		f := c.facts[r.IntN(len(c.facts))]
		if r.IntN(2) == 0 { // the newest are the likeliest to be missed
			f = c.facts[len(c.facts)-1]
		}
		c.mu.Unlock()
		if f.vote != (record.Hash{}) {
			continue // a vote may be there before its assertion is
		}
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		err := c.readOne(ctx, r, target, f)
		cancel()
		c.mu.Lock()
		switch {
		case err == nil:
			c.reads++
		case errors.Is(err, cluster.ErrUnavailable), errors.Is(err, context.DeadlineExceeded):
		default:
			c.wrong = append(c.wrong, fmt.Sprintf("%.3fs: quorum read of the acknowledged %s: %v", time.Since(c.w.began).Seconds(), f.id, err))
		}
		c.mu.Unlock()
	}
}

func (c *clients) readOne(ctx context.Context, r *rand.Rand, target *cluster.Cluster, f fact) error {
	if r.IntN(3) > 0 {
		s, err := target.Get(ctx, simProject, f.id, cluster.Quorum)
		if err != nil {
			return err
		}
		return holdsSignature(s, f.agent)
	}
	claims, err := target.Claims(ctx, store.ClaimQuery{Project: simProject, Subject: f.subject, Predicate: "version"}, cluster.Quorum)
	if err != nil {
		return err
	}
	for claim, err := range claims(nil) {
		if err != nil {
			return err
		}
		if claim.ID == f.id {
			return nil
		}
	}
	return errors.New("not among the claims of its subject")
}

func holdsSignature(s *store.Stored, agent record.AgentID) error {
	for _, sig := range s.Signatures {
		if sig.Agent == agent {
			return nil
		}
	}
	return errors.New("the content is there, the acknowledged signature is not")
}

// missingAt lists what was acknowledged and a node alone does not hold.
func (c *clients) missingAt(m *machine) []string {
	var missing []string
	for _, f := range c.facts {
		if f.vote != (record.Hash{}) {
			found := false
			var failed error
			for k, err := range m.node.Store().SetKeys(context.Background(), store.Set{Project: simProject, ID: &f.id}) {
				found, failed = found || k.Key.Vote == f.vote, err
			}
			if failed != nil || !found {
				missing = append(missing, fmt.Sprintf("%s lacks vote %s (%v)", m.name, f.vote, failed))
			}
			continue
		}
		s, err := m.node.Store().Assertion(simProject, f.id)
		if err == nil {
			err = holdsSignature(s, f.agent)
		}
		if err != nil {
			missing = append(missing, fmt.Sprintf("%s lacks %s: %v", m.name, f.id, err))
		}
	}
	return missing
}
