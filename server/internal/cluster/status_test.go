package cluster

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/stemedb/stemedb/server/internal/store"
	"github.com/stemedb/stemedb/server/internal/vfs/memfs"
)

// deadNodes is a Liveness by a list of the dead.
type deadNodes map[string]bool

func (d deadNodes) Alive(name string) bool { return !d[name] }

func TestStatus(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dead := deadNodes{}
		w := threeNodes(t, func(w *world) { w.tune = func(c *Config) { c.Liveness = dead } })
		a := w.nodes["a"]
		a.write(claims("s", 0, 10)...)
		time.Sleep(time.Minute)
		s := a.cluster.Status()
		require.True(t, s.Ready, s.Reason)
		require.Equal(t, "a", s.Leader)
		require.True(t, s.WriteQuorum && s.ReadQuorum)
		require.Len(t, s.Members, 3)
		for _, m := range s.Members {
			require.True(t, m.Alive && m.Whole && m.Connected, m.Name)
			require.Zero(t, m.LagBytes, m.Name)
			require.Equal(t, m.Name == "a", m.Self)
			require.Equal(t, -90.0, *m.ClockSkew, m.Name)
		}
		require.True(t, s.TimeSure)
		a.control.unsure.Store(true)
		s = a.cluster.Status()
		require.False(t, s.TimeSure)
		require.Nil(t, s.Members[0].ClockSkew)
		a.control.unsure.Store(false)

		w.nodes["c"].crash(memfs.LoseAll)
		dead["c"] = true
		time.Sleep(time.Second)
		s = a.cluster.Status()
		require.True(t, s.WriteQuorum && s.ReadQuorum)
		require.False(t, s.Members[2].Alive || s.Members[2].Connected)
		require.True(t, s.Members[2].Whole, "dead is not the same as not whole")
		dead["b"] = true
		s = a.cluster.Status()
		require.False(t, s.WriteQuorum || s.ReadQuorum)
		require.True(t, s.Ready)
		delete(dead, "b")
	})
}

func TestRecentKeys(t *testing.T) {
	item := func(i int) store.Item {
		a := claim("s", i)
		return store.NewContent("p", a.ID(), &a.Content)
	}
	r := newRecentKeys(10)
	for i := range 25 {
		r.add([]store.Item{item(i)})
	}
	var keys []store.Key
	for i := range 26 {
		keys = append(keys, item(i).Key)
	}
	missing := r.missing(keys)
	require.Contains(t, missing, 0, "the oldest are forgotten")
	require.Contains(t, missing, 25, "never added")
	for i := 15; i < 25; i++ {
		require.NotContains(t, missing, i)
	}
	other := item(24).Key
	other.Project = "q"
	require.Equal(t, []int{0}, r.missing([]store.Key{other}), "another project's record is another record")
	r.forget()
	require.Len(t, r.missing(keys), 26)
}

// Until a restarted node serves, it does not make up a majority for reads.
func TestANodeThatDoesNotServeYetIsNoPartOfTheReadQuorum(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dead := deadNodes{}
		w := threeNodes(t, func(w *world) { w.tune = func(c *Config) { c.Liveness = dead } })
		b := w.nodes["b"]
		b.shutdown()
		w.nodes["c"].crash(memfs.LoseAll)
		dead["c"] = true
		b.start()
		b.control.follow()
		time.Sleep(5 * time.Second)
		s := b.cluster.Status()
		require.False(t, s.Ready)
		require.False(t, s.ReadQuorum, "a alone is no majority: %s", s.Reason)
		w.await("readiness", func() bool { return b.cluster.Ready() == nil })
		require.True(t, b.cluster.Status().ReadQuorum)
	})
}
