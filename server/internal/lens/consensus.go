package lens

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"slices"

	"github.com/stemedb/stemedb/record"
)

// Consensus: the value with the most support. Each agent counts once for a
// value, with its newest statement about it: 1 for signing a claim of this
// value, or the weight of its vote on one. The newest claim represents its
// value.
func Consensus[S Source](claims Claims[S], p Params) (Answer[S], error) {
	n := newCount[S](&p, 0)
	for c := range claims {
		if err := n.add(c); err != nil {
			return Answer[S]{}, err
		}
	}
	return elect(n), nil
}

// elect draws the answer from the counted claims.
func elect[S Source](n *count[S]) Answer[S] {
	tallies := n.tallies()
	a := Answer[S]{Why: Why{
		Rule:          "the value with the most support wins (each agent counts once: 1 for a signature, its weight for a vote), then the one claimed latest, then the greatest id",
		PartialClaims: n.partial,
	}}
	switch {
	case len(tallies) == 0:
		a.Why.Because = noClaims
		return a
	case tallies[0].support <= 0:
		a.Why.Because = "no value has support left after the votes against it"
		return a
	}
	first := tallies[0]
	a.Winner = first.newest
	a.Why.Score = first.score()
	a.Why.Because = fmt.Sprintf("support %v from %d agents in %d claims, of %d values", first.score(), len(first.said), first.claims, len(tallies))
	if len(tallies) > 1 {
		second := tallies[1]
		a.Why.RunnerUp = &RunnerUp{ID: second.newest.Base().ID, Score: second.score()}
		if first.support == second.support {
			a.Why.TieBreak = tieBreak(first.newest.Base(), second.newest.Base())
		}
	}
	return a
}

// Layer is the answer of one source class.
type Layer[S Source] struct {
	Class  record.SourceClass
	Answer Answer[S]
}

// Layered draws the consensus of each source class that has claims, highest
// authority first.
func Layered[S Source](claims Claims[S], p Params) ([]Layer[S], error) {
	byClass := make(map[record.SourceClass]*count[S])
	for c := range claims {
		class := c.Base().Class
		n := byClass[class]
		if n == nil {
			n = newCount[S](&p, 0)
			byClass[class] = n
		}
		if err := n.add(c); err != nil {
			return nil, err
		}
	}
	var layers []Layer[S]
	for _, class := range record.SourceClasses() {
		if n := byClass[class]; n != nil {
			layers = append(layers, Layer[S]{class, elect(n)})
		}
	}
	return layers, nil
}

// Dispute is the answer of the skeptic lens: no winner, but the supporters of
// each value.
type Dispute[S Source] struct {
	// Score is 0 (all support is for one value) to 1 (it is spread evenly).
	Score  float64
	Status Status
	Values []ValueSupport[S] // strongest first
	Why    string
	// PartialClaims is as in Why.
	PartialClaims []record.Hash
}

// Status of a dispute.
type Status string

// Statuses; "" without any claim.
const (
	// Unanimous: at most one value has support.
	Unanimous Status = "unanimous"
	// Majority: one value has more than half of all support.
	Majority Status = "majority"
	// Contested: no value has more than half of all support.
	Contested Status = "contested"
)

// ValueSupport is one value with its supporters.
type ValueSupport[S Source] struct {
	Value   ValueHash
	Support float64 // as in Consensus; may be negative
	Share   float64 // of all positive support, 0..1
	Signers int     // distinct
	Newest  S       // represents the value
	Claims  []S
	// Count is the number of claims, of which Claims holds the newest.
	Count int
}

// MaxClaims is how many claims of a value a Dispute holds.
const MaxClaims = 100

// Skeptic shows disagreement: score = H/log2(k), H being the entropy of the
// shares of the k values with positive support.
func Skeptic[S Source](claims Claims[S], p Params) (Dispute[S], error) {
	n := newCount[S](&p, MaxClaims)
	for c := range claims {
		if err := n.add(c); err != nil {
			return Dispute[S]{}, err
		}
	}
	d := weigh(n.tallies())
	d.PartialClaims = n.partial
	return d, nil
}

