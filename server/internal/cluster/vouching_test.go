package cluster

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/stemedb/stemedb/record"
	"github.com/stemedb/stemedb/server/internal/store"
	"github.com/stemedb/stemedb/server/internal/vfs/memfs"
	"github.com/stemedb/stemedb/server/internal/wal"
)

// notary checks, whenever its node has made a cursor durable, that every record
// below the cursor is held.
type notary struct {
	Store

	mu      sync.Mutex
	sources map[string]Store // by incarnation
	looked  int              // number of records checked
	missing []string
}

func (n *notary) Put(items []store.Item, done func(store.PutResult)) error {
	return n.Store.Put(items, func(res store.PutResult) {
		done(res)
		for i := range items {
			if items[i].Kind == store.KindCursor && res.Err == nil {
				go n.look()
				return
			}
		}
	})
}

func (n *notary) look() {
	for incarnation, at := range n.Cursors() {
		n.compare(incarnation, at)
	}
}

// compare checks the records of a source's log before a position.
func (n *notary) compare(incarnation string, at wal.Position) {
	n.mu.Lock()
	defer n.mu.Unlock()
	var keys []store.Key
	for from := wal.Position(0); from < at && n.sources[incarnation] != nil; {
		found, next, _, err := n.sources[incarnation].ScanKeys(from, 1<<20)
		if err != nil || next == from {
			break
		}
		for _, k := range found {
			if k.Position < at && k.Key.Kind.Record() {
				keys = append(keys, k.Key)
			}
		}
		from = next
	}
	has, err := n.Has(keys)
	n.looked += len(keys)
	for i := range has {
		if !has[i] {
			n.missing = append(n.missing, fmt.Sprintf("the cursor over %s is at %v, and %v is not held (%v)", incarnation, at, keys[i], err))
		}
	}
}

// requireSound fails the test if a cursor was ahead of the records held.
func (n *notary) requireSound(t *testing.T, atLeast int) {
	t.Helper()
	n.mu.Lock()
	defer n.mu.Unlock()
	require.Empty(t, n.missing)
	require.GreaterOrEqual(t, n.looked, atLeast, "the test saw no cursor that covers the records")
}

// slowReader is slow to read each record that a peer fetches.
type slowReader struct {
	Store
	each time.Duration
}

func (s slowReader) ReadAt(pos wal.Position) (store.Item, error) {
	time.Sleep(s.each)
	return s.Store.ReadAt(pos)
}

// notarised are three nodes, of which c has a notary, and a is a slow reader.
func notarised(t *testing.T, slow time.Duration) (*world, *notary) {
	t.Helper()
	n := &notary{sources: map[string]Store{}}
	w := threeNodes(t, noCatchUp, func(w *world) {
		quiet := w.tune
		w.tune = func(c *Config) {
			quiet(c)
			c.Limits.PullBytes = 2 << 20
			n.mu.Lock()
			defer n.mu.Unlock()
			n.sources[c.Store.Identity().Incarnation] = c.Store
			switch c.Store.Identity().Node {
			case "a":
				c.Store = slowReader{c.Store, slow}
			case "c":
				n.Store, c.Store = c.Store, n
			}
		}
	})
	return w, n
}

// TestCursorComesWithTheLastPieceOfAnAnswer: an answer of a pull lists more than
// is fetched in one piece.
func TestCursorComesWithTheLastPieceOfAnAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, n := notarised(t, 0)
		a, c := w.nodes["a"], w.nodes["c"]
		w.nodes["b"].crash(memfs.LoseAll)
		c.crash(memfs.LoseAll)
		var last record.Hash
		for i := range 40 {
			big := claim("big", i)
			big.Object = record.Text(fmt.Sprint(i) + strings.Repeat("x", 60<<10))
			big.Signatures = nil
			big.Sign(agent)
			a.hold(big)
			last = big.ID()
		}
		c.start()
		w.await("the last record", func() bool { return c.holds(last) })
		n.requireSound(t, 80)
	})
}

// TestCursorWaitsForWhatAnotherPullerFetches: b's log holds a record that c is
// fetching from a, and one that only b has.
func TestCursorWaitsForWhatAnotherPullerFetches(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, n := notarised(t, 500*time.Millisecond)
		a, b, c := w.nodes["a"], w.nodes["b"], w.nodes["c"]
		c.crash(memfs.LoseAll)
		both, own := claim("both", 1), claim("b alone", 2)
		a.hold(both)
		b.hold(both, own)
		// b's answer arrives while c fetches from a.
		w.net.SetDelayBetween("b", "c", 30*time.Millisecond, 30*time.Millisecond)
		c.start()
		w.await("b's own record", func() bool { return c.holds(own.ID()) })
		require.False(t, c.holds(both.ID()), "the test needs the other record to be in flight")
		w.await("both records", func() bool { return c.holds(both.ID(), own.ID()) })
		time.Sleep(3 * time.Hour) // so that progress becomes durable despite the long TailLinger
		n.requireSound(t, 6)
	})
}

// TestProgressIsToldBehindTheRecords: the cursors that the leader asks for, to
// close a change of members, are never ahead of the records held.
func TestProgressIsToldBehindTheRecords(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, n := notarised(t, 500*time.Millisecond)
		a, c := w.nodes["a"], w.nodes["c"]
		w.nodes["b"].crash(memfs.LoseAll)
		c.crash(memfs.LoseAll)
		held := claim("s", 1)
		a.hold(held)
		end := a.store.End()
		c.start()
		told := func() wal.Position { return wal.Position(c.cluster.progress.Cursors()[w.member("a").Incarnation]) }
		w.await("progress in a's log", func() bool { return told() >= end })
		n.compare(w.member("a").Incarnation, told())
		n.requireSound(t, 2)
	})
}

// TestSourceWithALostTailIsReadAgain: a peer's log is shorter than this node's
// cursor for it, so it is not the same log. Its records below the cursor have
// never been read.
func TestSourceWithALostTailIsReadAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := threeNodes(t)
		a, b := w.nodes["a"], w.nodes["b"]
		ids := a.write(claims("s", 0, 10)...)
		w.await("the records on b", func() bool { return b.holds(ids...) })
		w.nodes["c"].crash(memfs.LoseAll)
		b.shutdown()
		unseen := claim("unseen", 1)
		a.hold(unseen)
		// b restarts with a cursor behind the end of a's log.
		incarnation := w.member("a").Incarnation
		beyond := a.store.End() + 1<<32
		w.tune = func(c *Config) { c.Progress.set(incarnation, beyond, 0) }
		b.start()
		at := func() wal.Position { pos, _ := b.cluster.progress.at(incarnation); return pos }
		require.Equal(t, beyond, at())
		w.await("the record of a", func() bool { return b.holds(unseen.ID()) })
		w.await("a cursor within a's log", func() bool { return at() == a.store.End() && b.store.Cursors()[incarnation] <= a.store.End() })
	})
}
