package cluster

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/stemedb/stemedb/server/internal/store"
)

// a's WAL volume is full, b was restarted, c is down. a and b are whole and can
// be read, so a quorum read is answered.
func TestAFullMemberIsReadTogetherWithOneThatStartedAnew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := threeNodes(t, func(w *world) { w.opts = func(o *store.Options) { o.SegmentSize = 256 << 10 } })
		a, b := w.nodes["a"], w.nodes["b"]
		for i := range 50 {
			b.write(claim("x", i))
		}
		a.disk.SetCapacity("wal", 1<<30)
		free, total, err := a.disk.Free("wal")
		require.NoError(t, err)
		a.disk.SetCapacity("wal", total-free+4096)
		for i := range 200 {
			b.cluster.Assert(context.Background(), "p", claims("y", 10*i, 10))
		}
		require.Equal(t, store.StateReadOnly, a.store.Health().State)
		time.Sleep(time.Minute)
		b.shutdown()
		b.start()
		b.control.follow()
		time.Sleep(30 * time.Second)
		w.nodes["c"].shutdown()
		time.Sleep(time.Minute)
		for _, n := range []*node{a, b} {
			_, err := n.cluster.Get(context.Background(), "p", claim("x", 1).ID(), Quorum)
			require.NoError(t, err, n.name)
		}
	})
}

// All three volumes are full, and the members are restarted one after the other, as for
// a change of their configuration. Every byte is there, so quorum reads are answered.
func TestAFullClusterIsReadAfterARollingRestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := threeNodes(t, func(w *world) { w.opts = func(o *store.Options) { o.Reserve, o.ReserveHigh = 1<<20, 2<<20 } })
		for _, n := range w.nodes {
			n.disk.SetCapacity("wal", 1<<30)
		}
		for i := range 50 {
			w.nodes["b"].write(claim("x", i))
			time.Sleep(time.Second)
		}
		for _, n := range w.nodes {
			free, total, err := n.disk.Free("wal")
			require.NoError(t, err)
			n.disk.SetCapacity("wal", total-free+512<<10)
		}
		time.Sleep(time.Minute)
		read := func() (failed int) {
			for name, n := range w.nodes {
				require.Equal(t, store.StateReadOnly, n.store.Health().State, name)
				if _, err := n.cluster.Get(context.Background(), "p", claim("x", 1).ID(), Quorum); err != nil {
					t.Logf("%s: %v", name, err)
					failed++
				}
			}
			return failed
		}
		require.Zero(t, read())
		for _, name := range []string{"a", "b", "c"} {
			w.nodes[name].shutdown()
			w.nodes[name].start()
			w.nodes[name].control.follow()
			time.Sleep(2 * time.Minute)
		}
		require.Zero(t, read(), "members that refuse quorum reads")
	})
}
