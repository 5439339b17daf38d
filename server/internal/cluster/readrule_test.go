package cluster

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/stemedb/stemedb/server/internal/control"
	"github.com/stemedb/stemedb/server/internal/store"
	"github.com/stemedb/stemedb/server/internal/vfs/memfs"
)

// TestReadBringsWhatOnlyItsOwnNodeHoldsToAMajority: a record that a read has
// shown is seen by later reads, even when the node that showed it is gone.
func TestReadBringsWhatOnlyItsOwnNodeHoldsToAMajority(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := threeNodes(t, noCatchUp)
		a, b, c := w.nodes["a"], w.nodes["b"], w.nodes["c"]
		alone := claim("s", 1) // as after a failed write
		a.hold(alone)
		_, err := a.cluster.Get(context.Background(), "p", alone.ID(), Quorum)
		require.NoError(t, err)
		require.True(t, b.holds(alone.ID()) || c.holds(alone.ID()), "shown, and on one node only")
		a.crash(memfs.LoseAll)
		for _, n := range []*node{b, c} {
			_, err := n.cluster.Get(context.Background(), "p", alone.ID(), Quorum)
			require.NoError(t, err, "%s misses the record that a has shown", n.name)
		}
	})
}

// asked is a store that counts requests for digests and calls a function at each.
type asked struct {
	Store
	mu    sync.Mutex
	count int
	then  func(nth int)
}

func (s *asked) SetDigest(ctx context.Context, set store.Set) (store.Digest, error) {
	s.mu.Lock()
	s.count++
	nth, then := s.count, s.then
	s.mu.Unlock()
	d, err := s.Store.SetDigest(ctx, set)
	if then != nil {
		then(nth)
	}
	return d, err
}

func (s *asked) do(then func(nth int)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.then = then
}

func (s *asked) times() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.count
}

// readersAndAsked returns a and b of three nodes; c is down, a reads, b is asked.
func readersAndAsked(t *testing.T) (w *world, a, b *node, s *asked) {
	t.Helper()
	s = &asked{}
	w = threeNodes(t, func(w *world) {
		w.tune = func(c *Config) {
			if c.Store.Identity().Node == "b" {
				s.Store, c.Store = c.Store, s
			}
		}
	})
	a, b = w.nodes["a"], w.nodes["b"]
	a.write(claim("s", 1))
	for _, n := range w.nodes {
		w.await("the record on "+n.name, func() bool { return n.holds(claim("s", 1).ID()) })
	}
	w.nodes["c"].crash(memfs.LoseAll)
	return w, a, b, s
}

func (n *node) read(ctx context.Context) error {
	_, err := n.cluster.Get(ctx, "p", claim("s", 1).ID(), Quorum)
	return err
}

// TestMemberThatMovedOnWhileItAnsweredCountsInNoRead: b passes to a newer
// generation while it computes its digest. Since then it may have acknowledged
// writes by a rule that the reader does not know.
func TestMemberThatMovedOnWhileItAnsweredCountsInNoRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, a, _, s := readersAndAsked(t)
		require.NoError(t, a.read(t.Context()))
		a.control.lag(true)
		s.do(func(int) { w.change(func(*control.State) {}) })
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		require.ErrorIs(t, a.read(ctx), ErrUnavailable)
		s.do(nil)
		a.control.lag(false)
		require.NoError(t, a.read(t.Context()))
	})
}

// TestReadDuringWhichItsNodeMovedOnBeginsAgain: the reader passes to a newer
// generation while it waits for answers; the answers count by the older one.
func TestReadDuringWhichItsNodeMovedOnBeginsAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, a, b, s := readersAndAsked(t)
		require.NoError(t, a.read(t.Context()))
		require.Equal(t, 1, s.times())
		b.control.lag(true)
		s.do(func(nth int) {
			if nth == 2 {
				w.change(func(*control.State) {})
			}
		})
		require.NoError(t, a.read(t.Context()))
		require.Equal(t, 3, s.times(), "it was asked by the rule of the older generation only")
	})
}
