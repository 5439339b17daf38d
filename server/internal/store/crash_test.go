package store

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/storage"

	"github.com/stemedb/stemedb/server/internal/lens"
	"github.com/stemedb/stemedb/server/internal/vfs/leveldbfs"
	"github.com/stemedb/stemedb/server/internal/vfs/memfs"
	"github.com/stemedb/stemedb/server/internal/wal"
)

var crashSeeds = flag.Uint64("crash-seeds", 12, "seeds of the crash test")

// model holds the acknowledged items, which must exist, and those that may exist.
type model struct {
	mu      sync.Mutex
	acked   map[Key][]byte
	tried   map[Key][]byte
	cursors map[string]wal.Position
}

func newModel() *model {
	return &model{acked: map[Key][]byte{}, tried: map[Key][]byte{}, cursors: map[string]wal.Position{}}
}

func (m *model) note(items []Item, acked bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, it := range items {
		switch {
		case it.Kind == KindCursor && acked:
			m.cursors[it.Key.Project] = max(m.cursors[it.Key.Project], it.cursor)
		case it.Kind == KindCursor:
		case acked:
			m.acked[it.Key] = it.Payload
		default:
			m.tried[it.Key] = it.Payload
		}
	}
}

// check: acknowledged ⊆ readable ⊆ attempted, by id, by subject, in subjects
// and in every digest.
func (m *model) check(t require.TestingT, s *Store) {
	m.mu.Lock()
	defer m.mu.Unlock()
	keys := slices.Collect(mapKeys2(m.tried))
	held, err := s.Has(keys)
	require.NoError(t, err)
	type place struct{ project, subject, predicate string }
	bySubject := map[place][]Key{}
	here := map[Key]bool{}
	for i, k := range keys {
		if _, acked := m.acked[k]; acked {
			require.True(t, held[i], "lost: %v", k)
		}
		here[k] = held[i]
		if !held[i] {
			continue
		}
		it, err := s.Read(k)
		require.NoError(t, err)
		require.Equal(t, m.tried[k], it.Payload)
	}
	for _, k := range keys {
		content := Key{Kind: KindContent, Project: k.Project, ID: k.ID}
		if here[k] && here[content] {
			it, err := ParseItem(KindContent, m.tried[content])
			require.NoError(t, err)
			p := place{k.Project, it.content.Subject, it.content.Predicate}
			bySubject[p] = append(bySubject[p], k)
		}
	}
	for p, want := range bySubject {
		got, err := keysOf(s, Set{Project: p.project, Subject: p.subject, Predicate: p.predicate})
		require.NoError(t, err)
		require.ElementsMatch(t, want, got, "keys of %v", p)
		var sum Digest
		for i := range want {
			sum.Add(s.newDigester().of(&want[i]))
		}
		d, err := s.SetDigest(context.Background(), Set{Project: p.project, Subject: p.subject, Predicate: p.predicate})
		require.NoError(t, err)
		require.Equal(t, sum, d)
		subjects, err := s.Subjects(p.project, p.subject, "", 1)
		require.NoError(t, err)
		require.Equal(t, []string{p.subject}, subjects)
		m.checkOrder(t, s, p.project, p.subject, p.predicate)
	}
	total := uint64(0)
	buckets, err := s.BucketDigests(context.Background(), nil)
	require.NoError(t, err)
	for _, b := range buckets {
		total += b.Count
	}
	n, contents := uint64(0), int64(0)
	for i, h := range held {
		if h {
			n++
			if keys[i].Kind == KindContent {
				contents++
			}
		}
	}
	require.Equal(t, n, total, "keys in the buckets")
	require.Equal(t, contents, s.Stats().Assertions)
	for name, pos := range m.cursors {
		require.GreaterOrEqual(t, s.Cursor(name), pos, "cursor of %s", name)
	}
}

func (m *model) checkOrder(t require.TestingT, s *Store, project, subject, predicate string) {
	var last *Claim
	for c, err := range s.Claims(context.Background(), ClaimQuery{Project: project, Subject: subject, Predicate: predicate}, 0) {
		require.NoError(t, err)
		require.True(t, last == nil || last.Newer(&c.Claim), "order of claims")
		it, err := s.ReadAt(c.Position)
		require.NoError(t, err)
		require.Equal(t, c.ID, it.Key.ID)
		require.Equal(t, it.content.Confidence, c.Confidence)
		require.Equal(t, valueOf(&it.content.Object), c.Value)
		require.Equal(t, it.content.Lifecycle, c.Own)
		require.True(t, slices.IsSortedFunc(c.Votes, func(a, b lens.Vote) int { return a.Agent.Compare(b.Agent) }))
		last = c
	}
}

func mapKeys2(m map[Key][]byte) func(func(Key) bool) {
	return func(yield func(Key) bool) {
		for k := range m {
			if !yield(k) {
				return
			}
		}
	}
}

