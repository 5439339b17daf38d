package store

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/stemedb/stemedb/record"
	"github.com/stemedb/stemedb/server/internal/vfs/memfs"
)

// keysOf collects the keys of a set.
func keysOf(s *Store, set Set) ([]Key, error) {
	var keys []Key
	for k, err := range s.SetKeys(context.Background(), set) {
		if err != nil {
			return nil, err
		}
		keys = append(keys, k.Key)
	}
	return keys, nil
}

// TestSetsAreListedInOneOrder: for any part of a set that a node holds, and
// whether or not its index is behind, places ascend, identify their keys, and
// are the same on every node, so that two lists can be merged.
func TestSetsAreListedInOneOrder(t *testing.T) {
	for seed := range uint64(8) {
		g := newSource(seed)
		var items []Item
		for range 60 {
			items = append(items, g.batch()...)
		}
		places := map[string]map[Key]string{}
		for node := range uint64(3) {
			s := mustOpen(t, smallOptions(memfs.New(node)))
			r := rand.New(rand.NewPCG(seed, node))
			resume := func() {}
			if node == 2 {
				resume = stallApplier(t, s)
			}
			for _, i := range r.Perm(len(items)) {
				if node == 0 || r.IntN(3) > 0 {
					mustPut(t, s, items[i])
				}
			}
			for _, set := range setsOf(g) {
				name := fmt.Sprint(set.Project, set.ID, set.Subject, set.Predicate)
				if places[name] == nil {
					places[name] = map[Key]string{}
				}
				var last []byte
				var sum Digest
				for k, err := range s.SetKeys(t.Context(), set) {
					require.NoError(t, err)
					require.Negative(t, bytes.Compare(last, k.Place), "%s: %x after %x", name, k.Place, last)
					last = bytes.Clone(k.Place)
					read, err := set.KeyAt(last)
					require.NoError(t, err)
					require.Equal(t, k.Key, read)
					if place, known := places[name][k.Key]; known {
						require.Equal(t, place, string(last), "%s: the place of %v", name, k.Key)
					}
					places[name][k.Key] = string(last)
					sum.Add(s.newDigester().of(&k.Key))
				}
				digest, err := s.SetDigest(t.Context(), set)
				require.NoError(t, err)
				require.Equal(t, sum, digest)
			}
			resume()
			require.NoError(t, s.Close())
		}
	}
}

// setsOf returns all sets for which the source has made items.
func setsOf(g *source) (sets []Set) {
	for _, c := range g.made {
		sets = append(sets, Set{Project: c.project, ID: &c.id})
	}
	for _, project := range []string{"alpha", "beta-2", "shared"} {
		for n := range 6 {
			subject := fmt.Sprintf("code://go/mod%d/tls", n)
			sets = append(sets, Set{Project: project, Subject: subject}, Set{Project: project, Subject: subject, Predicate: "version"})
		}
	}
	return sets
}

// TestLineageIsInTheSet: the contents that determine an assertion's lifecycle
// are compared with it, even if all were signed in the same second.
func TestLineageIsInTheSet(t *testing.T) {
	for _, step := range []uint64{0, 1} {
		s := mustOpen(t, smallOptions(memfs.New(1)))
		var parent *record.Hash
		var ids []record.Hash
		for n := range uint64(20) {
			c := &record.Content{
				Subject: "s", Predicate: "p", Object: record.Number(float64(n)), SourceClass: record.Expert,
				Timestamp: 1 + n*step, ParentHash: parent,
			}
			id := c.ID()
			ids, parent = append(ids, id), &id
			mustPut(t, s, NewContent("alpha", id, c))
			other := *c // an older child, and one about something else
			other.Confidence, other.ParentHash = 0.5, parent
			other.Predicate = "q"
			mustPut(t, s, NewContent("alpha", other.ID(), &other))
		}
		for n := range ids {
			keys, err := keysOf(s, Set{Project: "alpha", ID: &ids[n]})
			require.NoError(t, err)
			var got []record.Hash
			for _, k := range keys {
				require.Equal(t, KindContent, k.Kind)
				got = append(got, k.ID)
			}
			require.ElementsMatch(t, ids[n:], got, "step %d, from %d", step, n)
		}
		require.NoError(t, s.Close())
	}
}

