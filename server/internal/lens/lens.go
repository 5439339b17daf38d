// Package lens holds the rules by which one answer is drawn from many claims.
//
// A lens is a pure function: it does no input or output, keeps no state, and
// gives the same answer for the same claims on every node. It explains why the
// winner won. Every tie is broken, in the end by the id, so that no answer
// depends on the order of arrival. The formulas are in docs/lenses.md; this
// package's tests check its worked numbers.
package lens

import (
	"iter"

	"github.com/stemedb/stemedb/record"
)

// ValueHash identifies an object: the first 16 bytes of a BLAKE3-256 of its
// type and value. Claims with equal ValueHashes have the same value.
type ValueHash [16]byte

// Claim is a lens's input: an assertion about one subject and predicate.
type Claim struct {
	ID         record.Hash
	Timestamp  uint64  // unix seconds
	Confidence float64 // 0..1
	Class      record.SourceClass
	// Lifecycle is the effective one: that of the newest descendant with the same
	// subject and predicate, or the claim's own when there is no descendant.
	Lifecycle record.Lifecycle
	// Own is the lifecycle in the signed claim itself.
	Own record.Lifecycle
	// ReplacedBy is the assertion that Lifecycle comes from, nil if Lifecycle is Own.
	ReplacedBy *record.Hash
	Parent     *record.Hash
	Value      ValueHash
	Agents     []record.AgentID // who signed; distinct, ascending
	Votes      []Vote           // the newest of each agent; by agent, ascending
	// Partial: more agents signed the claim, or voted on it, than Agents or Votes
	// holds. Only those with the smallest ids are listed and counted.
	Partial bool
}

// Base returns c. It is promoted by embedding, which makes a Source of every struct
// that embeds a Claim.
func (c *Claim) Base() *Claim { return c }

// Source is a claim in its caller's form: *Claim, or a pointer to a struct that embeds
// a Claim. A lens reads the Claim and returns the Source.
type Source interface {
	comparable
	Base() *Claim
}

// Vote is an agent's newest vote on a claim.
type Vote struct {
	Agent     record.AgentID
	Weight    float64 // -1..1
	Timestamp uint64
	ID        record.Hash
}

// Newer reports whether c comes before o in the order of all answers: later
// timestamp, then greater id.
func (c *Claim) Newer(o *Claim) bool {
	if c.Timestamp != o.Timestamp {
		return c.Timestamp > o.Timestamp
	}
	return c.ID.Compare(o.ID) > 0
}

// Claims are claims about one subject and predicate, newest first. A lens reads
// no further than it must, and may keep the claims that it read.
type Claims[S Source] = iter.Seq[S]

// Params are the inputs of an answer besides the claims.
type Params struct {
	// Now is the time that ages are counted from, unix seconds: the request's
	// as_of or the coordinator's clock.
	Now uint64
	// Hold, when set, is called whenever a lens is about to hold about that many
	// more bytes. Its error ends the lens, which returns it. A lens whose memory
	// does not grow with the number of claims does not call it.
	Hold func(bytes int) error
}

func (p *Params) hold(bytes int) error {
	if p.Hold == nil {
		return nil
	}
	return p.Hold(bytes)
}

// Lens draws one answer. The only error is that of Params.Hold.
type Lens[S Source] func(Claims[S], Params) (Answer[S], error)

// Answer is the result of a lens.
type Answer[S Source] struct {
	// Winner is nil when there is no claim, or none with support.
	Winner S
	Why    Why
}

// Why explains why the winner won.
type Why struct {
	// Rule is the lens's rule in one sentence.
	Rule string `json:"rule"`
	// Because is the outcome of the rule for these claims, in words.
	Because string `json:"because"`
	// Score is the winner's score; depending on the lens, it is a timestamp, a
	// support or a (decayed) confidence.
	Score float64 `json:"score"`
	// RunnerUp is the next claim, absent when there is none.
	RunnerUp *RunnerUp `json:"runner_up,omitempty"`
	// TieBreak names the field that decided between equal scores, "timestamp" or
	// "id"; absent when the score itself decided.
	TieBreak string `json:"tie_break,omitempty"`
	// PartialClaims are the claims of which not all agents and votes were
	// counted, newest first: the support of their values is not exact.
	PartialClaims []record.Hash `json:"partial_claims,omitempty"`
}

// RunnerUp is the claim that would have won without the winner (for consensus,
// the claim that represents the next value).
type RunnerUp struct {
	ID    record.Hash `json:"hash"`
	Score float64     `json:"score"`
}
