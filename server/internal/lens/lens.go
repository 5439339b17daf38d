// Package lens holds the rules by which one answer is drawn from many claims.
//
// A lens is a pure function: it does no input or output, keeps nothing, and of
// the same claims it gives the same answer on every node. It says why the
// winner won. Every tie is broken, at last by the id, so that no answer depends
// on the order of arrival. The formulas stand in docs/lenses.md, whose worked
// numbers are tests of this package.
package lens

import (
	"iter"

	"github.com/stemedb/stemedb/server/record"
)

// ValueHash stands for an object: the first 16 bytes of a BLAKE3-256 of its
// type and value. Claims with one ValueHash say the same.
type ValueHash [16]byte

// Claim is what a lens looks at: an assertion about one subject and predicate.
type Claim struct {
	ID         record.Hash
	Timestamp  uint64  // unix seconds
	Confidence float64 // 0..1
	Class      record.SourceClass
	// Lifecycle is the effective one: that of the newest descendant with the
	// same subject and predicate, the claim's own when there is none.
	Lifecycle record.Lifecycle
	// Own is the lifecycle that the claim itself was signed with.
	Own record.Lifecycle
	// ReplacedBy is the assertion that Lifecycle comes from, nil when its own.
	ReplacedBy *record.Hash
	Parent     *record.Hash
	Value      ValueHash
	Agents     []record.AgentID // who signed; distinct, ascending
	Votes      []Vote           // the newest of each agent; by agent, ascending
	// Partial: more agents signed the claim, or voted on it, than Agents, or
	// Votes, holds. Those with the smallest ids are there, and only they count.
	Partial bool
	// Origin is what the claim was made from. It is the caller's; no lens looks
	// at it.
	Origin any
}

// Vote is an agent's newest vote on a claim.
type Vote struct {
	Agent     record.AgentID
	Weight    float64 // -1..1
	Timestamp uint64
	ID        record.Hash
}

// Newer tells whether c comes before o in the order of all answers: later
// timestamp, then greater id.
func (c *Claim) Newer(o *Claim) bool {
	if c.Timestamp != o.Timestamp {
		return c.Timestamp > o.Timestamp
	}
	return c.ID.Compare(o.ID) > 0
}

// Claims are claims about one subject and predicate, newest first. A lens
// reads no further than it must, and may keep what it was given.
type Claims = iter.Seq[*Claim]

// Params are what an answer may depend on besides the claims.
type Params struct {
	// Now is the time that ages are counted from, unix seconds: the request's
	// as_of or the coordinator's clock.
	Now uint64
	// Hold, when set, is asked whenever a lens comes to hold about so many bytes
	// more. Its error ends the lens, which returns it. A lens that holds no more
	// the more claims there are does not ask.
	Hold func(bytes int) error
}

func (p *Params) hold(bytes int) error {
	if p.Hold == nil {
		return nil
	}
	return p.Hold(bytes)
}

// Lens draws one answer. The only error is that of Params.Hold.
type Lens func(Claims, Params) (Answer, error)

// Answer is what a lens found.
type Answer struct {
	// Winner is nil when there is no claim, or none with support.
	Winner *Claim
	Why    Why
}

// Why says why the winner won.
type Why struct {
	// Rule is the lens's rule in one sentence.
	Rule string `json:"rule"`
	// Because is what it came to here, for people.
	Because string `json:"because"`
	// Score is what the winner won with: a timestamp, a support, a (decayed)
	// confidence, by lens.
	Score float64 `json:"score"`
	// RunnerUp is the next one, absent when there was none.
	RunnerUp *RunnerUp `json:"runner_up,omitempty"`
	// TieBreak names what decided between equal scores: "timestamp" or "id";
	// absent when the score itself did.
	TieBreak string `json:"tie_break,omitempty"`
	// PartialClaims are the claims of which not all agents and votes were
	// counted, newest first: the support of their values is not exact.
	PartialClaims []record.Hash `json:"partial_claims,omitempty"`
}

// RunnerUp is the claim that would have won without the winner (for consensus:
// that stands for the next value).
type RunnerUp struct {
	ID    record.Hash `json:"hash"`
	Score float64     `json:"score"`
}
