package sim

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/stemedb/stemedb/server/internal/cluster"
	"github.com/stemedb/stemedb/server/internal/control"
	"github.com/stemedb/stemedb/server/internal/vfs/memfs"
)

// A single node with an unreadable record is scaled up. It keeps serving the
// rest, whether the loss was known before or is found because of the join, and
// grows when the loss is accepted.
func TestSingleNodeWithALossServesWhileItIsScaledUp(t *testing.T) {
	for _, known := range []bool{true, false} {
		t.Run(fmt.Sprint("known before ", known), func(t *testing.T) {
			scenario(t, 1, control.Timings{}, func(w *world) {
				n0 := w.machines[0]
				x, y := claim("code://x", "rotten record"), claim("code://y", "fine")
				require.NoError(t, n0.put(y))
				for i := range 400 {
					require.NoError(t, n0.put(claim("code://z", fmt.Sprint(i))))
				}
				require.NoError(t, n0.put(x))
				time.Sleep(time.Minute)
				n0.rot("rotten record")
				whole := func() bool { return n0.node.Control().State().Members[0].Whole }
				if known {
					require.Error(t, n0.read(x, cluster.Local))
					time.Sleep(2 * time.Minute)
					require.False(t, whole())
				}
				n1 := w.addMachine(1)
				n1.start()
				for range 36 {
					time.Sleep(5 * time.Second)
					require.NoError(t, n0.node.Ready())
					require.NoError(t, n0.get(y))
					require.NoError(t, n0.put(claim("code://after", fmt.Sprint(time.Now()))))
				}
				require.False(t, whole())
				require.NotEmpty(t, n0.node.Cluster().Incomplete())
				if known {
					require.ErrorContains(t, n1.node.Ready(), "stemedb cluster accept-loss n0 --yes")
					require.Nil(t, n0.node.Control().State().Change)
				}
				defer w.supervise()()
				require.NoError(t, n0.node.Control().AcceptLoss(context.Background(), n0.name))
				w.settleWithin(10 * time.Minute)
				require.NoError(t, n1.get(y))
				require.Empty(t, n0.node.Cluster().Incomplete())
			})
		})
	}
}

// stuckJoin adds a fourth machine that answers the leader but never gets the
// others' logs.
func (w *world) stuckJoin() (leader, n3 *machine, others []*machine) {
	w.t.Helper()
	leader, others = w.leader()
	for i := range 20 {
		require.NoError(w.t, others[0].put(claim("code://other", fmt.Sprint(i))))
		require.NoError(w.t, others[1].put(claim("code://other", fmt.Sprint("more", i))))
	}
	n3 = w.addMachine(1)
	for _, m := range others {
		w.net.Cut(m.name, n3.name)
	}
	n3.start()
	for i := 0; leader.node.Control().State().Change == nil; i++ {
		require.Less(w.t, i, 60, "%s does not join", n3.name)
		time.Sleep(time.Second)
	}
	return leader, n3, others
}

// A node joins, answers, and pulls new records of one log, but nothing of the
// others. Its join is abandoned, so that writes no longer need its
// acknowledgement, and is retried later.
func TestJoinThatGetsNowhereIsGivenUp(t *testing.T) {
	scenario(t, 3, control.Timings{GiveUpAfter: time.Minute}, func(w *world) {
		leader, n3, others := w.stuckJoin()
		for i := 0; leader.node.Control().State().Change != nil; i++ {
			require.Less(t, i, 120, "the join stays open: %v", leader.node.Control().ChangeWaitsFor())
			time.Sleep(time.Second)
			require.NoError(t, leader.put(claim("code://meanwhile", fmt.Sprint(i))))
		}
		require.Len(t, leader.node.Control().State().Members, 3)
		require.NoError(t, n3.node.Err())
		w.crash(others[1], memfs.KillProcess, true)
		time.Sleep(20 * time.Second)
		require.NoError(t, leader.put(claim("code://a", "two of three")))
		w.startMachine(others[1])
		w.net.HealAll()
		w.settle()
		require.Len(t, leader.node.Control().State().Members, 4)
	})
}

