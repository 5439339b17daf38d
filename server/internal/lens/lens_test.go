package lens

import (
	"iter"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/stemedb/stemedb/record"
)

func TestNoClaims(t *testing.T) {
	var none Claims[*Claim] = func(func(*Claim) bool) {}
	for _, name := range Names() {
		l, ok := Get[*Claim](name)
		require.True(t, ok)
		a, err := l(none, Params{})
		require.NoError(t, err)
		require.Nil(t, a.Winner, name)
		require.Equal(t, noClaims, a.Why.Because, name)
	}
	d, err := Skeptic(none, Params{})
	require.NoError(t, err)
	require.Equal(t, Dispute[*Claim]{Values: []ValueSupport[*Claim]{}, Why: noClaims}, d)
	layers, err := Layered(none, Params{})
	require.NoError(t, err)
	require.Empty(t, layers)
	_, ok := Get[*Claim]("vibes")
	require.False(t, ok)
}

// passing are the claims that pass a filter.
func passing(f Filter, claims []*Claim) Claims[*Claim] {
	return func(yield func(*Claim) bool) {
		for _, c := range claims {
			if f.Match(c) && !yield(c) {
				return
			}
		}
	}
}

// A lens returns its caller's form of the claim.
func TestALensReturnsTheSourceThatItRead(t *testing.T) {
	type stored struct {
		Claim
		place int
	}
	claims := []*stored{{Claim{Timestamp: 2, Confidence: 0.5}, 7}, {Claim{Timestamp: 1, Confidence: 0.9}, 8}}
	for name, place := range map[string]int{NameRecency: 7, NameConfidence: 8} {
		l, ok := Get[*stored](name)
		require.True(t, ok)
		a, err := l(slices.Values(claims), Params{})
		require.NoError(t, err)
		require.Equal(t, place, a.Winner.place, name)
	}
}

func randomClaims(r *rand.Rand, n int) []*Claim {
	claims := make([]*Claim, n)
	for i := range claims {
		c := &Claim{
			Timestamp:  uint64(r.IntN(5)) * day,
			Confidence: float64(r.IntN(4)) / 4,
			Class:      record.SourceClass(1 + r.IntN(6)),
			Lifecycle:  record.Lifecycle(r.IntN(5)),
			Value:      ValueHash{byte(r.IntN(4))},
		}
		c.ID[0], c.ID[1] = byte(r.IntN(256)), byte(i)
		for a := range byte(5) {
			if r.IntN(3) == 0 {
				c.Agents = append(c.Agents, record.AgentID{a})
			}
			if r.IntN(4) == 0 {
				c.Votes = append(c.Votes, Vote{Agent: record.AgentID{a}, Weight: float64(r.IntN(21)-10) / 10, Timestamp: uint64(r.IntN(6)) * day, ID: record.Hash{byte(r.IntN(256)), byte(i), a}})
			}
		}
		claims[i] = c
	}
	slices.SortFunc(claims, func(a, b *Claim) int {
		if a.Newer(b) {
			return -1
		}
		return 1
	})
	return claims
}

// slow is a second implementation of each lens: sort everything, take the
// first.
func slow(name string, claims []*Claim, p Params) *Claim {
	if len(claims) == 0 {
		return nil
	}
	if name == NameConsensus {
		return slowConsensus(claims)
	}
	before := map[string]func(a, b *Claim) bool{
		NameRecency:    func(a, b *Claim) bool { return false },
		NameConfidence: func(a, b *Claim) bool { return a.Confidence > b.Confidence },
		NameAuthority: func(a, b *Claim) bool {
			if a.Class != b.Class {
				return a.Class < b.Class
			}
			return Decayed(a, p.Now) > Decayed(b, p.Now)
		},
	}[name]
	sorted := slices.Clone(claims)
	slices.SortStableFunc(sorted, func(a, b *Claim) int {
		switch {
		case before(a, b):
			return -1
		case before(b, a):
			return 1
		case a.Newer(b):
			return -1
		}
		return 1
	})
	return sorted[0]
}

func slowConsensus(claims []*Claim) *Claim {
	type said struct {
		time   uint64
		voted  bool
		id     record.Hash
		weight float64
	}
	var winner *Claim
	most := 0.0
	for _, claim := range claims {
		if slices.ContainsFunc(claims, func(c *Claim) bool { return c.Value == claim.Value && c.Newer(claim) }) {
			continue
		}
		support := 0.0
		for a := range byte(5) {
			var all []said
			for _, c := range claims {
				if c.Value != claim.Value {
					continue
				}
				if slices.Contains(c.Agents, record.AgentID{a}) {
					all = append(all, said{time: c.Timestamp, weight: 1})
				}
				for _, v := range c.Votes {
					if v.Agent == (record.AgentID{a}) {
						all = append(all, said{v.Timestamp, true, v.ID, v.Weight})
					}
				}
			}
			slices.SortFunc(all, func(x, y said) int {
				if x.time != y.time {
					return int(int64(x.time) - int64(y.time))
				}
				if x.voted != y.voted {
					if y.voted {
						return -1
					}
					return 1
				}
				return x.id.Compare(y.id)
			})
			if len(all) > 0 {
				support += all[len(all)-1].weight
			}
		}
		support = round9(support)
		if support > most || support == most && winner != nil && claim.Newer(winner) {
			most, winner = support, claim
		}
	}
	return winner
}

