package store

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"github.com/stemedb/stemedb/record"
	"github.com/stemedb/stemedb/server/internal/vfs/memfs"
	"github.com/stemedb/stemedb/server/internal/wal"
)

func TestPutReadAndReopen(t *testing.T) {
	disk := memfs.New(1)
	s := mustOpen(t, smallOptions(disk))
	require.True(t, s.Empty())
	require.True(t, s.Whole())

	g := newSource(1)
	it, c := g.content()
	sig, vote := g.signature(c), g.vote(c)
	require.Equal(t, []bool{true, true, true}, mustPut(t, s, it, sig, vote))
	require.Equal(t, []bool{false, true, false}, mustPut(t, s, it, NewSignature(c.project, c.id, record.Signature{Agent: agentOf(77)}), vote))
	require.Equal(t, []bool{true, false}, mustPut(t, s, NewCursor("peer", 99), it))

	check := func() {
		held, err := s.Has([]Key{it.Key, sig.Key, vote.Key, CursorKey("peer"), {Kind: KindContent, Project: "other", ID: c.id}})
		require.NoError(t, err)
		require.Equal(t, []bool{true, true, true, true, false}, held)
		for _, want := range []Item{it, sig, vote} {
			got, err := s.Read(want.Key)
			require.NoError(t, err)
			require.Equal(t, want.Payload, got.Payload)
		}
		st, err := s.Assertion(c.project, c.id)
		require.NoError(t, err)
		require.Equal(t, c.c, st.Content)
		require.Len(t, st.Signatures, 2)
		require.Len(t, st.Votes, 1)
		require.Equal(t, *vote.Vote(), st.Votes[0])
		require.EqualValues(t, 99, s.Cursor("peer"))
		_, err = s.Assertion("other", c.id)
		require.ErrorIs(t, err, ErrNotFound)
		subjects, err := s.Subjects(c.project, "code://", "", 10)
		require.NoError(t, err)
		require.Equal(t, []string{c.c.Subject}, subjects)
	}
	check()
	drain(t, s)
	check()
	require.False(t, s.Empty())
	id := s.Identity()
	require.NoError(t, s.Close())
	require.NoError(t, s.Close())
	require.ErrorIs(t, putSync(s, it).Err, ErrClosed)
	require.Zero(t, disk.OpenFiles(), "files left open")

	s = mustOpen(t, smallOptions(disk))
	require.Equal(t, id.Incarnation, s.Identity().Incarnation)
	check()
	require.NoError(t, s.Close())
}

func TestScanKeysListsTheLogInOrder(t *testing.T) {
	s := mustOpen(t, smallOptions(memfs.New(1)))
	defer s.Close()
	g := newSource(2)
	var want []Key
	for range 200 {
		items := g.batch()
		for i, isNew := range mustPut(t, s, items...) {
			if isNew {
				want = append(want, items[i].Key)
			}
		}
	}
	mustPut(t, s, NewCursor("peer", 7))
	var got []Key
	for pos := wal.Position(0); pos < s.End(); {
		keys, next, gaps, err := s.ScanKeys(pos, 4<<10)
		require.NoError(t, err)
		require.Zero(t, gaps)
		require.Greater(t, next, pos)
		for _, k := range keys {
			got = append(got, k.Key)
			it, err := s.ReadAt(k.Position)
			require.NoError(t, err)
			require.Equal(t, k.Key, it.Key)
			require.Len(t, it.Payload, k.Bytes)
		}
		pos = next
	}
	require.Equal(t, want, got)
}

func TestKeyBytes(t *testing.T) {
	g := newSource(3)
	it, c := g.content()
	for _, k := range []Key{it.Key, g.signature(c).Key, g.vote(c).Key, CursorKey("0123456789abcdef"), {Kind: KindReset}} {
		b, err := k.AppendBinary(nil)
		require.NoError(t, err)
		got, rest, err := ParseKey(append(b, 1, 2))
		require.NoError(t, err)
		require.Equal(t, k, got)
		require.Equal(t, []byte{1, 2}, rest)
		for n := range b {
			_, _, err := ParseKey(b[:n])
			require.Error(t, err, "cut at %d", n)
		}
	}
	_, _, err := ParseKey([]byte{9, 0})
	require.Error(t, err)
}

