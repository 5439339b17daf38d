package api

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"iter"
	"slices"
	"time"

	"github.com/stemedb/stemedb/record"
	"github.com/stemedb/stemedb/server/internal/cluster"
	"github.com/stemedb/stemedb/server/internal/lens"
	"github.com/stemedb/stemedb/server/internal/store"
)

// claims opens the claims of a query in all its scopes: by predicate, then
// newest first, unfiltered. A claim that two projects hold appears once, with
// the signatures and votes of both.
func (c *call) claims(q *claimQuery) (cluster.ClaimSource, error) {
	var all []cluster.ClaimSource
	for _, project := range q.scope {
		source, err := c.svc.backend.Claims(c.ctx, store.ClaimQuery{
			Project: project, Subject: q.subject, Predicate: q.predicate, AsOf: q.asOf,
		}, q.consistency)
		if err != nil {
			return nil, err
		}
		all = append(all, source)
	}
	if len(all) == 1 {
		return all[0], nil
	}
	return func(after *store.ClaimCursor) iter.Seq2[*store.Claim, error] {
		return mergeClaims(all[0](after), all[1](after))
	}, nil
}

// mergeClaims merges two ordered sequences into one.
func mergeClaims(a, b iter.Seq2[*store.Claim, error]) iter.Seq2[*store.Claim, error] {
	return func(yield func(*store.Claim, error) bool) {
		nextB, stop := iter.Pull2(b)
		defer stop()
		held, errB, ok := nextB()
		for x, errA := range a {
			if errA != nil {
				yield(nil, errA)
				return
			}
			for ok && errB == nil && compareClaims(held, x) < 0 {
				if !yield(held, nil) {
					return
				}
				held, errB, ok = nextB()
			}
			if ok && errB != nil {
				yield(nil, errB)
				return
			}
			if ok && compareClaims(held, x) == 0 {
				x = joinClaims(x, held)
				held, errB, ok = nextB()
			}
			if !yield(x, nil) {
				return
			}
		}
		for ok {
			if !yield(held, errB) || errB != nil {
				return
			}
			held, errB, ok = nextB()
		}
	}
}

// compareClaims is the order of store.Claims: predicate, then newest first.
func compareClaims(x, y *store.Claim) int {
	if c := cmp.Compare(x.Predicate, y.Predicate); c != 0 {
		return c
	}
	switch {
	case x.Newer(&y.Claim):
		return -1
	case y.Newer(&x.Claim):
		return 1
	}
	return 0
}

// joinClaims is the claim that two projects hold, as the first of them has it,
// with the signers and voters of both. When one of the two is partial, so is
// the result, by the same rule: the smallest ids of all count.
func joinClaims(own, other *store.Claim) *store.Claim {
	joined := *own
	if own.Unreadable {
		joined = *other
	}
	joined.Partial = own.Partial || other.Partial
	joined.Agents = slices.Concat(own.Agents, other.Agents)
	slices.SortFunc(joined.Agents, record.AgentID.Compare)
	joined.Agents = slices.Compact(joined.Agents)

	joined.Votes = slices.Concat(own.Votes, other.Votes)
	slices.SortFunc(joined.Votes, func(x, y lens.Vote) int {
		return cmp.Or(x.Agent.Compare(y.Agent), cmp.Compare(y.Timestamp, x.Timestamp), y.ID.Compare(x.ID))
	})
	joined.Votes = slices.CompactFunc(joined.Votes, func(x, y lens.Vote) bool { return x.Agent == y.Agent })
	if joined.Partial {
		most := 0 // the length to which the partial one was cut
		for _, c := range []*store.Claim{own, other} {
			if c.Partial {
				most = max(most, len(c.Agents), len(c.Votes))
			}
		}
		joined.Agents = joined.Agents[:min(most, len(joined.Agents))]
		joined.Votes = joined.Votes[:min(most, len(joined.Votes))]
	}
	return &joined
}

// source feeds claims to a lens. It remembers an error, and whether there was
// any claim, because a lens cannot return them.
type source struct {
	query  *claimQuery
	err    error
	passed bool
}

// feed gives a lens the claims that pass the filter.
func (s *source) feed(claims iter.Seq2[*store.Claim, error]) lens.Claims[*store.Claim] {
	return func(yield func(*store.Claim) bool) {
		for claim, err := range claims {
			if err != nil {
				s.err = err
				return
			}
			if !s.query.shows(claim) {
				continue
			}
			s.passed = true
			if !yield(claim) {
				return
			}
		}
	}
}

// showClaim converts a claim to its form for callers.
func (c *call) showClaim(claim *store.Claim) (*claimBody, error) {
	content, err := c.content(claim)
	if err != nil {
		return nil, err
	}
	return newClaimBody(&claim.Claim, claim.Project, content), nil
}