func TestAgainstSlowWay(t *testing.T) {
	for seed := range uint64(2000) {
		r := rand.New(rand.NewPCG(seed, 1))
		claims := randomClaims(r, r.IntN(12))
		p := Params{Now: uint64(r.IntN(400)) * day}
		for _, name := range Names() {
			l, _ := Get[*Claim](name)
			a, err := l(slices.Values(claims), p)
			require.NoError(t, err)
			require.Same(t, slow(name, claims, p), a.Winner, "%s, seed %d", name, seed)
		}
	}
}

func TestSkepticShares(t *testing.T) {
	for seed := range uint64(500) {
		r := rand.New(rand.NewPCG(seed, 2))
		claims := randomClaims(r, r.IntN(12))
		d, err := Skeptic(slices.Values(claims), Params{})
		require.NoError(t, err)
		require.True(t, d.Score >= 0 && d.Score <= 1, "seed %d: %v", seed, d.Score)
		shares, count := 0.0, 0
		for i, v := range d.Values {
			shares += v.Share
			count += v.Count
			require.Len(t, v.Claims, v.Count)
			require.True(t, i == 0 || d.Values[i-1].Support >= v.Support)
		}
		require.Equal(t, len(claims), count)
		if shares != 0 {
			require.InDelta(t, 1, shares, 1e-9)
		}
		a, err := Consensus(slices.Values(claims), Params{})
		require.NoError(t, err)
		if a.Winner != nil {
			require.Same(t, a.Winner, d.Values[0].Newest, "skeptic's first value is the answer of consensus")
		}
	}
}

func TestRecencyReadsTwoClaims(t *testing.T) {
	claims := randomClaims(rand.New(rand.NewPCG(1, 1)), 50)
	read := 0
	var counted iter.Seq[*Claim] = func(yield func(*Claim) bool) {
		for _, c := range claims {
			read++
			if !yield(c) {
				return
			}
		}
	}
	a, err := Recency(counted, Params{})
	require.NoError(t, err)
	require.Same(t, claims[0], a.Winner)
	require.Equal(t, 2, read)
}

func TestLayeredIsConsensusOfEachClass(t *testing.T) {
	claims := randomClaims(rand.New(rand.NewPCG(3, 3)), 60)
	layers, err := Layered(slices.Values(claims), Params{})
	require.NoError(t, err)
	require.Len(t, layers, 6)
	for i, l := range layers {
		require.Equal(t, i, l.Class.Tier())
		f := Filter{Classes: []record.SourceClass{l.Class}}
		alone, err := Consensus(passing(f, claims), Params{})
		require.NoError(t, err)
		require.Equal(t, alone, l.Answer)
	}
}

func TestFilter(t *testing.T) {
	claims := randomClaims(rand.New(rand.NewPCG(4, 4)), 200)
	f := Filter{Lifecycles: []record.Lifecycle{record.Approved, record.Proposed}, MinConfidence: 0.5}
	n := 0
	for c := range passing(f, claims) {
		n++
		require.True(t, c.Confidence >= 0.5 && (c.Lifecycle == record.Approved || c.Lifecycle == record.Proposed))
	}
	require.Positive(t, n)
	require.Less(t, n, len(claims))
	require.Len(t, slices.Collect(passing(Filter{}, claims)), len(claims))
}

// Lenses that count support name the claims that they counted in part.
func TestPartialClaimsAreNamed(t *testing.T) {
	claims := randomClaims(rand.New(rand.NewPCG(5, 5)), 20)
	want := map[record.SourceClass][]record.Hash{}
	var all []record.Hash
	for i, c := range claims {
		if c.Partial = i%4 == 0; c.Partial {
			all = append(all, c.ID)
			want[c.Class] = append(want[c.Class], c.ID)
		}
	}
	for _, name := range Names() {
		l, _ := Get[*Claim](name)
		a, err := l(slices.Values(claims), Params{})
		require.NoError(t, err)
		if name == NameConsensus {
			require.Equal(t, all, a.Why.PartialClaims)
		} else {
			require.Empty(t, a.Why.PartialClaims, "%s counts no agent", name)
		}
	}
	d, err := Skeptic(slices.Values(claims), Params{})
	require.NoError(t, err)
	require.Equal(t, all, d.PartialClaims)
	layers, err := Layered(slices.Values(claims), Params{})
	require.NoError(t, err)
	for _, l := range layers {
		require.Equal(t, want[l.Class], l.Answer.Why.PartialClaims)
	}
}
