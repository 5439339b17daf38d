package store

import (
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/stemedb/stemedb/internal/sleep"
	"github.com/stemedb/stemedb/record"
	"github.com/stemedb/stemedb/server/internal/vfs/memfs"
)

// smallOptions make rare events frequent.
func smallOptions(disk *memfs.Disk) Options {
	return Options{
		FS: disk, WALDir: "wal", DBDir: "db", NodeName: "n0",
		SegmentSize: 32 << 10, Reserve: 1, ReserveHigh: 2,
		MarkerBytes: 48 << 10, WriteBuffer: 32 << 10, CacheBytes: 256 << 10, ScrubRate: -1,
		replayChunk: 4 << 10,
	}
}

func mustOpen(t testing.TB, o Options) *Store {
	t.Helper()
	s, err := Open(context.Background(), o)
	require.NoError(t, err)
	return s
}

// putSync puts items and waits for the outcome.
func putSync(s *Store, items ...Item) PutResult {
	done := make(chan PutResult, 1)
	if err := s.Put(items, func(r PutResult) { done <- r }); err != nil {
		return PutResult{Err: err}
	}
	return <-done
}

func mustPut(t testing.TB, s *Store, items ...Item) []bool {
	t.Helper()
	r := putSync(s, items...)
	require.NoError(t, r.Err)
	return r.New
}

// drain waits until the index is up to date.
func drain(t testing.TB, s *Store) {
	t.Helper()
	for s.Stats().PendingBytes > 0 {
		require.NoError(t, s.Health().Err)
		sleep.Wake(s.work)
	}
}

// source makes items from a seed; the same few subjects, agents and parents
// recur.
type source struct {
	r    *rand.Rand
	n    uint64
	made []content0
	// pending holds contents whose signatures were already handed out.
	pending []Item
}

type content0 struct {
	project string
	id      record.Hash
	c       *record.Content
}

func newSource(seed uint64) *source { return &source{r: rand.New(rand.NewPCG(seed, 7))} }

func (g *source) project() string { return []string{"alpha", "beta-2", "shared"}[g.r.IntN(3)] }

func (g *source) content() (Item, content0) {
	g.n++
	c := &record.Content{
		Subject:     fmt.Sprintf("code://go/mod%d/tls", g.r.IntN(6)),
		Predicate:   []string{"version", "tls.verify"}[g.r.IntN(2)],
		Object:      record.Number(float64(g.r.IntN(4))),
		Confidence:  float64(g.r.IntN(11)) / 10,
		SourceClass: record.SourceClass(1 + g.r.IntN(6)),
		Lifecycle:   record.Lifecycle(g.r.IntN(5)),
		Timestamp:   uint64(g.r.IntN(50)),
		SourceMetadata: map[string]string{
			"n": fmt.Sprint(g.n), "pad": string(make([]byte, g.r.IntN(200))),
		},
	}
	project := g.project()
	if len(g.made) > 0 && g.r.IntN(3) == 0 {
		parent := g.made[g.r.IntN(len(g.made))]
		id := parent.id
		c.ParentHash = &id
		if g.r.IntN(4) != 0 {
			project, c.Subject, c.Predicate = parent.project, parent.c.Subject, parent.c.Predicate
		}
		c.Timestamp = max(c.Timestamp, parent.c.Timestamp)
	}
	made := content0{project, c.ID(), c}
	g.made = append(g.made, made)
	return NewContent(project, made.id, c), made
}

func agentOf(n int) (a record.AgentID) {
	binary.BigEndian.PutUint32(a[:], uint32(n)*2654435761)
	return a
}

func (g *source) signature(c content0) Item {
	s := record.Signature{Agent: agentOf(g.r.IntN(5))}
	s.Sig[0] = s.Agent[0]
	return NewSignature(c.project, c.id, s)
}

func (g *source) vote(c content0) Item {
	return NewVote(c.project, &record.Vote{Assertion: c.id, Agent: agentOf(g.r.IntN(5)), Weight: float64(g.r.IntN(21)-10) / 10, Timestamp: uint64(g.r.IntN(60))})
}

// batch makes a few items: mostly a content with signatures, sometimes
// signatures and votes of older or of not yet sent contents.
func (g *source) batch() []Item {
	var items, late []Item
	for range 1 + g.r.IntN(4) {
		it, c := g.content()
		if g.r.IntN(8) == 0 {
			late = append(late, it) // its signatures come first
		} else {
			items = append(items, it)
		}
		items = append(items, g.signature(c))
		old := g.made[g.r.IntN(len(g.made))]
		switch g.r.IntN(4) {
		case 0:
			items = append(items, g.signature(old))
		case 1:
			items = append(items, g.vote(old))
		}
	}
	if g.r.IntN(3) == 0 {
		g.r.Shuffle(len(items), func(i, j int) { items[i], items[j] = items[j], items[i] })
	}
	if g.r.IntN(2) == 0 {
		items = append(items, late...)
	} else if len(late) > 0 {
		g.pending = append(g.pending, late...)
	}
	return items
}

// dump returns the index's content, except its notes about itself.
func dump(t testing.TB, s *Store) map[string]string {
	t.Helper()
	all := map[string]string{}
	it := s.db.NewIterator(nil, nil)
	defer it.Release()
	for it.Next() {
		if k := it.Key()[0]; k != spaceMeta && k != spaceBarrier {
			all[string(it.Key())] = string(it.Value())
		}
	}
	require.NoError(t, it.Error())
	return all
}

func sameIndex(t testing.TB, want, got map[string]string, msg string) {
	t.Helper()
	for _, k := range slices.Sorted(mapKeys(want)) {
		v, ok := got[k]
		require.True(t, ok, "%s: lacks %q", msg, k)
		require.Equal(t, want[k], v, "%s: value of %q", msg, k)
	}
	for _, k := range slices.Sorted(mapKeys(got)) {
		_, ok := want[k]
		require.True(t, ok, "%s: has %q", msg, k)
	}
}

func mapKeys[V any](m map[string]V) func(func(string) bool) {
	return func(yield func(string) bool) {
		for k := range m {
			if !yield(k) {
				return
			}
		}
	}
}