func TestPlacesThatAreNone(t *testing.T) {
	id := record.Hash{1}
	subject, assertion := Set{Project: "p", Subject: "s"}, Set{Project: "p", ID: &id}
	group := appendNewest([]byte("is\x00"), 7, id)
	for _, place := range [][]byte{
		nil, []byte("is"), []byte("is\x00"), group, append(slices.Clone(group), tagSignature), append(slices.Clone(group), tagChild),
		append(slices.Clone(group), 9), append(slices.Clone(group), tagContent, 0), append(append(slices.Clone(group), tagVote), make([]byte, 40)...),
	} {
		_, err := subject.KeyAt(place)
		require.ErrorIs(t, err, errIndexEntry, "%q", place)
	}
	for _, place := range [][]byte{nil, {tagContent, 0}, {tagSignature}, {tagChild}, {9}, append([]byte{tagVote}, make([]byte, 40)...)} {
		_, err := assertion.KeyAt(place)
		require.ErrorIs(t, err, errIndexEntry, "%q", place)
	}
}

// endingContext ends after a number of checks.
type endingContext struct {
	context.Context
	asked, limit int
}

func (c *endingContext) Err() error {
	if c.asked++; c.asked > c.limit {
		return context.DeadlineExceeded
	}
	return nil
}

// hot puts a subject with a number of claims, each with one signature.
func hot(t testing.TB, s *Store, claims int) {
	t.Helper()
	for from := 0; from < claims; from += 100 {
		var items []Item
		for n := from; n < from+100; n++ {
			c := &record.Content{Subject: "hot", Predicate: "p", Object: record.Number(float64(n)), SourceClass: record.Expert, Timestamp: uint64(n)}
			items = append(items, NewContent("alpha", c.ID(), c), NewSignature("alpha", c.ID(), record.Signature{Agent: agentOf(n)}))
		}
		mustPut(t, s, items...)
	}
}

// TestWorkOnAHotSubjectEndsWithItsContext counts how far the work proceeds.
func TestWorkOnAHotSubjectEndsWithItsContext(t *testing.T) {
	o := smallOptions(memfs.New(1))
	o.SegmentSize = 1 << 20
	s := mustOpen(t, o)
	defer s.Close()
	hot(t, s, 2000)
	drain(t, s)
	set := Set{Project: "alpha", Subject: "hot"}

	ctx := &endingContext{Context: t.Context(), limit: 2}
	_, err := s.SetDigest(ctx, set)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.Equal(t, 3, ctx.asked)

	ctx = &endingContext{Context: t.Context(), limit: 2}
	listed := 0
	for _, err = range s.SetKeys(ctx, set) {
		if err == nil {
			listed++
		}
	}
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.Equal(t, 3*stepsPerLook-1, listed)

	ctx = &endingContext{Context: t.Context(), limit: 2}
	claims := 0
	for _, err = range s.Claims(ctx, ClaimQuery{Project: "alpha", Subject: "hot"}, 0) {
		if err == nil {
			claims++
		}
	}
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.Equal(t, 3*stepsPerLook/2-1, claims)
}

// TestLongLineageEndsWithItsContext: the path to the newest successor is long,
// and there is no other work.
func TestLongLineageEndsWithItsContext(t *testing.T) {
	s := mustOpen(t, smallOptions(memfs.New(1)))
	defer s.Close()
	var first, parent *record.Hash
	for n := range uint64(1000) {
		c := &record.Content{Subject: "s", Predicate: "p", Object: record.Number(1), SourceClass: record.Expert, Timestamp: n, ParentHash: parent}
		id := c.ID()
		parent = &id
		if n == 0 {
			first = &id
		}
		mustPut(t, s, NewContent("alpha", id, c))
	}
	ctx := &endingContext{Context: t.Context(), limit: 1}
	_, err := s.SetDigest(ctx, Set{Project: "alpha", ID: first})
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.Equal(t, 2, ctx.asked)

	// Only the oldest claim is queried.
	ctx = &endingContext{Context: t.Context(), limit: 1}
	q := ClaimQuery{Project: "alpha", Subject: "s", After: &ClaimCursor{Predicate: "p", Timestamp: 1}}
	for _, err = range s.Claims(ctx, q, 0) {
	}
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.Equal(t, 2, ctx.asked)
}

