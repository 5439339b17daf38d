package client

import (
	"context"
	"net/url"
	"strconv"
	"strings"

	"github.com/stemedb/stemedb/record"
)

// Lens is a rule that draws one answer from many claims.
type Lens string

// The lenses. Without a lens all claims are listed.
const (
	Recency    Lens = "recency"    // the newest
	Consensus  Lens = "consensus"  // the value with the most support
	Confidence Lens = "confidence" // the most confident
	Authority  Lens = "authority"  // the best source, then decayed confidence
)

// Scope selects the projects whose claims are read.
type Scope string

// The scopes.
const (
	Own          Scope = "own" // the key's project; the default
	Shared       Scope = "shared"
	OwnAndShared Scope = "own,shared"
)

// Query selects claims. Only Subject is required; for zero fields the server's
// defaults apply.
type Query struct {
	Subject       string
	Predicate     string               // "" is all of them
	Lifecycles    []record.Lifecycle   // default: approved and proposed
	SourceClasses []record.SourceClass // default: all
	MinConfidence float64
	AsOf          uint64 // unix seconds: excludes claims signed later
	Scope         Scope
	Consistency   Consistency
	Limit         int
	Cursor        string // of the previous page
}

func (q *Query) values() url.Values {
	v := url.Values{"subject": {q.Subject}}
	set := func(name, value string) {
		if value != "" {
			v.Set(name, value)
		}
	}
	set("predicate", q.Predicate)
	set("lifecycle", joined(q.Lifecycles))
	set("source_class", joined(q.SourceClasses))
	if q.MinConfidence != 0 {
		set("min_confidence", strconv.FormatFloat(q.MinConfidence, 'g', -1, 64))
	}
	if q.AsOf != 0 {
		set("as_of", strconv.FormatUint(q.AsOf, 10))
	}
	set("scope", string(q.Scope))
	set("consistency", string(q.Consistency))
	if q.Limit != 0 {
		set("limit", strconv.Itoa(q.Limit))
	}
	set("cursor", q.Cursor)
	return v
}

func joined[T interface{ String() string }](values []T) string {
	names := make([]string, len(values))
	for i, v := range values {
		names[i] = v.String()
	}
	return strings.Join(names, ",")
}

// Claim is an assertion with its current state.
type Claim struct {
	Hash    record.Hash `json:"hash"`
	Project string      `json:"project"`
	record.Content
	// EffectiveLifecycle is that of the newest successor by parent_hash, or the
	// claim's own when there is no successor.
	EffectiveLifecycle record.Lifecycle `json:"effective_lifecycle"`
	ReplacedBy         *record.Hash     `json:"replaced_by"`
	Agents             []record.AgentID `json:"agents"` // who signed it
	Votes              VoteCount        `json:"votes"`
	// Partial: more agents signed it, or voted on it, than are named and counted.
	Partial bool `json:"partial"`
}

// VoteCount counts the newest vote of each agent.
type VoteCount struct {
	For     int     `json:"for"`
	Against int     `json:"against"`
	Weight  float64 `json:"weight"` // the sum
}

// ClaimPage is one page of claims, by predicate, the newest first.
type ClaimPage struct {
	Claims []Claim `json:"claims"`
	Cursor string  `json:"cursor"` // of the next page; "" on the last one
	// UnreadableClaims match the query and are left out, because their content is
	// damaged and no member gave an intact copy. The server names at most 1,000.
	UnreadableClaims []record.Hash `json:"unreadable_claims"`
	// Incomplete is as in Record.
	Incomplete string `json:"-"`
}

// AnswerPage is one page of a lens's answers, one for each predicate.
type AnswerPage struct {
	Answers []Answer `json:"answers"`
	Cursor  string   `json:"cursor"`
	// UnreadableClaims is as in ClaimPage.
	UnreadableClaims []record.Hash `json:"unreadable_claims"`
	// Incomplete is as in Record.
	Incomplete string `json:"-"`
}

// Answer is a lens's answer for one predicate.
type Answer struct {
	Predicate string `json:"predicate"`
	Winner    *Claim `json:"winner"` // nil when no value has support
	Why       Why    `json:"why"`
}

// Why explains why the winner won.
type Why struct {
	Rule     string  `json:"rule"`
	Because  string  `json:"because"`
	Score    float64 `json:"score"`
	TieBreak string  `json:"tie_break"` // timestamp or id, "" when the score decided
	RunnerUp *struct {
		Hash  record.Hash `json:"hash"`
		Score float64     `json:"score"`
	} `json:"runner_up"`
	// PartialClaims were only partly counted: too many agents signed them or voted
	// on them.
	PartialClaims []record.Hash `json:"partial_claims"`
}

// Claims lists claims.
func (c *Client) Claims(ctx context.Context, q Query) (*ClaimPage, error) {
	var out ClaimPage
	if err := c.get(ctx, "/v1/query", q.values(), &out, &out.Incomplete); err != nil {
		return nil, err
	}
	return &out, nil
}

// Query draws answers with a lens: one for each predicate of the subject, or
// one for the predicate that q names.
func (c *Client) Query(ctx context.Context, q Query, lens Lens) (*AnswerPage, error) {
	v := q.values()
	v.Set("lens", string(lens))
	var out AnswerPage
	if err := c.get(ctx, "/v1/query", v, &out, &out.Incomplete); err != nil {
		return nil, err
	}
	return &out, nil
}

// Dispute shows how much claims about one subject and predicate disagree.
type Dispute struct {
	Subject   string  `json:"subject"`
	Predicate string  `json:"predicate"`
	Score     float64 `json:"conflict_score"`
	Status    string  `json:"status"` // unanimous, contested or majority; "" without claims
	Why       string  `json:"why"`
	Values    []Value `json:"values"`
	Truncated bool    `json:"truncated"` // not all claims and values are shown
	// PartialClaims is as in Why.
	PartialClaims []record.Hash `json:"partial_claims"`
	// UnreadableClaims is as in ClaimPage.
	UnreadableClaims []record.Hash `json:"unreadable_claims"`
	// Incomplete is as in Record.
	Incomplete string `json:"-"`
}

// Value is one of the values that claims support.
type Value struct {
	Object     record.Object `json:"object"`
	Support    float64       `json:"support"`
	Share      float64       `json:"share"`   // of all positive support
	Signers    int           `json:"signers"` // distinct agents
	ClaimCount int           `json:"claim_count"`
	Claims     []Supporter   `json:"claims"` // the newest
}

// Supporter is one claim that supports a value.
type Supporter struct {
	Hash               record.Hash        `json:"hash"`
	Timestamp          uint64             `json:"timestamp"`
	Confidence         float64            `json:"confidence"`
	SourceClass        record.SourceClass `json:"source_class"`
	EffectiveLifecycle record.Lifecycle   `json:"effective_lifecycle"`
	Agents             []record.AgentID   `json:"agents"`
	Votes              VoteCount          `json:"votes"`
	Partial            bool               `json:"partial"` // as in Claim
}

// Skeptic shows disagreement instead of an answer. q must name a predicate and
// must not have a cursor.
func (c *Client) Skeptic(ctx context.Context, q Query) (*Dispute, error) {
	var out Dispute
	if err := c.get(ctx, "/v1/skeptic", q.values(), &out, &out.Incomplete); err != nil {
		return nil, err
	}
	return &out, nil
}
