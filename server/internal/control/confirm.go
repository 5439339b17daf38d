package control

import (
	"context"
	"fmt"
	"time"

	"github.com/hashicorp/raft"

	"github.com/stemedb/stemedb/internal/sleep"
	"github.com/stemedb/stemedb/server/internal/control/controlpb"
	"github.com/stemedb/stemedb/server/internal/keys"
)

// A round is one question to the leader, shared by all who wait for one that
// was asked after they came.
type round struct {
	done chan struct{}
	err  error // set before done is closed
}

func newRound() *round { return &round{done: make(chan struct{})} }

// roundsApart keeps callers from making this node ask without pause: unknown
// keys come from outside, and nobody is to load the leader with them.
const roundsApart = 20 * time.Millisecond

// runConfirm asks the leader every ConfirmEvery, or at once when poked.
func (c *Control) runConfirm() {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-timer.C:
		case <-c.poke:
		case <-c.ctx.Done():
			c.endRound(ErrClosed)
			return
		}
		c.mu.Lock()
		r := c.nextRound
		c.nextRound = newRound()
		c.mu.Unlock()
		err := c.confirm()
		r.err = err
		close(r.done)
		if err == nil {
			err = c.registerLife()
		}
		if err != nil {
			c.log.Debug("this copy of the control table was not confirmed", "error", err)
		}
		c.clocks.warn(c.log)
		if !sleep.For(c.ctx, roundsApart) {
			c.endRound(ErrClosed)
			return
		}
		next := c.cfg.Timings.ConfirmEvery
		if err != nil || c.clocks.unreported() {
			next = min(next, retryEvery)
		}
		timer.Reset(max(0, next-roundsApart))
	}
}

func (c *Control) endRound(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.nextRound.err = err
	close(c.nextRound.done)
	c.nextRound = newRound()
}

// refresh waits for a question to the leader that is asked from now on.
func (c *Control) refresh(ctx context.Context) error {
	c.mu.Lock()
	r := c.nextRound
	c.mu.Unlock()
	sleep.Wake(c.poke)
	select {
	case <-r.done:
		return r.err
	case <-ctx.Done():
		return fmt.Errorf("%w: %w", ErrNoLeader, ctx.Err())
	case <-c.ctx.Done():
		return ErrClosed
	}
}

// confirm asks the leader where the table is and waits until this copy is there.
// What counts is when it asked, not when it heard: whatever was acknowledged
// before that moment is in this copy then.
func (c *Control) confirm() error {
	if err := c.table.err(); err != nil {
		return err
	}
	if !c.State().Formed() {
		return errUnformed
	}
	ctx, cancel := context.WithTimeout(c.ctx, c.cfg.Timings.CallTimeout)
	defer cancel()
	asked, moment := time.Now(), c.clocks.look()
	answer, err := c.askLeader(ctx)
	if err != nil {
		return err
	}
	if !c.await(ctx, answer.Index) {
		return fmt.Errorf("this copy is at %d, the leader at %d", c.State().Index, answer.Index)
	}
	if err := c.compare(answer); err != nil {
		return err
	}
	c.mu.Lock()
	first := c.confirmed.IsZero()
	if asked.After(c.confirmed) {
		c.confirmed, c.confirmedMoment = asked, moment
	}
	c.waitsFor = answer.ChangeWaitsFor
	c.mu.Unlock()
	if first {
		c.changed.broadcast() // MayDecide has changed
	}
	return nil
}

func (c *Control) askLeader(ctx context.Context) (*controlpb.ConfirmResponse, error) {
	if c.leading() {
		return c.confirmAsLeader("", dated{})
	}
	leader, err := c.leaderClient()
	if err != nil {
		return nil, err
	}
	s := c.State()
	request := &controlpb.ConfirmRequest{Generation: s.Generation, Index: s.Index, Digest: s.digest[:]}
	asked := c.clocks.look()
	c.clocks.report(asked, request)
	answer, err := leader.Confirm(ctx, request)
	if err == nil {
		c.clocks.learn(asked, answer)
	}
	return answer, err
}