// TestMemoOfALongLineage: the memo stays small, and the chain is walked about once.
func TestMemoOfALongLineage(t *testing.T) {
	s := mustOpen(t, smallOptions(memfs.New(1)))
	defer s.Close()
	const length = 200
	var parent *record.Hash
	var ids []record.Hash
	for n := range uint64(length) {
		c := &record.Content{Subject: "s", Predicate: "p", Object: record.Number(1), SourceClass: record.Expert, Timestamp: n, ParentHash: parent}
		id := c.ID()
		ids, parent = append(ids, id), &id
		mustPut(t, s, NewContent("alpha", id, c))
	}
	v, err := s.view()
	require.NoError(t, err)
	defer v.Close()
	d := descent{v: v, memo: map[record.Hash]lineage{}, size: 16}
	for n := length - 2; n >= 0; n-- {
		l, err := d.lineage(owner{ids[n], "alpha"}, uint64(n), groupOf("s", "p"), 0)
		require.NoError(t, err)
		require.Equal(t, ids[length-1], *l.by, "of %d", n)
		require.LessOrEqual(t, len(d.memo), 16)
	}
	require.LessOrEqual(t, d.pace.done, length)

	// From the far end the chain is walked once more, and the memo does not grow.
	fresh := descent{v: v, memo: map[record.Hash]lineage{}, size: 16}
	l, err := fresh.lineage(owner{ids[0], "alpha"}, 0, groupOf("s", "p"), 50)
	require.NoError(t, err)
	require.Equal(t, ids[50], *l.by)
	require.LessOrEqual(t, len(fresh.memo), 16)
}

// TestPartialClaims: a claim with too many agents or votes holds those with the
// smallest ids, in whatever order they arrived, and is marked; the claims
// around it are unaffected.
func TestPartialClaims(t *testing.T) {
	hot := &record.Content{Subject: "s", Predicate: "p", Object: record.Number(1), SourceClass: record.Expert, Timestamp: 2}
	newer, older := *hot, *hot
	newer.Timestamp, older.Timestamp = 3, 1
	id := hot.ID()
	vote := func(n int, at uint64) Item {
		return NewVote("alpha", &record.Vote{Assertion: id, Agent: agentOf(n), Weight: 1, Timestamp: at})
	}
	for _, order := range [][]int{{0, 1, 2, 3, 4}, {4, 2, 0, 3, 1}} {
		s := mustOpen(t, smallOptions(memfs.New(1)))
		defer s.Close()
		mustPut(t, s, NewContent("alpha", newer.ID(), &newer), NewContent("alpha", id, hot), NewContent("alpha", older.ID(), &older))
		for _, n := range order {
			mustPut(t, s, NewSignature("alpha", id, record.Signature{Agent: agentOf(n)}))
			for at := range uint64(3) {
				mustPut(t, s, vote(n, at))
			}
		}
		for _, row := range []struct {
			voices, held int
			asOf         uint64
		}{{0, 5, 0}, {5, 5, 0}, {4, 4, 0}, {1, 1, 0}, {2, 2, 2}} {
			seen, wanted := []uint64(nil), []uint64{3, 2, 1}
			if row.asOf != 0 {
				wanted = wanted[1:]
			}
			for c, err := range s.Claims(t.Context(), ClaimQuery{Project: "alpha", Subject: "s", AsOf: row.asOf}, row.voices) {
				require.NoError(t, err)
				seen = append(seen, c.Timestamp)
				if c.ID != id {
					require.False(t, c.Partial)
					require.Empty(t, c.Agents)
					continue
				}
				require.Equal(t, row.held < 5, c.Partial)
				require.Len(t, c.Agents, row.held)
				require.Len(t, c.Votes, row.held)
				for n, agent := range slices.SortedFunc(slices.Values([]record.AgentID{agentOf(0), agentOf(1), agentOf(2), agentOf(3), agentOf(4)}), record.AgentID.Compare)[:row.held] {
					require.Equal(t, agent, c.Agents[n])
					require.Equal(t, agent, c.Votes[n].Agent)
					require.EqualValues(t, 2, c.Votes[n].Timestamp)
				}
			}
			require.Equal(t, wanted, seen)

			st, err := s.AssertionWithin("alpha", id, row.voices)
			require.NoError(t, err)
			require.Equal(t, row.held < 5, st.Partial)
			require.Len(t, st.Signatures, row.held)
			require.Len(t, st.Votes, row.held)
		}
		// A vote that as_of leaves out makes nothing partial.
		mustPut(t, s, vote(5, 9))
		for _, asOf := range []uint64{0, 8} {
			for c, err := range s.Claims(t.Context(), ClaimQuery{Project: "alpha", Subject: "s", AsOf: asOf}, 5) {
				require.NoError(t, err)
				require.Equal(t, c.ID == id && asOf == 0, c.Partial)
			}
		}
	}
}