// weigh computes how the support is spread over tallies, strongest first.
func weigh[S Source](tallies []*tally[S]) Dispute[S] {
	var total int64
	positive := 0
	for _, t := range tallies {
		if t.support > 0 {
			total += t.support
			positive++
		}
	}
	d := Dispute[S]{Values: make([]ValueSupport[S], len(tallies))}
	entropy := 0.0
	for i, t := range tallies {
		v := ValueSupport[S]{Value: t.value, Support: t.score(), Signers: t.signers(), Newest: t.newest, Claims: t.kept, Count: t.claims}
		if t.support > 0 {
			v.Share = float64(t.support) / float64(total)
			entropy -= v.Share * math.Log2(v.Share)
		}
		d.Values[i] = v
	}
	if positive > 1 {
		d.Score = round9(entropy / math.Log2(float64(positive)))
	}
	switch {
	case len(tallies) == 0:
		d.Why = noClaims
	case positive <= 1:
		d.Status, d.Why = Unanimous, fmt.Sprintf("%d of %d values has support", positive, len(tallies))
	case 2*tallies[0].support > total:
		d.Status, d.Why = Majority, fmt.Sprintf("one of %d values has %.4g of the support", positive, d.Values[0].Share)
	default:
		d.Status, d.Why = Contested, fmt.Sprintf("none of %d values has more than half of the support; the strongest has %.4g", positive, d.Values[0].Share)
	}
	return d
}

// tally holds the statements about one value.
type tally[S Source] struct {
	value   ValueHash
	newest  S
	kept    []S
	claims  int
	said    map[record.AgentID]statement
	support int64 // in millionths: integers add up the same in any order
}

// statement is an agent's newest statement about a value.
type statement struct {
	time   uint64
	vote   record.Hash // zero for a signature
	voted  bool
	signed bool // ever, by a claim
	weight int64
}

const millionth = 1_000_000

func (t *tally[S]) score() float64 { return float64(t.support) / millionth }

func (t *tally[S]) signers() int {
	n := 0
	for _, s := range t.said {
		if s.signed {
			n++
		}
	}
	return n
}

// count holds the statements about one subject and predicate, by value.
type count[S Source] struct {
	params  *Params
	keep    int // how many claims of a value are kept besides its newest
	byValue map[ValueHash]*tally[S]
	partial []record.Hash // claims that were counted in part
}

// Memory used by a count, measured and rounded up; Params.Hold is asked for it.
// A kept claim may also be shown, which costs as much again.
const (
	valueBytes     = 1000 // a tally with its map
	statementBytes = 250  // an agent in the map, which doubles as it grows
	claimBytes     = 600
	agentBytes     = 128 // of a claim
	voteBytes      = 96  // of a claim
)

func newCount[S Source](p *Params, keep int) *count[S] {
	return &count[S]{params: p, keep: keep, byValue: make(map[ValueHash]*tally[S])}
}

// add counts a claim. Claims come newest first.
func (n *count[S]) add(source S) error {
	c, bytes := source.Base(), 0
	t := n.byValue[c.Value]
	if t == nil {
		t = &tally[S]{value: c.Value, newest: source, said: make(map[record.AgentID]statement)}
		n.byValue[c.Value] = t
		bytes += valueBytes
	}
	t.claims++
	if c.Partial {
		n.partial = append(n.partial, c.ID)
	}
	keep := len(t.kept) < n.keep
	if keep {
		t.kept = append(t.kept, source)
	}
	if keep || t.newest == source {
		bytes += claimBytes + agentBytes*len(c.Agents) + voteBytes*len(c.Votes)
	}
	known := len(t.said)
	for _, agent := range c.Agents {
		t.say(agent, statement{time: c.Timestamp, signed: true, weight: millionth})
	}
	for i := range c.Votes {
		v := &c.Votes[i]
		t.say(v.Agent, statement{time: v.Timestamp, vote: v.ID, voted: true, weight: int64(math.Round(v.Weight * millionth))})
	}
	if bytes += statementBytes * (len(t.said) - known); bytes == 0 {
		return nil
	}
	return n.params.hold(bytes)
}

// tallies returns the tallies of all values, strongest first.
func (n *count[S]) tallies() []*tally[S] {
	all := slices.Collect(maps.Values(n.byValue))
	for _, t := range all {
		for _, s := range t.said {
			t.support += s.weight
		}
	}
	slices.SortFunc(all, func(a, b *tally[S]) int {
		if c := cmp.Compare(b.support, a.support); c != 0 {
			return c
		}
		if a.newest.Base().Newer(b.newest.Base()) {
			return -1
		}
		return 1
	})
	return all
}

// say keeps the newest statement: later time; at one time a vote rather than a
// signature, and of two votes the one with the greater id.
func (t *tally[S]) say(agent record.AgentID, s statement) {
	old, known := t.said[agent]
	if known {
		signed := old.signed || s.signed
		if !s.newer(&old) {
			s = old
		}
		s.signed = signed
	}
	t.said[agent] = s
}

func (s *statement) newer(o *statement) bool {
	if s.time != o.time {
		return s.time > o.time
	}
	if s.voted != o.voted {
		return s.voted
	}
	return s.vote.Compare(o.vote) > 0
}
