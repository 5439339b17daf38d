package lens

import (
	"fmt"
	"math"
	"slices"

	"github.com/stemedb/stemedb/record"
)

// Names of the lenses that draw one answer.
const (
	NameRecency    = "recency"
	NameConsensus  = "consensus"
	NameConfidence = "confidence"
	NameAuthority  = "authority"
)

// Names lists the lenses that Get knows.
func Names() []string {
	return []string{NameAuthority, NameConfidence, NameConsensus, NameRecency}
}

// Get returns a lens by its name.
func Get[S Source](name string) (Lens[S], bool) {
	switch name {
	case NameRecency:
		return Recency[S], true
	case NameConsensus:
		return Consensus[S], true
	case NameConfidence:
		return Confidence[S], true
	case NameAuthority:
		return Authority[S], true
	}
	return nil, false
}

// Filter leaves out claims; its zero value lets all pass.
type Filter struct {
	Lifecycles    []record.Lifecycle   // any of these (the effective one); empty: all
	Classes       []record.SourceClass // any of these; empty: all
	MinConfidence float64
}

// Match reports whether the claim passes.
func (f *Filter) Match(c *Claim) bool {
	return c.Confidence >= f.MinConfidence &&
		(len(f.Lifecycles) == 0 || slices.Contains(f.Lifecycles, c.Lifecycle)) &&
		(len(f.Classes) == 0 || slices.Contains(f.Classes, c.Class))
}

// Tie-breaks.
const (
	byTimestamp = "timestamp"
	byID        = "id"
)

// tieBreak names the field that put w before r when their scores are equal.
func tieBreak(w, r *Claim) string {
	if w.Timestamp != r.Timestamp {
		return byTimestamp
	}
	return byID
}

const noClaims = "there is no claim"

// Recency: the newest claim. It reads two claims at most.
func Recency[S Source](claims Claims[S], _ Params) (Answer[S], error) {
	a := Answer[S]{Why: Why{Rule: "the latest timestamp wins, then the greatest id", Because: noClaims}}
	var winner *Claim
	for s := range claims {
		c := s.Base()
		if winner == nil {
			a.Winner, winner = s, c
			a.Why.Score = float64(c.Timestamp)
			a.Why.Because = fmt.Sprintf("signed for %d, the latest", c.Timestamp)
			continue
		}
		a.Why.RunnerUp = &RunnerUp{ID: c.ID, Score: float64(c.Timestamp)}
		if c.Timestamp == winner.Timestamp {
			a.Why.TieBreak = byID
		}
		break
	}
	return a, nil
}

// Confidence: the claim with the highest confidence.
func Confidence[S Source](claims Claims[S], _ Params) (Answer[S], error) {
	why := Why{Rule: "the highest confidence wins, then the latest timestamp, then the greatest id"}
	return best(claims, why, func(c *Claim) rank { return rank{score: c.Confidence} },
		func(c *Claim, _ rank) string { return fmt.Sprintf("confidence %v", c.Confidence) })
}

// Authority: the highest source class first; within it the highest confidence,
// decayed by age.
func Authority[S Source](claims Claims[S], p Params) (Answer[S], error) {
	why := Why{Rule: "the highest source class wins, then the highest decayed confidence, then the latest timestamp, then the greatest id"}
	return best(claims, why,
		func(c *Claim) rank { return rank{tier: c.Class.Tier(), score: Decayed(c, p.Now)} },
		func(c *Claim, r rank) string {
			return fmt.Sprintf("%s (tier %d), confidence %v decayed to %.6g", c.Class, r.tier, c.Confidence, r.score)
		})
}

// rank orders claims: lower tier first, then higher score.
type rank struct {
	tier  int
	score float64
}

func (r rank) before(o rank) bool {
	if r.tier != o.tier {
		return r.tier < o.tier
	}
	return r.score > o.score
}

// best finds the claim that ranks first. Claims come newest first, so of equal
// ranks the first one found stays. It holds two claims, however many there are.
func best[S Source](claims Claims[S], why Why, rankOf func(*Claim) rank, because func(*Claim, rank) string) (Answer[S], error) {
	a := Answer[S]{Why: why}
	var winner, second *Claim
	var first, next rank
	for s := range claims {
		c := s.Base()
		switch r := rankOf(c); {
		case winner == nil || r.before(first):
			second, next = winner, first
			winner, first = c, r
			a.Winner = s
		case second == nil || r.before(next):
			second, next = c, r
		}
	}
	if winner == nil {
		a.Why.Because = noClaims
		return a, nil
	}
	a.Why.Score = first.score
	a.Why.Because = because(winner, first)
	if second != nil {
		a.Why.RunnerUp = &RunnerUp{ID: second.ID, Score: next.score}
		if first == next {
			a.Why.TieBreak = tieBreak(winner, second)
		}
	}
	return a, nil
}

// HalfLife is the time in days after which a claim of the class has lost half
// of its confidence; 0 means that it never decays.
func HalfLife(class record.SourceClass) float64 {
	switch class {
	case record.Clinical:
		return 730
	case record.Observational, record.Expert:
		return 365
	case record.Community:
		return 90
	case record.Anecdotal:
		return 30
	}
	return 0
}

// Decayed is confidence · 0.5^(age/half-life), rounded to nine decimals so that
// processors that differ in the last bit give the same answer. A claim from the
// future has age 0.
func Decayed(c *Claim, now uint64) float64 {
	half := HalfLife(c.Class)
	if half == 0 || c.Timestamp >= now {
		return round9(c.Confidence)
	}
	age := float64(now-c.Timestamp) / (24 * 60 * 60)
	return round9(c.Confidence * math.Exp2(-age/half))
}

func round9(f float64) float64 { return math.Round(f*1e9) / 1e9 }