func TestItemsPutTogetherByHand(t *testing.T) {
	s := mustOpen(t, smallOptions(memfs.New(1)))
	defer s.Close()
	g := newSource(4)
	it, c := g.content()
	vote := g.vote(c)
	mustPut(t, s, Item{Key: it.Key, Kind: it.Kind, Payload: it.Payload}, Item{Key: vote.Key, Kind: vote.Kind, Payload: vote.Payload})
	st, err := s.Assertion(c.project, c.id)
	require.NoError(t, err)
	require.Equal(t, c.c, st.Content)
	wrong := it.Key
	wrong.ID[0]++
	require.ErrorContains(t, putSync(s, Item{Key: wrong, Kind: it.Kind, Payload: it.Payload}).Err, "the key says")
	require.Error(t, putSync(s, Item{Key: Key{Kind: 9}, Kind: 9}).Err)
	require.Error(t, putSync(s, Item{Key: it.Key, Kind: it.Kind, Payload: []byte("x")}).Err)
}

// TestWhatComesBeforeItsContent: in whatever order the parts of an assertion
// arrive, and whether or not the index is behind, queries see the same.
func TestWhatComesBeforeItsContent(t *testing.T) {
	g := newSource(5)
	it, c := g.content()
	child := *c.c
	child.ParentHash, child.Lifecycle, child.Timestamp = &c.id, record.Deprecated, c.c.Timestamp
	grandchild := child
	childID := child.ID()
	grandchild.ParentHash, grandchild.Lifecycle = &childID, record.Approved
	parts := []Item{
		it, NewSignature(c.project, c.id, record.Signature{Agent: agentOf(1)}),
		NewVote(c.project, &record.Vote{Assertion: c.id, Agent: agentOf(2), Weight: 0.5, Timestamp: 9}),
		NewVote(c.project, &record.Vote{Assertion: c.id, Agent: agentOf(2), Weight: -1, Timestamp: 10}),
		NewContent(c.project, childID, &child), NewContent(c.project, grandchild.ID(), &grandchild),
	}
	for seed := range uint64(60) {
		order := slices.Clone(parts)
		r := newSource(seed).r
		r.Shuffle(len(order), func(i, j int) { order[i], order[j] = order[j], order[i] })
		disk := memfs.New(seed)
		s := mustOpen(t, smallOptions(disk))
		resume := func() {}
		if r.IntN(2) == 0 {
			resume = stallApplier(t, s)
		}
		for len(order) > 0 {
			n := 1 + r.IntN(len(order))
			mustPut(t, s, order[:n]...)
			order = order[n:]
			if r.IntN(3) == 0 {
				resume()
				drain(t, s)
			}
		}
		check := func() {
			t.Helper()
			var found *Claim
			n := 0
			for cl, err := range s.Claims(t.Context(), ClaimQuery{Project: c.project, Subject: c.c.Subject, Predicate: c.c.Predicate}, 0) {
				require.NoError(t, err)
				n++
				switch cl.ID {
				case c.id:
					found = cl
				case childID:
					require.Equal(t, record.Approved, cl.Lifecycle, "seed %d", seed)
				}
			}
			require.Equal(t, 3, n)
			require.Equal(t, []record.AgentID{agentOf(1)}, found.Agents, "seed %d", seed)
			require.Len(t, found.Votes, 1, "seed %d", seed)
			require.Equal(t, -1.0, found.Votes[0].Weight)
			require.Equal(t, record.Approved, found.Lifecycle, "seed %d", seed)
			require.Equal(t, grandchild.ID(), *found.ReplacedBy)
			require.Equal(t, c.c.Lifecycle, found.Own)
			d, err := s.SetDigest(t.Context(), Set{Project: c.project, Subject: c.c.Subject, Predicate: c.c.Predicate})
			require.NoError(t, err)
			require.EqualValues(t, 6, d.Count, "seed %d", seed)
			st, err := s.Assertion(c.project, c.id)
			require.NoError(t, err)
			require.Equal(t, record.Approved, st.Lifecycle)
		}
		check()
		resume()
		drain(t, s)
		check()
		require.Zero(t, s.orphans.Load())
		require.NoError(t, s.Close())
		s = mustOpen(t, smallOptions(disk))
		check()
		require.NoError(t, s.Close())
	}
}

