package api

import (
	"cmp"
	"encoding/json"
	"net/http"
	"time"

	"github.com/stemedb/stemedb/record"
	"github.com/stemedb/stemedb/server/internal/lens"
	"github.com/stemedb/stemedb/server/internal/store"
)

const (
	defaultDisputed = 1000
	maxDisputed     = 10_000
)

// skepticBody shows the values of one subject and predicate and their
// supporters.
type skepticBody struct {
	Subject     string      `json:"subject"`
	Predicate   string      `json:"predicate"`
	Consistency string      `json:"consistency"`
	AsOf        uint64      `json:"as_of,omitempty"`
	Score       float64     `json:"conflict_score"`
	Status      string      `json:"status,omitempty"` // absent when there is no claim
	Why         string      `json:"why"`
	Values      []valueBody `json:"values"`
	// Truncated: there are more claims or values than limit allows. Score, status,
	// support and counts cover all of them.
	Truncated bool `json:"truncated,omitempty"`
	// PartialClaims are those of which not all agents and votes were counted.
	PartialClaims []record.Hash `json:"partial_claims,omitempty"`
	omitted
}

type valueBody struct {
	Object     record.Object    `json:"object"`
	Support    float64          `json:"support"`
	Share      float64          `json:"share"`   // of all positive support
	Signers    int              `json:"signers"` // distinct agents
	ClaimCount int              `json:"claim_count"`
	Claims     []supporterClaim `json:"claims"` // the newest, at most 100
}

// supporterClaim is one claim that supports a value.
type supporterClaim struct {
	Hash               string             `json:"hash"`
	Timestamp          uint64             `json:"timestamp"`
	Confidence         float64            `json:"confidence"`
	SourceClass        record.SourceClass `json:"source_class"`
	EffectiveLifecycle record.Lifecycle   `json:"effective_lifecycle"`
	Agents             []record.AgentID   `json:"agents"`
	Votes              voteSummary        `json:"votes"`
	Partial            bool               `json:"partial,omitempty"`
}

// skeptic shows disagreement instead of an answer.
func (c *call) skeptic() error {
	began := time.Now()
	q, err := c.claimQuery(true)
	if err != nil {
		return err
	}
	limit, err := c.intParam("limit", defaultDisputed, 1, maxDisputed)
	if err != nil {
		return err
	}
	claims, err := c.claims(&q)
	if err != nil {
		return err
	}
	space := memory{call: c}
	defer space.leave()
	q.params.Hold = space.hold
	src := source{query: &q}
	dispute, err := lens.Skeptic(src.feed(claims(nil)), q.params)
	if err := cmp.Or(src.err, err); err != nil {
		return err
	}
	body := skepticBody{
		Subject: q.subject, Predicate: q.predicate, Consistency: q.consistency.String(), AsOf: q.asOf,
		Score: dispute.Score, Status: string(dispute.Status), Why: dispute.Why, Values: []valueBody{},
		PartialClaims: dispute.PartialClaims,
	}
	if err := space.showValues(&body, dispute.Values, limit); err != nil {
		return err
	}
	c.showOmitted(&q, &body.omitted)
	c.api.meters.queried("skeptic", began)
	return c.json(http.StatusOK, body)
}

// showValues shows values, strongest first, with up to limit claims in all and
// as many bytes of values as fit a page.
func (m *memory) showValues(body *skepticBody, values []lens.ValueSupport[*store.Claim], limit int) error {
	for i := range values {
		v := &values[i]
		if limit == 0 || m.full() {
			body.Truncated = true
			return nil
		}
		content, err := m.call.content(v.Newest)
		if err != nil {
			return err
		}
		shown := valueBody{
			Object: content.Object, Support: v.Support, Share: v.Share, Signers: v.Signers, ClaimCount: v.Count, Claims: []supporterClaim{},
		}
		for _, claim := range v.Claims {
			if limit == 0 {
				break
			}
			limit--
			shown.Claims = append(shown.Claims, supporterClaim{
				Hash: claim.ID.String(), Timestamp: claim.Timestamp, Confidence: claim.Confidence, SourceClass: claim.Class,
				EffectiveLifecycle: claim.Lifecycle, Agents: claim.Agents, Votes: countVotes(claim.Votes), Partial: claim.Partial,
			})
		}
		body.Truncated = body.Truncated || len(shown.Claims) < v.Count
		text, err := json.Marshal(shown.Object)
		if err != nil {
			return err
		}
		// The claims were counted when the lens took them.
		if err := m.show(len(text)); err != nil {
			return err
		}
		body.Values = append(body.Values, shown)
	}
	return nil
}

type layeredBody struct {
	Subject     string      `json:"subject"`
	Predicate   string      `json:"predicate"`
	Consistency string      `json:"consistency"`
	AsOf        uint64      `json:"as_of,omitempty"`
	Layers      []layerBody `json:"layers"`
	omitted
}

type layerBody struct {
	SourceClass record.SourceClass `json:"source_class"`
	Tier        int                `json:"tier"`
	Winner      json.RawMessage    `json:"winner"` // a claimBody
	Why         lens.Why           `json:"why"`
}

// layered draws one answer for each source class.
func (c *call) layered() error {
	began := time.Now()
	q, err := c.claimQuery(true)
	if err != nil {
		return err
	}
	claims, err := c.claims(&q)
	if err != nil {
		return err
	}
	space := memory{call: c}
	defer space.leave()
	q.params.Hold = space.hold
	src := source{query: &q}
	layers, err := lens.Layered(src.feed(claims(nil)), q.params)
	if err := cmp.Or(src.err, err); err != nil {
		return err
	}
	body := layeredBody{
		Subject: q.subject, Predicate: q.predicate, Consistency: q.consistency.String(), AsOf: q.asOf, Layers: []layerBody{},
	}
	for _, l := range layers {
		winner, err := space.winner(l.Answer.Winner)
		if err != nil {
			return err
		}
		body.Layers = append(body.Layers, layerBody{SourceClass: l.Class, Tier: l.Class.Tier(), Winner: winner, Why: l.Answer.Why})
	}
	c.showOmitted(&q, &body.omitted)
	c.api.meters.queried("layered", began)
	return c.json(http.StatusOK, body)
}
