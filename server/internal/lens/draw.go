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
func Get(name string) (Lens, bool) {
	switch name {
	case NameRecency:
		return Recency, true
	case NameConsensus:
		return Consensus, true
	case NameConfidence:
		return Confidence, true
	case NameAuthority:
		return Authority, true
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

// Apply filters claims.
func (f Filter) Apply(claims Claims) Claims {
	return func(yield func(*Claim) bool) {
		for c := range claims {
			if f.Match(c) && !yield(c) {
				return
			}
		}
	}
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
func Recency(claims Claims, _ Params) (Answer, error) {
	a := Answer{Why: Why{Rule: "the latest timestamp wins, then the greatest id", Because: noClaims}}
	for c := range claims {
		if a.Winner == nil {
			a.Winner = c
			a.Why.Score = float64(c.Timestamp)
			a.Why.Because = fmt.Sprintf("signed for %d, the latest", c.Timestamp)
			continue
		}
		a.Why.RunnerUp = &RunnerUp{ID: c.ID, Score: float64(c.Timestamp)}
		if c.Timestamp == a.Winner.Timestamp {
			a.Why.TieBreak = byID
		}
		break
	}
	return a, nil
}

// Confidence: the claim with the highest confidence.
func Confidence(claims Claims, _ Params) (Answer, error) {
	why := Why{Rule: "the highest confidence wins, then the latest timestamp, then the greatest id"}
	return best(claims, why, func(c *Claim) rank { return rank{score: c.Confidence} },
		func(c *Claim, _ rank) string { return fmt.Sprintf("confidence %v", c.Confidence) })
}

// Authority: the highest source class first; within it the highest confidence,
// decayed by age.
func Authority(claims Claims, p Params) (Answer, error) {
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
func best(claims Claims, why Why, rankOf func(*Claim) rank, because func(*Claim, rank) string) (Answer, error) {
	var winner, second *Claim
	var first, next rank
	for c := range claims {
		switch r := rankOf(c); {
		case winner == nil || r.before(first):
			second, next = winner, first
			winner, first = c, r
		case second == nil || r.before(next):
			second, next = c, r
		}
	}
	a := Answer{Winner: winner, Why: why}
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
