package control_test

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/stemedb/stemedb/server/internal/control"
)

func TestSingleNodeFormsAlone(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t)
		n := w.add("a")
		n.join = nil
		n.start()
		defer w.close()
		w.settled(1)
		require.True(t, n.control.IsLeader())
		id := n.control.State().ClusterID
		n.kill()
		n.start()
		w.settled(1)
		require.Equal(t, id, n.control.State().ClusterID)
	})
}

func TestThreeFormInEveryOrder(t *testing.T) {
	orders := [][]string{{"a", "b", "c"}, {"a", "c", "b"}, {"b", "a", "c"}, {"b", "c", "a"}, {"c", "a", "b"}, {"c", "b", "a"}}
	for _, order := range orders {
		t.Run(strings.Join(order, ""), func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				w := newWorld(t, "a", "b", "c")
				defer w.close()
				for _, name := range order {
					w.node[name].start()
					if name != order[2] {
						time.Sleep(10 * time.Second)
						require.False(t, w.node[name].control.State().Formed(), "not before all have answered")
					}
				}
				w.settled(3)
			})
		})
	}
}

func TestMissingNodeIsNamed(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, "a", "b", "c")
		defer w.close()
		w.node["a"].start()
		w.node["b"].start()
		time.Sleep(10 * time.Second)
		require.Contains(t, w.node["a"].control.Phase(), peerAddr("c"))
		require.NotContains(t, w.node["a"].control.Phase(), peerAddr("b")+" has not")
		require.Contains(t, w.node["b"].control.Phase(), peerAddr("c"))

		// c runs, but cannot reach a.
		w.net.CutOneWay(host("c"), host("a"))
		w.node["c"].start()
		time.Sleep(20 * time.Second)
		require.False(t, w.node["a"].control.State().Formed())
		require.Contains(t, w.node["a"].control.Phase(), peerAddr("c")+" does not answer")
		w.net.HealAll()
		w.settled(3)
	})
}

func TestRecordsWithoutClusterAreNotOverlooked(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, "a", "b", "c")
		defer w.close()
		w.node["b"].data.write(10)
		w.start()
		time.Sleep(20 * time.Second)
		require.False(t, w.node["a"].control.State().Formed())
		require.Contains(t, w.node["a"].control.Phase(), peerAddr("b")+" has records")
		require.Contains(t, w.node["b"].control.Phase(), "this node has records")
	})
}

// The founder is killed at intervals of a few milliseconds during forming, with
// its volumes kept or emptied: in each case, exactly one cluster forms.
func TestFounderDiesAtAnyStep(t *testing.T) {
	for _, wipe := range []bool{false, true} {
		for after := time.Duration(0); after < 4*time.Second; after += 130 * time.Millisecond {
			name := after.String()
			if wipe {
				name += " emptied"
			}
			t.Run(name, func(t *testing.T) {
				bubble(t, func(t *testing.T) {
					w := newWorld(t, "a", "b", "c")
					defer w.close()
					w.start()
					time.Sleep(after)
					founder := w.node["a"]
					founder.kill()
					if wipe {
						founder.wipe()
					}
					time.Sleep(3 * time.Second)
					founder.start()
					w.settled(3)
				})
			})
		}
	}
}

// A half-written founding must not prevent founding forever.
func TestFoundingCutBetweenItsTwoWrites(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, "a", "b", "c")
		defer w.close()
		require.NoError(t, control.Sealed(w.node["a"].disk.Open()).Stable().SetUint64([]byte("CurrentTerm"), 1))
		w.start()
		w.settled(3)
	})
}

func TestLateNodeJoinsAndClusterGrows(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, "a")
		defer w.close()
		w.start()
		w.settled(1)
		w.node["a"].data.write(100)
		for i, name := range []string{"b", "c", "d", "e", "f"} {
			w.add(name).start()
			w.settled(i + 2)
		}
		// All members can be restarted one after the other.
		for _, n := range w.node {
			n.stop()
			n.start()
			w.settled(6)
		}
	})
}

func TestJoinWaitsForCatchUp(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, "a", "b", "c")
		defer w.close()
		w.start()
		w.settled(3)
		w.node["a"].data.write(100) // acknowledged by a majority
		w.node["b"].data.write(100)
		w.add("d").start()
		a, d := w.node["a"].control, w.node["d"]
		w.eventually(10*time.Second, func() bool { return a.State().Change != nil }, "a change opens")
		time.Sleep(time.Minute)
		s := a.State()
		require.NotNil(t, s.Change, "nobody has pulled any log")
		require.Equal(t, control.Join, s.Change.Kind)
		_, need := s.ReadSet()
		require.Equal(t, 2, need, "reads follow the old rule")
		ids := func(names ...string) func(string) bool {
			return func(id string) bool {
				for _, name := range names {
					if w.node[name].id() == id {
						return true
					}
				}
				return false
			}
		}
		require.False(t, s.WriteQuorum(ids("a", "b")), "a majority of three, but not of four")
		require.False(t, s.WriteQuorum(ids("a", "d")), "not a majority of the old set")
		require.True(t, s.WriteQuorum(ids("a", "b", "d")))
		w.eventually(5*time.Second, func() bool { return len(w.node["b"].control.ChangeWaitsFor()) > 0 }, "every node gives the reason")
		require.Contains(t, strings.Join(w.node["b"].control.ChangeWaitsFor(), " "), d.id())
		w.settled(4)
	})
}

func TestNodeThatLostItsTableOnlyIsRefused(t *testing.T) {
	for _, first := range [][]string{{"a"}, {"a", "b", "c"}} {
		bubble(t, func(t *testing.T) {
			w := newWorld(t, first...)
			n := w.node["a"]
			n.clusterID = "abc"
			err := n.tryStart()
			n.control = nil
			require.ErrorContains(t, err, "must not vote again")
			if len(first) == 1 {
				require.ErrorContains(t, err, "do not empty the volumes, nobody could refill them")
			} else {
				require.ErrorContains(t, err, "empty both volumes of this node, so that it joins")
			}
		})
	}
}

// A node that has lost its WAL volume and whose join list names only itself
// belonged to a cluster of several.
func TestNodeWhoseVolumesHadOtherMembersFoundsNothing(t *testing.T) {
	for _, empty := range []bool{true, false} {
		bubble(t, func(t *testing.T) {
			w := newWorld(t)
			n := w.add("a")
			n.join, n.shared, n.data.empty = nil, true, empty
			n.start()
			defer w.close()
			time.Sleep(time.Minute)
			require.False(t, n.control.State().Formed())
			require.Contains(t, n.control.Phase(), "STEMEDB_CLUSTER_JOIN")
		})
	}
}
