package store

import (
	"fmt"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/stemedb/stemedb/record"
	"github.com/stemedb/stemedb/server/internal/vfs/memfs"
	"github.com/stemedb/stemedb/server/internal/wal"
)

// TestReadYourWrite: once a Put is done, every kind of read sees it
// immediately, whatever the applier is doing.
func TestReadYourWrite(t *testing.T) {
	s := mustOpen(t, smallOptions(memfs.New(8)))
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			for i := range 150 {
				c := &record.Content{
					Subject: fmt.Sprintf("s/%d", i%7), Predicate: "p", Object: record.Text(fmt.Sprint(w, i)),
					SourceClass: record.Expert, Timestamp: uint64(i),
				}
				id := c.ID()
				sig := record.Signature{Agent: agentOf(w)}
				r := putSync(s, NewContent("alpha", id, c), NewSignature("alpha", id, sig))
				if !noError(t, r.Err) {
					return
				}
				st, err := s.Assertion("alpha", id)
				if !noError(t, err) || len(st.Signatures) != 1 {
					t.Errorf("signatures: %v", st)
				}
				found := false
				for cl, err := range s.Claims(t.Context(), ClaimQuery{Project: "alpha", Subject: c.Subject, Predicate: "p", AsOf: c.Timestamp}, 0) {
					if !noError(t, err) {
						return
					}
					found = found || cl.ID == id && len(cl.Agents) == 1
				}
				if !found {
					t.Errorf("claim %d of %d is not found", i, w)
				}
				subjects, err := s.Subjects("alpha", c.Subject, "", 1)
				if !noError(t, err) || len(subjects) != 1 {
					t.Errorf("subjects: %v", subjects)
				}
			}
		})
	}
	wg.Wait()
	require.NoError(t, s.Close())
}

func noError(t *testing.T, err error) bool {
	t.Helper()
	if err != nil {
		t.Error(err)
	}
	return err == nil
}

// TestDuplicatesInFlight: many writers of the same items; each gets success
// only when the item is durable, and the log holds it once.
func TestDuplicatesInFlight(t *testing.T) {
	disk := memfs.New(9)
	disk.SetLatency(func(op memfs.Op) time.Duration {
		if op.Kind == memfs.OpSync {
			return 200 * time.Microsecond
		}
		return 0
	})
	s := mustOpen(t, smallOptions(disk))
	g := newSource(9)
	for range 60 {
		items := g.batch()
		var created atomic.Int64
		var wg sync.WaitGroup
		for range 8 {
			mine := append([]Item(nil), items...)
			wg.Go(func() {
				r := putSync(s, mine...)
				noError(t, r.Err)
				for i, isNew := range r.New {
					if isNew {
						created.Add(1)
					}
					if held, err := s.Has([]Key{mine[i].Key}); !noError(t, err) || !held[0] {
						t.Errorf("%v is not held", mine[i].Key)
					}
				}
			})
		}
		wg.Wait()
		distinct := map[Key]bool{}
		for _, it := range items {
			distinct[it.Key] = true
		}
		require.LessOrEqual(t, created.Load(), int64(len(distinct)))
	}
	seen := map[Key]bool{}
	for pos := wal.Position(0); pos < s.End(); {
		keys, next, _, err := s.ScanKeys(pos, 1<<20)
		require.NoError(t, err)
		for _, k := range keys {
			require.False(t, seen[k.Key], "%v is in the log twice", k.Key)
			seen[k.Key] = true
		}
		pos = next
	}
	require.NoError(t, s.Close())
}

// TestCursorWaitsForItsItems: a cursor covers items that another Put is still
// writing; it must not reach the log before them.
func TestCursorWaitsForItsItems(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := mustOpen(t, smallOptions(memfs.New(10)))
		g := newSource(10)
		it, _ := g.content()
		// The first Put has reserved its item and not reached the log.
		first := &putOp{s: s, isNew: make([]bool, 1)}
		require.NoError(t, s.reserve(first, []Item{it}, idKeysOf([]Item{it}), false))
		done := make(chan PutResult, 1)
		end := s.End()
		require.NoError(t, s.Put([]Item{it, NewCursor("peer", 9)}, func(r PutResult) { done <- r }))
		synctest.Wait()
		require.Empty(t, done, "done before the item")
		require.Equal(t, end, s.End())
		require.Zero(t, s.Cursor("peer"))
		_ = s.abandon(first, wal.ErrReadOnly)
		require.ErrorIs(t, (<-done).Err, wal.ErrReadOnly)
		require.Zero(t, s.Cursor("peer"))
		mustPut(t, s, it, NewCursor("peer", 9))
		require.EqualValues(t, 9, s.Cursor("peer"))
		closeInBubble(t, s)
	})
}

// TestCursorIsNotWrittenWithoutItsItems: the Put that writes an item fails while
// a Put with the cursor that covers it is still looking up its other items. Then
// there is nothing left to wait for, and the cursor must not be written.
func TestCursorIsNotWrittenWithoutItsItems(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		disk, m := filled(t, 14, 300)
		s := mustOpen(t, smallOptions(disk)) // with an empty cache: a look-up reads the disk
		synctest.Wait()
		g := newSource(14)
		g.n = 1 << 20
		it, _ := g.content()
		items := []Item{it, NewCursor("peer", 9)}
		for k, payload := range m.acked {
			items = append(items, Item{Key: k, Kind: k.Kind, Payload: payload})
		}
		first := &putOp{s: s, isNew: make([]bool, 1)}
		require.NoError(t, s.reserve(first, []Item{it}, idKeysOf([]Item{it}), false))
		failed := false
		disk.SetLatency(func(op memfs.Op) time.Duration {
			if !failed && op.Kind == memfs.OpRead && filepath.Ext(op.Name) == ".ldb" {
				failed = true
				_ = s.abandon(first, wal.ErrReadOnly)
			}
			return 0
		})
		end := s.End()
		err := s.Put(items, func(PutResult) {})
		require.True(t, failed, "the first Put failed while the second one looked up its items")
		require.ErrorIs(t, err, wal.ErrReadOnly)
		disk.Heal()
		synctest.Wait()
		require.Equal(t, end, s.End(), "nothing is in the log")
		require.Zero(t, s.Cursor("peer"))
		mustPut(t, s, items...)
		require.EqualValues(t, 9, s.Cursor("peer"))
		closeInBubble(t, s)
	})
}

// closeInBubble closes the store and waits for goleveldb's last goroutine: it
// lingers for up to a second, and a bubble's clock stops with its test.
func closeInBubble(t *testing.T, s *Store) {
	t.Helper()
	require.NoError(t, s.Close())
	time.Sleep(2 * time.Second)
}

// TestUnderVirtualTime: the store runs in a bubble, its marker moves with the
// bubble's clock, and Close leaves no goroutine.
func TestUnderVirtualTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := smallOptions(memfs.New(11))
		o.MarkerBytes = 1 << 20
		s := mustOpen(t, o)
		g := newSource(11)
		for range 100 {
			mustPut(t, s, g.batch()...)
		}
		synctest.Wait()
		require.Zero(t, s.Stats().Marker)
		time.Sleep(31 * time.Second)
		synctest.Wait()
		require.Equal(t, s.Stats().Applied, s.Stats().Marker)
		closeInBubble(t, s)
	})
}