func TestDamageIsNamedAndRepaired(t *testing.T) {
	disk := memfs.New(1)
	s := mustOpen(t, smallOptions(disk))
	g := newSource(6)
	it, c := g.content()
	mustPut(t, s, it, g.signature(c))
	pos := func() wal.Position {
		v, err := s.view()
		require.NoError(t, err)
		defer v.Close()
		p, err := v.find(&it.Key)
		require.NoError(t, err)
		return p
	}
	first := pos()
	name := fmt.Sprintf("wal/wal-%08d.seg", first.Segment())
	require.NoError(t, disk.FlipBit(name, int64(first.Offset())+40, 3))

	var d *DamageError
	_, err := s.Read(it.Key)
	require.ErrorAs(t, err, &d)
	require.Equal(t, it.Key, d.Key)
	_, err = s.Assertion(c.project, c.id)
	require.ErrorAs(t, err, &d)
	require.Equal(t, it.Key, d.Key)

	done := make(chan PutResult, 1)
	require.NoError(t, s.Repair([]Item{it}, func(r PutResult) { done <- r }))
	require.NoError(t, (<-done).Err)
	for range 2 {
		got, err := s.Read(it.Key)
		require.NoError(t, err)
		require.Equal(t, it.Payload, got.Payload)
		_, err = s.Assertion(c.project, c.id)
		require.NoError(t, err)
		drain(t, s)
	}
	require.NotEqual(t, first, pos())
	require.NoError(t, s.Close())
}

func TestSubjectsPages(t *testing.T) {
	s := mustOpen(t, smallOptions(memfs.New(1)))
	defer s.Close()
	names := []string{"a", "a/b", "a/b/c", "a/b/c!", "a/bé", "b"}
	for i, n := range names {
		c := &record.Content{Subject: n, Predicate: "p", Object: record.Boolean(true), SourceClass: record.Expert}
		mustPut(t, s, NewContent("alpha", c.ID(), c))
		if i == 2 {
			drain(t, s)
		}
	}
	slices.Sort(names)
	var got []string
	for last := ""; ; last = got[len(got)-1] {
		page, err := s.Subjects("alpha", "", last, 2)
		require.NoError(t, err)
		if len(page) == 0 {
			break
		}
		got = append(got, page...)
	}
	require.Equal(t, names, got)
	got, err := s.Subjects("alpha", "a/b", "a/b", 10)
	require.NoError(t, err)
	require.Equal(t, []string{"a/b/c", "a/b/c!", "a/bé"}, got)
	got, err = s.Subjects("alph", "", "", 10)
	require.NoError(t, err)
	require.Empty(t, got)
}

func TestOptionsMustSayWhere(t *testing.T) {
	_, err := Open(t.Context(), Options{})
	require.ErrorContains(t, err, "needs a node name")
	require.False(t, errors.Is(err, ErrClosed))
}

func TestMetrics(t *testing.T) {
	o := smallOptions(memfs.New(1))
	reg := prometheus.NewRegistry()
	o.Registerer = reg
	s := mustOpen(t, o)
	defer s.Close()
	defer stallApplier(t, s)()
	mustPut(t, s, newSource(1).batch()...)
	families, err := reg.Gather()
	require.NoError(t, err)
	values := map[string]float64{}
	for _, f := range families {
		if m := f.GetMetric()[0]; m.GetGauge() != nil {
			values[f.GetName()] = m.GetGauge().GetValue()
		}
	}
	require.Positive(t, values["stemedb_index_pending_bytes"])
	require.Positive(t, values["stemedb_assertions_total"])
	require.Contains(t, values, "stemedb_index_failed")
	require.Zero(t, values["stemedb_index_failed"])
}

// stallApplier keeps the applier from writing until the function that it
// returns is called.
func stallApplier(t *testing.T, s *Store) func() {
	t.Helper()
	tr, err := s.db.OpenTransaction() // holds goleveldb's write lock
	require.NoError(t, err)
	return sync.OnceFunc(tr.Discard)
}
