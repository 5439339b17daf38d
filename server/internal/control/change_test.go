package control_test

import (
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"github.com/stemedb/stemedb/server/internal/control"
)

// everywhere writes n bytes to every member's log, like acknowledged writes.
func (w *world) everywhere(n uint64) {
	for _, node := range w.node {
		node.data.write(n)
	}
	w.sync()
}

func (n *node) gauge(name string) float64 {
	families, err := n.reg.Gather()
	require.NoError(n.w.t, err)
	for _, f := range families {
		if f.GetName() == name {
			return f.GetMetric()[0].GetGauge().GetValue()
		}
	}
	n.w.t.Fatalf("no metric %s", name)
	return 0
}

var _ prometheus.Gatherer = (*prometheus.Registry)(nil)

func TestEmptiedNodeIsReplaced(t *testing.T) {
	for _, victim := range []string{"a", "b", "c"} {
		t.Run(victim, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				w := newWorld(t, "a", "b", "c")
				defer w.close()
				w.start()
				w.settled(3)
				w.everywhere(100)
				id := w.node["a"].control.State().ClusterID
				n := w.node[victim]
				old := n.id()
				n.kill()
				n.wipe()
				time.Sleep(5 * time.Second)
				n.start()
				other := w.node[map[string]string{"a": "b", "b": "c", "c": "a"}[victim]].control
				w.eventually(20*time.Second, func() bool { return other.State().Change != nil }, "a replacement opens")
				change := other.State().Change
				require.Equal(t, control.Replace, change.Kind)
				require.Equal(t, n.id(), change.Subject)
				candidates, need := other.State().ReadSet()
				require.Len(t, candidates, 2)
				require.Equal(t, 2, need)
				time.Sleep(10 * time.Second)
				require.NotNil(t, other.State().Change, "the newcomer holds nothing yet")
				require.False(t, other.State().WriteQuorum(func(m string) bool { return m == n.id() || m == w.node["a"].id() && victim != "a" }))
				w.settled(3)
				_, there := other.State().MemberByID(old)
				require.False(t, there)
				require.Equal(t, id, n.control.State().ClusterID)
			})
		})
	}
}

// A node that is emptied again while it is being replaced starts over.
func TestEmptiedTwice(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, "a", "b", "c")
		defer w.close()
		w.start()
		w.settled(3)
		w.everywhere(100)
		n := w.node["c"]
		for range 3 {
			n.kill()
			n.wipe()
			n.start()
			w.eventually(20*time.Second, func() bool {
				change := w.node["a"].control.State().Change
				return change != nil && change.Subject == n.id()
			}, "the change is about the newest incarnation")
		}
		w.settled(3)
	})
}

func TestTwoEmptiedNodesCannotCloseAndAreVisible(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, "a", "b", "c")
		defer w.close()
		w.start()
		w.settled(3)
		w.everywhere(100)
		w.node["b"].kill()
		w.node["b"].wipe()
		w.node["b"].start()
		a := w.node["a"].control
		w.eventually(20*time.Second, func() bool { return a.State().Change != nil }, "b's replacement opens")
		// b votes by now, but holds nothing. Then c loses its volumes too.
		time.Sleep(5 * time.Second)
		w.node["c"].kill()
		w.node["c"].wipe()
		w.node["c"].start()
		time.Sleep(5 * time.Minute)
		w.sync()
		time.Sleep(time.Minute)
		s := a.State()
		require.NotNil(t, s.Change, "records that only b and c held may be lost")
		candidates, need := s.ReadSet()
		require.Len(t, candidates, 1)
		require.Equal(t, 2, need, "reads fail")
		require.Contains(t, strings.Join(a.ChangeWaitsFor(), " "), "2 whole members of the old set are needed, only 1")
		require.Contains(t, w.node["c"].control.Phase(), "waiting to be admitted to cluster")
		require.Greater(t, w.node["a"].gauge("stemedb_control_change_open_seconds"), 300.0)
		require.Equal(t, 1.0, w.node["a"].gauge("stemedb_control_members_whole"))
		require.Equal(t, 0.0, w.node["b"].gauge("stemedb_control_whole"))
	})
}