// TestCrashes: any number of power cuts at random moments, under concurrent
// load, lose no acknowledged item; and the index after replay is identical,
// entry for entry, to one that is rebuilt from the log.
func TestCrashes(t *testing.T) {
	for seed := range *crashSeeds {
		r := rand.New(rand.NewPCG(seed, 3))
		disk := memfs.New(seed)
		m := newModel()
		sources := make([]*source, 3)
		for i := range sources {
			sources[i] = newSource(seed*10 + uint64(i))
			sources[i].n = uint64(i) << 40
		}
		for range 6 {
			disk.CutPowerAfter(20 + r.IntN(600))
			o := smallOptions(disk)
			o.MarkerBytes = []int64{1 << 10, 4 << 10, 48 << 10}[r.IntN(3)]
			o.WriteBuffer = []int{16 << 10, 64 << 10, 256 << 10}[r.IntN(3)]
			o.Logger = slog.New(noRebuild{t, seed})
			s, err := Open(context.Background(), o)
			if err == nil {
				load(s, m, sources, r.IntN(120))
				_ = s.Close() // fails when the power is off
			} else {
				require.True(t, disk.PoweredOff(), "seed %d: %v", seed, err)
			}
			disk.Crash([]memfs.Mode{memfs.KillProcess, memfs.LoseAll, memfs.LoseSome, memfs.LoseSome}[r.IntN(4)])
			if r.IntN(5) == 0 {
				s := mustOpen(t, smallOptions(disk))
				m.check(t, s)
				require.True(t, s.Whole(), "seed %d", seed)
				require.NoError(t, s.Close())
			}
		}
		s := mustOpen(t, smallOptions(disk))
		m.check(t, s)
		replayed := dump(t, s)
		require.NoError(t, s.Close())
		require.NoError(t, leveldbfs.RemoveAll(disk, filepath.Join("db", indexDir)))
		s = mustOpen(t, smallOptions(disk))
		sameIndex(t, replayed, dump(t, s), "rebuilt")
		m.check(t, s)
		require.True(t, s.Whole())
		require.NoError(t, s.Close())
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
}

// noRebuild fails the test if a power cut alone causes a rebuild of the index:
// replaying the tail must be enough.
type noRebuild struct {
	t    *testing.T
	seed uint64
}

func (h noRebuild) Enabled(_ context.Context, l slog.Level) bool { return l >= slog.LevelWarn }
func (h noRebuild) WithAttrs([]slog.Attr) slog.Handler           { return h }
func (h noRebuild) WithGroup(string) slog.Handler                { return h }

func (h noRebuild) Handle(_ context.Context, r slog.Record) error {
	if r.Message == msgAnew {
		r.Attrs(func(a slog.Attr) bool {
			h.t.Errorf("seed %d: %s: %s", h.seed, r.Message, a)
			return true
		})
	}
	return nil
}

// load puts batches from several goroutines until they are done or the power is
// cut.
func load(s *Store, m *model, sources []*source, batches int) {
	var wg sync.WaitGroup
	for n, g := range sources {
		wg.Go(func() {
			for range batches {
				items := g.batch()
				if len(g.pending) > 0 && g.r.IntN(3) == 0 {
					items, g.pending = append(items, g.pending...), nil
				}
				if g.r.IntN(5) == 0 {
					items = append(items, NewCursor([]string{"p", "q", "r"}[n], wal.Position(g.n)))
				}
				m.note(items, false)
				r := putSync(s, items...)
				if r.Err == nil {
					m.note(items, true)
				} else if !errors.Is(r.Err, ErrBusy) {
					return
				}
			}
		})
	}
	wg.Wait()
}

// TestMarkerWhileTheMemtableIsReplaced: other writes push the barrier's key out
// of the memtable before it is flushed. Everything that the marker guarantees
// is in tables anyway.
func TestMarkerWhileTheMemtableIsReplaced(t *testing.T) {
	disk := memfs.New(1)
	o := smallOptions(disk)
	o.MarkerBytes, o.MarkerInterval = 1<<30, time.Hour // only when the test asks for it
	var s *Store
	var journals []storage.FileDesc
	filler := 0
	o.betweenBarrier = func() {
		journals = append(journals, s.files.Journal())
		for range 64 {
			var b leveldb.Batch
			b.Put(fmt.Append(nil, "x", filler), make([]byte, o.WriteBuffer/16))
			require.NoError(t, s.db.Write(&b, nil))
			filler++
		}
	}
	s = mustOpen(t, o)
	m := newModel()
	load(s, m, []*source{newSource(1)}, 50)
	for s.Stats().PendingBytes > 0 {
		time.Sleep(time.Millisecond)
	}
	require.NoError(t, s.mark())
	require.NotEmpty(t, journals)
	gone, err := s.files.Gone(journals[0])
	require.NoError(t, err)
	require.True(t, gone)
	marker := s.Stats().Marker
	require.NotZero(t, marker)
	disk.CutPowerAfter(0)
	_ = s.Close()
	disk.Crash(memfs.LoseAll)
	o.betweenBarrier = nil
	s = mustOpen(t, o)
	m.check(t, s)
	require.NoError(t, s.Close())
}

// TestOverReplay: replaying everything into a complete index changes nothing.
func TestOverReplay(t *testing.T) {
	disk := memfs.New(1)
	s := mustOpen(t, smallOptions(disk))
	m := newModel()
	load(s, m, []*source{newSource(1)}, 300)
	drain(t, s)
	before := dump(t, s)
	require.NoError(t, s.Close())

	files, err := leveldbfs.Open(disk, filepath.Join("db", indexDir), nil)
	require.NoError(t, err)
	db, err := leveldb.Open(files, nil)
	require.NoError(t, err)
	require.NoError(t, db.Delete(metaKey(metaApplied), nil))
	require.NoError(t, db.Close())
	require.NoError(t, files.Close())

	o := smallOptions(disk)
	chunks := 0
	o.Progress = func(p Progress) { chunks++ }
	o.replayChunk = 8 << 10
	s = mustOpen(t, o)
	require.Greater(t, chunks, 10, "all of it was replayed")
	sameIndex(t, before, dump(t, s), "replayed again")
	m.check(t, s)
	require.NoError(t, s.Close())
}
