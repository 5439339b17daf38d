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

// A round is one question to the leader, shared by all callers that arrived
// before it was asked.
type round struct {
	done chan struct{}
	err  error // set before done is closed
}

func newRound() *round { return &round{done: make(chan struct{})} }

// roundsApart limits the rate of questions: unknown keys come from clients, which
// must not be able to overload the leader with them.
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
			c.log.Debug("this node's copy of the control table was not confirmed", "error", err)
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

// refresh waits for the answer to a question that is asked from now on.
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

// confirm asks the leader for the table's index and waits until this copy has
// reached it. The copy is confirmed as of the question, not of the answer: it
// holds everything acknowledged before the question.
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

// confirmAsLeader answers the question. It takes the index first and then asks
// the majority, in a term in which all entries of earlier terms had been applied:
// so no change that was acknowledged before the question is newer than the index.
// at is the digest of asker's table; see judge.
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

// answerOf returns the future's error, or an error after a time limit. An
// instance of Raft that shuts down never answers the questions in its queue.
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

// Confirmed reports whether this copy holds everything that was acknowledged by
// some moment within the last 30 s, and that moment. Keys are checked only
// against a confirmed copy. If the machine was suspended or its clock was set
// since then, the age of that moment is unknown.
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

// Now is the table's time, to within the bound in docs/decisions/0008. It is not
// sure if no recent answer of the leader is available or no majority of the
// members' clocks agrees. Then it is this machine's time, which must not decide
// anything that members have to agree on.
func (c *Control) Now() (at time.Time, sure bool) { return c.clocks.now() }

// ClockSkew is a member's clock minus the table's time, if known.
func (c *Control) ClockSkew(memberID string) (d time.Duration, known bool) {
	if memberID == c.id {
		return c.clocks.skew()
	}
	return c.clocks.skewOf(memberID)
}

// MayDecide returns nil once this copy has been confirmed since the start and the
// start registered, which shows that the volumes were not restored to an older
// state. A copy starts from the newest snapshot and the entries known to be
// committed, so until then it may be older than the one that this node used
// before the restart: the node must not acknowledge a record, answer a quorum
// read, or count in a peer's. Later a copy may be stale, but its generation never
// decreases, as the proof in change.go requires.
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

// ConfirmedUntil is the end of the 30 s for which this copy is trusted after its
// last confirmation: an action before then comes within 30 s of any revocation
// that the copy does not show. It is zero while the copy is not trusted.
func (c *Control) ConfirmedUntil() time.Time {
	ok, at := c.Confirmed()
	if !ok {
		return time.Time{}
	}
	return at.Add(c.cfg.Timings.ConfirmedFor)
}

// LookupAtLeader updates this copy once and looks up the key again; it is for a
// key that the copy does not have. Waiting calls share one question, so unknown
// keys cost the leader at most 50 questions per second and node.
func (c *Control) LookupAtLeader(ctx context.Context, h keys.Hash) (k keys.Key, found bool, err error) {
	if err := c.refresh(ctx); err != nil {
		return keys.Key{}, false, fmt.Errorf("ask the leader for a key: %w", err)
	}
	k, found = c.GetKey(h)
	return k, found, nil
}

// WaitGeneration asks the leader and waits until State has at least that
// generation. A caller uses it after its generation was refused as stale.
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