// confirmAsLeader answers the question. The index is taken first and the
// majority asked after, in a term in which everything of earlier terms was
// applied before: so no change that was acknowledged before the question came
// is newer than the index. asker's table had the digest at; see judge.
func (c *Control) confirmAsLeader(asker string, at dated) (*controlpb.ConfirmResponse, error) {
	term := c.readyTerm.Load()
	if !c.leading() {
		return nil, ErrNoLeader
	}
	state := c.State()
	if err := answerOf(c.raft.Load().VerifyLeader(), c.cfg.Timings.CallTimeout); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNoLeader, err)
	}
	if c.readyTerm.Load() != term || c.raft.Load().CurrentTerm() != term {
		return nil, ErrNoLeader
	}
	differs, doubt, err := c.judge(term, asker, at)
	if err != nil {
		return nil, err
	}
	answer := &controlpb.ConfirmResponse{
		Index: state.Index, Term: term, ChangeWaitsFor: c.driverReport(),
		Digest: state.digest[:], Differs: differs, Doubt: doubt,
	}
	c.clocks.answer(term, c.id, memberIDs(state.Members), answer)
	return answer, nil
}

// answerOf is the future's error, if it comes within a time. An instance of Raft that
// ends leaves the questions in its queue unanswered for ever.
func answerOf(f raft.Future, within time.Duration) error {
	answer := make(chan error, 1)
	go func() { answer <- f.Error() }()
	timer := time.NewTimer(within)
	defer timer.Stop()
	select {
	case err := <-answer:
		return err
	case <-timer.C:
		return fmt.Errorf("this node's part of the control table did not answer within %v", within)
	}
}

func memberIDs(members []Member) []string {
	ids := make([]string, len(members))
	for i, m := range members {
		ids[i] = m.ID()
	}
	return ids
}

// Confirmed tells whether this copy holds everything that was acknowledged at
// some moment within the last 30 s, and which moment that is. Keys are checked
// only against a confirmed copy. A machine that was suspended, or whose clock was
// set, since then does not know how long ago that moment was.
func (c *Control) Confirmed() (ok bool, at time.Time) {
	c.mu.Lock()
	at = c.confirmed
	moment := c.confirmedMoment
	c.mu.Unlock()
	if at.IsZero() || c.Err() != nil {
		return false, at
	}
	slept, sure := c.clocks.slept(moment, c.clocks.look())
	at = at.Add(-slept)
	return sure && time.Since(at) < c.cfg.Timings.ConfirmedFor, at
}

// Now is the table's time, to within the bound in docs/decisions/0008. When it
// is not sure, because no answer of the leader's is fresh or because no majority
// of the members' clocks agree, it is this machine's time, which decides nothing
// that members have to agree on.
func (c *Control) Now() (at time.Time, sure bool) { return c.clocks.now() }

// ClockSkew is a member's clock less the table's time, as far as it is known.
func (c *Control) ClockSkew(memberID string) (d time.Duration, known bool) {
	if memberID == c.id {
		return c.clocks.skew()
	}
	return c.clocks.skewOf(memberID)
}

// MayDecide returns nil once this copy was confirmed since the start, and the
// start registered, which shows that the volumes are not older either. A copy
// starts from the newest snapshot and what Raft's log is known to have
// committed, so until then it may be older than the one that this node went by
// in an earlier life: with it the node must not acknowledge a record, answer a
// quorum read, or count in a peer's. Later a copy may be stale, but never older
// than it was, which is what the proof in change.go needs.
func (c *Control) MayDecide() error {
	if err := c.Err(); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.confirmed.IsZero():
		return ErrNotConfirmedYet
	case !c.registered.Load():
		return ErrUnregistered
	}
	return nil
}

// ConfirmedUntil is the end of the 30 s for which this copy is trusted since it was
// last confirmed: an action before then comes within 30 s of any revocation that
// the copy does not show. It is zero while the copy is not trusted.
func (c *Control) ConfirmedUntil() time.Time {
	ok, at := c.Confirmed()
	if !ok {
		return time.Time{}
	}
	return at.Add(c.cfg.Timings.ConfirmedFor)
}

// LookupAtLeader brings this copy up to date once and looks again: for a key
// that the copy does not know. Calls that wait share one question, so unknown
// keys cost the leader at most 50 questions a second and node.
func (c *Control) LookupAtLeader(ctx context.Context, h keys.Hash) (k keys.Key, found bool, err error) {
	if err := c.refresh(ctx); err != nil {
		return keys.Key{}, false, fmt.Errorf("ask the leader for a key: %w", err)
	}
	k, found = c.GetKey(h)
	return k, found, nil
}

// WaitGeneration asks the leader and waits until State has at least that
// generation: what a caller does whose generation was refused as too old.
func (c *Control) WaitGeneration(ctx context.Context, generation uint64) error {
	for c.State().Generation < generation {
		if err := c.refresh(ctx); err != nil && ctx.Err() != nil {
			return err
		}
		select {
		case <-c.ctx.Done():
			return ErrClosed
		default:
		}
	}
	return nil
}