func TestLossIsRefilled(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, "a", "b", "c")
		defer w.close()
		w.start()
		w.settled(3)
		w.everywhere(100)
		b := w.node["b"]
		before := b.control.State().Generation
		b.data.reset()
		require.NoError(t, b.control.ReportNotWhole(t.Context()))
		require.Greater(t, b.control.State().Generation, before)
		me, _ := b.control.Self()
		require.False(t, me.Whole, "at once")
		w.eventually(10*time.Second, func() bool { return b.control.State().Change != nil }, "a refill opens")
		require.Equal(t, control.Refill, b.control.State().Change.Kind)
		// It loses records again meanwhile: the marks no longer count.
		generation := b.control.State().Generation
		require.NoError(t, b.control.ReportNotWhole(t.Context()))
		require.Greater(t, b.control.State().Change.Generation, generation)
		w.settled(3)
	})
}

// Every member lost records: none can prove anything about another.
func TestAllNotWhole(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, "a", "b", "c")
		defer w.close()
		w.start()
		w.settled(3)
		w.everywhere(100)
		for _, n := range w.node {
			n.data.reset()
			require.NoError(t, n.control.ReportNotWhole(t.Context()))
		}
		for range 20 {
			w.sync()
			time.Sleep(5 * time.Second)
		}
		s := w.node["a"].control.State()
		candidates, _ := s.ReadSet()
		require.Empty(t, candidates)
		require.NotNil(t, s.Change)
	})
}

// While c is down, a and b cannot fill a newcomer: the join waits for c, and says
// so.
func TestJoinWhileAMemberIsDown(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, "a", "b", "c")
		defer w.close()
		w.start()
		w.settled(3)
		w.everywhere(100)
		w.node["c"].kill()
		w.add("d").start()
		a := w.node["a"].control
		for range 10 {
			w.sync()
			time.Sleep(5 * time.Second)
		}
		require.NotNil(t, a.State().Change)
		require.Equal(t, []string{w.node["c"].id() + " does not answer"}, a.ChangeWaitsFor())
		w.node["c"].start()
		w.settled(4)
	})
}

func TestLeaderDiesDuringChange(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, "a", "b", "c")
		defer w.close()
		w.start()
		w.settled(3)
		w.everywhere(100)
		w.add("d").start()
		w.eventually(10*time.Second, func() bool { return w.node["d"].control.State().Change != nil }, "the newcomer has the table")
		time.Sleep(2 * time.Second)
		leader := w.leader()
		leader.kill()
		w.eventually(20*time.Second, func() bool { return w.leader() != nil }, "another leader")
		leader.start()
		w.settled(4)
	})
}

func TestAddressesFollowTheNode(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, "a", "b", "c")
		defer w.close()
		w.start()
		w.settled(3)
		// Pods restart with other addresses and the same names.
		for _, n := range w.node {
			n.kill()
			w.net.Host(host(n.name)).Move()
		}
		for _, n := range w.node {
			n.start()
		}
		w.settled(3)
	})
}

// c lost records and is refilled by a and b, of which b does not answer. It must
// not count before it holds their records: a record that a and c acknowledged
// earlier would be missing in a read of b and c.
func TestALossThatOthersCanMakeGoodIsNotAccepted(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, "a", "b", "c")
		defer w.close()
		w.start()
		w.settled(3)
		w.everywhere(100)
		a, c := w.node["a"], w.node["c"]
		c.data.reset()
		require.NoError(t, c.control.ReportNotWhole(t.Context()))
		w.eventually(10*time.Second, func() bool { return a.control.State().Change != nil }, "a refill opens")
		for _, n := range []*node{a, c} {
			require.ErrorContains(t, n.control.AcceptLoss(t.Context(), "c"), "enough to refill c")
		}
		me, _ := c.control.Self()
		require.False(t, me.Whole)
		require.NoError(t, a.control.AcceptLoss(t.Context(), "b"), "it is whole")
		w.settled(3)
	})
}
