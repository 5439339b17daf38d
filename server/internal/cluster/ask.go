package cluster

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/stemedb/stemedb/internal/sleep"
	"github.com/stemedb/stemedb/server/internal/cluster/peerpb"
	"github.com/stemedb/stemedb/server/internal/control"
)

// plan lists the members that a quorum read has to hear.
type plan struct {
	self  string
	state *control.State
	// need is how many whole members have to be heard, this node included.
	need int
	// others are the members to ask, the most likely to answer first.
	others []control.Member
}

func (c *Cluster) planRead() (*plan, error) {
	if err := c.mayDecide(); err != nil {
		return nil, err
	}
	state := c.control.State()
	if err := c.wholeNow(state); err != nil {
		return nil, err
	}
	candidates, need := state.ReadSet()
	p := &plan{self: c.id, state: state, need: need, others: c.preferred(candidates)}
	if len(candidates) < need {
		return nil, unavailable(CodeTooFewWhole, fmt.Sprintf(
			"only %d of %d members are whole, and %d are needed for a read that sees every acknowledged write; the others are being refilled, or an operator has to accept their losses",
			len(candidates), len(state.Members), need), nil)
	}
	if state.Change == nil {
		return p, nil
	}
	p.need = max(p.need, control.Majority(len(state.Change.New)))
	isIn := func(set []control.Member, m control.Member) bool {
		return slices.ContainsFunc(set, func(o control.Member) bool { return o.ID() == m.ID() })
	}
	var added []control.Member
	for _, m := range state.Change.New {
		if !isIn(candidates, m) {
			added = append(added, m)
		}
	}
	// Members that count for both sets come first.
	p.others = append(p.others, c.preferred(added)...)
	slices.SortStableFunc(p.others, func(a, b control.Member) int {
		worth := func(m control.Member) int {
			if isIn(candidates, m) && isIn(state.Change.New, m) {
				return 0
			}
			return 1
		}
		return worth(a) - worth(b)
	})
	return p, nil
}

// enough reports whether this node and these members suffice.
func (p *plan) enough(heard []control.Member) bool {
	return p.state.ReadQuorum(func(id string) bool {
		return id == p.self || slices.ContainsFunc(heard, func(m control.Member) bool { return m.ID() == id })
	})
}

// firstCalls is the number of members to ask at once: the fewest that suffice if
// all of them answer.
func (p *plan) firstCalls() int {
	for n := range len(p.others) {
		if p.enough(p.others[:n]) {
			return n
		}
	}
	return len(p.others)
}

// answer is the answer of one member.
type answer[T any] struct {
	member control.Member
	client peerpb.PeerClient
	value  T
	err    error
}

// ask calls as many members as the plan needs, all at once, and another one for
// each that fails or is slow, until enough have answered. Members that failed but
// seem to be alive (they may be starting) are asked again until ctx ends.
func ask[T any](ctx context.Context, c *Cluster, p *plan, call func(context.Context, peerpb.PeerClient) (T, error)) ([]answer[T], error) {
	if p.enough(nil) {
		return nil, nil
	}
	ctx, cancel := context.WithCancel(ctx)
	q := &question[T]{c: c, call: call, results: make(chan answer[T], len(p.others)), waiting: p.others}
	defer q.end(cancel)
	for range p.firstCalls() {
		q.next(ctx)
	}
	hedge := time.NewTimer(c.timings.Hedge)
	defer hedge.Stop()
	var good []answer[T]
	var heard []control.Member
	failures := map[string]error{}
	for q.running > 0 {
		select {
		case a := <-q.results:
			q.running--
			if a.err == nil {
				delete(failures, a.member.Name)
				good, heard = append(good, a), append(heard, a.member)
				if p.enough(heard) {
					return good, nil
				}
				continue
			}
			if _, stale := control.StaleGeneration(a.err); stale {
				return nil, a.err
			}
			failures[a.member.Name] = a.err
			q.next(ctx)
			if c.alive(a.member.Name) && !control.WrongMember(a.err) {
				q.start(ctx, a.member, c.timings.Hedge)
			}
		case <-hedge.C:
			if q.next(ctx) {
				hedge.Reset(c.timings.Hedge)
			}
		case <-ctx.Done():
			return nil, c.tooFewAnswers(p, len(heard), failures)
		}
	}
	return nil, c.tooFewAnswers(p, len(heard), failures)
}

// question is one round of calls to members.
type question[T any] struct {
	c       *Cluster
	call    func(context.Context, peerpb.PeerClient) (T, error)
	results chan answer[T] // holds one result of each member
	waiting []control.Member
	running int
}

// next asks the next member; it returns false when all have been asked.
func (q *question[T]) next(ctx context.Context) bool {
	if len(q.waiting) == 0 {
		return false
	}
	m := q.waiting[0]
	q.waiting = q.waiting[1:]
	q.start(ctx, m, 0)
	return true
}

// start asks a member after a pause.
func (q *question[T]) start(ctx context.Context, m control.Member, after time.Duration) {
	q.running++
	go func() {
		if after > 0 {
			sleep.For(ctx, after)
		}
		a := answer[T]{member: m}
		conn, err := q.c.control.Conn(m)
		if err == nil && !q.c.compared(m.ID()) {
			err = errors.New("it has not yet compared its witness with this node's log since this node started")
		}
		if err != nil {
			a.err = err
		} else {
			a.client = peerpb.NewPeerClient(conn)
			a.value, a.err = q.call(ctx, a.client)
		}
		q.results <- a
	}()
}

// end cancels the calls in flight and waits for them.
func (q *question[T]) end(cancel context.CancelFunc) {
	cancel()
	for ; q.running > 0; q.running-- {
		<-q.results
	}
}

func (c *Cluster) tooFewAnswers(p *plan, heard int, failures map[string]error) error {
	causes := make([]error, 0, len(failures))
	for _, name := range slices.Sorted(maps.Keys(failures)) {
		causes = append(causes, fmt.Errorf("%s: %w", name, failures[name]))
	}
	return unavailable(CodePeersUnreachable, fmt.Sprintf(
		"%d of %d members answered, this node included, and %d are needed for a read that sees every acknowledged write",
		heard+1, len(p.state.Members), p.need), errors.Join(causes...))
}