// memory accounts for the bytes that one request holds of the claims that it
// reads and of those that its answer shows. A small amount is free. For more,
// the request needs a turn, so that only Options.HeavyReads requests at a time
// hold more: up to Options.ReadLimit each for weighing, and a page.
type memory struct {
	call  *call
	held  int64 // for weighing
	shown int64 // of the page
	heavy bool  // the request has its turn
}

const (
	freeBytes    = 256 << 10
	turnPatience = 2 * time.Second
	// agentText is the size of an agent in JSON.
	agentText = 2*len(record.AgentID{}) + len(`"",`)
)

// hold is a lens.Params.Hold.
func (m *memory) hold(bytes int) error {
	m.held += int64(bytes)
	if limit := m.call.api.opts.ReadLimit; m.held > limit {
		return problem(codeSubjectTooLarge, "subject",
			fmt.Sprintf("the subject has so many different values, agents or votes that weighing them takes more than %d bytes", limit),
			"narrow the question with predicate, source_class, min_confidence or as_of, or ask /v1/query with lens=recency, confidence or authority")
	}
	return m.need(0)
}

// show counts bytes that the answer shows.
func (m *memory) show(bytes int) error {
	m.shown += int64(bytes)
	return m.need(0)
}

// need waits for the turn when that many more bytes are not free.
func (m *memory) need(bytes int) error {
	if m.held+m.shown+int64(bytes) <= freeBytes {
		return nil
	}
	return m.turn()
}

// full reports whether the page has enough bytes.
func (m *memory) full() bool { return m.shown >= pageBytes }

// text is a claim in its form for callers, counted as shown.
func (m *memory) text(claim *store.Claim) (json.RawMessage, error) {
	// A single claim may have so many agents that it needs the turn.
	if err := m.need(agentText * len(claim.Agents)); err != nil {
		return nil, err
	}
	shown, err := m.call.showClaim(claim)
	if err != nil {
		return nil, err
	}
	text, err := json.Marshal(shown)
	if err != nil {
		return nil, fmt.Errorf("encode claim %s: %w", claim.ID, err)
	}
	return text, m.show(len(text))
}

// winner is the text of a lens's winner, nil without one.
func (m *memory) winner(claim *store.Claim) (json.RawMessage, error) {
	if claim == nil {
		return nil, nil
	}
	return m.text(claim)
}

// turn waits for the turn of a request that holds more than the free amount.
func (m *memory) turn() error {
	if m.heavy {
		return nil
	}
	ctx, cancel := context.WithTimeout(m.call.ctx, turnPatience)
	defer cancel()
	if err := m.call.api.heavy.Acquire(ctx, 1); err != nil {
		return problem(codeOverloadedReads, "", "too many large subjects are being read", remedyRetry).retry(retrySoon)
	}
	m.heavy = true
	return nil
}

// empty releases the bytes held for weighing. Shown bytes stay counted with the
// page, and the turn is kept.
func (m *memory) empty() { m.held = 0 }

// leave gives the turn back.
func (m *memory) leave() {
	if m.heavy {
		m.call.api.heavy.Release(1)
	}
}

// claimBody is a claim in its form for callers: the content as it was signed,
// and its current state.
type claimBody struct {
	Hash    string `json:"hash"`
	Project string `json:"project"`
	*record.Content
	// EffectiveLifecycle is the lifecycle of the newest successor by parent_hash,
	// or the claim's own when there is no successor.
	EffectiveLifecycle record.Lifecycle `json:"effective_lifecycle"`
	ReplacedBy         *record.Hash     `json:"replaced_by,omitempty"`
	Agents             []record.AgentID `json:"agents"`
	Votes              voteSummary      `json:"votes"`
	// Partial: more agents signed the claim, or voted on it, than are shown and
	// counted here.
	Partial bool `json:"partial,omitempty"`
}

// voteSummary counts the newest vote of each agent.
type voteSummary struct {
	For     int     `json:"for"`
	Against int     `json:"against"`
	Weight  float64 `json:"weight"` // the sum
}

func newClaimBody(claim *lens.Claim, project string, content *record.Content) *claimBody {
	b := &claimBody{
		Hash: claim.ID.String(), Project: project, Content: content,
		EffectiveLifecycle: claim.Lifecycle, ReplacedBy: claim.ReplacedBy,
		Agents: claim.Agents, Votes: countVotes(claim.Votes), Partial: claim.Partial,
	}
	if b.Agents == nil {
		b.Agents = []record.AgentID{}
	}
	return b
}

func countVotes(votes []lens.Vote) (s voteSummary) {
	for _, v := range votes {
		s.Weight += v.Weight
		switch {
		case v.Weight > 0:
			s.For++
		case v.Weight < 0:
			s.Against++
		}
	}
	return s
}