// An operator cancels the join of a node that answers. It does not join again at
// once, gives the reason, and joins after a restart.
func TestCancelledJoinIsNotOpenedAgainAtOnce(t *testing.T) {
	scenario(t, 3, control.Timings{}, func(w *world) {
		leader, n3, others := w.stuckJoin()
		time.Sleep(20 * time.Second)
		change := leader.node.Control().State().Change
		require.NotNil(t, change)
		require.NoError(t, leader.node.Control().CancelChange(context.Background(), change.ID))
		w.crash(others[1], memfs.KillProcess, true)
		for i := range 24 {
			time.Sleep(10 * time.Second)
			require.Nil(t, leader.node.Control().State().Change)
			require.NoError(t, leader.put(claim("code://a", fmt.Sprint("two of three ", i))))
		}
		require.ErrorContains(t, n3.node.Ready(), "requests to join again at")
		w.startMachine(others[1])
		w.net.HealAll()
		w.stopMachine(n3)
		w.startMachine(n3)
		began := time.Now()
		w.settle()
		require.Less(t, time.Since(began), time.Minute)
		require.Len(t, leader.node.Control().State().Members, 4)
	})
}

// A node of a cluster that has grown to three still starts with a join list of
// itself. When it loses its WAL volume, it does not found a second cluster, and
// it joins the first one when its list names the others.
func TestNodeOfAGrownClusterThatLostItsWALVolumeFoundsNone(t *testing.T) {
	scenario(t, 1, control.Timings{}, func(w *world) {
		n0 := w.machines[0]
		n0.listed = []string{n0.address()}
		for len(w.machines) < 3 {
			w.addMachine(1).start()
			w.settle()
		}
		x := claim("code://x", "x")
		require.NoError(t, n0.put(x))
		time.Sleep(10 * time.Second)
		w.crash(n0, memfs.LoseAll, true)
		n0.wipe(walDir)
		w.startMachine(n0)
		for range 2 {
			time.Sleep(time.Minute)
			require.False(t, n0.node.Control().State().Formed(), "a second cluster")
			require.ErrorContains(t, n0.node.Ready(), "STEMEDB_CLUSTER_JOIN")
			w.crash(n0, memfs.KillProcess, false)
			w.startMachine(n0)
		}
		w.crash(n0, memfs.KillProcess, false)
		n0.listed = nil
		w.startMachine(n0)
		w.settle()
		require.NoError(t, n0.get(x))
	})
}

// A single node lost an old record, and its loss was accepted. It grows, and
// reading the log behind that record takes longer than GiveUpAfter. The newcomer
// keeps reading, although its cursor stays before the hole.
func TestJoinBehindAHoleIsNotGivenUpWhileItReadsOn(t *testing.T) {
	scenario(t, 1, control.Timings{GiveUpAfter: 15 * time.Second}, func(w *world) {
		n0 := w.machines[0]
		old := claim("code://x", "rotten record")
		require.NoError(t, n0.put(old))
		for i := range 600 {
			require.NoError(t, n0.put(claim("code://z", fmt.Sprint(i, strings.Repeat("z", 4000)))))
		}
		time.Sleep(time.Minute)
		n0.rot("rotten record") // in the log
		n0.rot("rotten record") // in the pack
		require.Error(t, n0.read(old, cluster.Local))
		time.Sleep(2 * time.Minute)
		defer w.supervise()()
		require.NoError(t, n0.node.Control().AcceptLoss(context.Background(), n0.name))
		time.Sleep(30 * time.Second)
		w.net.SetDelay(200*time.Millisecond, 201*time.Millisecond)
		n1 := w.addMachine(1)
		n1.start()
		members := func() *control.State {
			for range 20 * 60 {
				time.Sleep(time.Second)
				if s := n0.node.Control().State(); s.Change == nil && len(s.Members) == 2 {
					return s
				}
			}
			return n0.node.Control().State()
		}
		s := members()
		require.Len(t, s.Members, 2)
		require.EqualValues(t, 1, s.LastChange, "no join was given up")
	})
}

// The DB volume of a single node is full. It serves its records, during and after
// a scale-up too.
func TestASingleNodeOnAFullDBVolumeIsScaledUp(t *testing.T) {
	scenario(t, 1, control.Timings{}, func(w *world) {
		n0 := w.machines[0]
		x := claim("code://x", "x")
		require.NoError(t, n0.put(x))
		time.Sleep(time.Minute)
		n0.disk.SetCapacity(dbDir, 1<<30)
		free, total, err := n0.disk.Free(dbDir)
		require.NoError(t, err)
		n0.disk.SetCapacity(dbDir, total-free)
		time.Sleep(time.Minute)
		require.NoError(t, n0.read(x, cluster.Local))
		n1 := w.addMachine(1)
		n1.start()
		for range 60 {
			time.Sleep(5 * time.Second)
			require.NoError(t, n0.node.Err())
		}
		require.Len(t, n0.node.Control().State().Members, 2)
	})
}
