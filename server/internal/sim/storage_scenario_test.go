package sim

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/stemedb/stemedb/server/internal/cluster"
	"github.com/stemedb/stemedb/server/internal/control"
	"github.com/stemedb/stemedb/server/internal/control/raftmem"
	"github.com/stemedb/stemedb/server/internal/store"
	"github.com/stemedb/stemedb/server/internal/vfs/memfs"
)

// One member is refilled and reads all of the others' logs. One of these has a
// damaged record, which the third member holds intact.
func TestRefillThatMeetsARottenRecordGetsItFromTheThirdMember(t *testing.T) {
	scenario(t, 3, control.Timings{}, func(w *world) {
		n0, n1, n2 := w.machines[0], w.machines[1], w.machines[2]
		rotten := claim("code://rotten", "a rotten record")
		require.NoError(t, n0.put(rotten))
		for i := range 20 {
			require.NoError(t, n0.put(claim("code://other", fmt.Sprint(i))))
		}
		time.Sleep(30 * time.Second) // every member holds everything
		n1.rot("a rotten record")
		w.crash(n2, memfs.LoseAll, true)
		n2.wipeBoth()
		time.Sleep(5 * time.Second)
		w.startMachine(n2)
		w.settle()
		for _, m := range w.machines {
			require.NoError(t, m.read(rotten, cluster.Local))
		}
	})
}

// Two members have one damaged record each, different ones: the cluster still has
// every byte, so nothing is lost.
func TestRottenRecordsOfTwoMembersAreNoLoss(t *testing.T) {
	for _, restart := range []bool{false, true} {
		t.Run(fmt.Sprint("restart ", restart), func(t *testing.T) {
			scenario(t, 3, control.Timings{}, func(w *world) {
				n0, n1 := w.machines[0], w.machines[1]
				x, y := claim("code://x", "rotten record x"), claim("code://y", "rotten record y")
				require.NoError(t, n0.put(x))
				require.NoError(t, n0.put(y))
				time.Sleep(30 * time.Second)
				n0.rot("rotten record x")
				n1.rot("rotten record y")
				if restart {
					for _, m := range w.machines[:2] {
						w.stopMachine(m)
						w.startMachine(m)
					}
				} else {
					require.NoError(t, n0.read(x, cluster.Local))
					require.NoError(t, n1.read(y, cluster.Local))
				}
				w.settle()
				for _, m := range w.machines {
					require.NoError(t, m.read(x, cluster.Local))
					require.NoError(t, m.read(y, cluster.Local))
				}
			})
		})
	}
}

// Damage whose records cannot be fetched for a while is reported as a loss, and
// the report is withdrawn when they can.
func TestReportedLossIsTakenBackWhenTheRecordsAreReadAgain(t *testing.T) {
	scenario(t, 3, control.Timings{}, func(w *world) {
		n0, n1, n2 := w.machines[0], w.machines[1], w.machines[2]
		x, y := claim("code://x", "rotten record x"), claim("code://y", "rotten record y")
		require.NoError(t, n0.put(x))
		require.NoError(t, n0.put(y))
		time.Sleep(30 * time.Second)
		n0.rot("rotten record x")
		n1.rot("rotten record y")
		// Each of the two is found while the only other copy is unreachable.
		w.net.Isolate(n2.name)
		w.net.Cut(n0.name, n1.name)
		require.Error(t, n0.read(x, cluster.Local))
		require.Error(t, n1.read(y, cluster.Local))
		time.Sleep(3 * time.Minute)
		w.net.HealAll()
		w.settle()
		for _, m := range w.machines {
			require.NoError(t, m.read(x, cluster.Local))
			require.NoError(t, m.read(y, cluster.Local))
		}
	})
}

// A single node that lost a record, or its WAL volume, answers from the remaining
// records until an operator accepts the loss.
func TestSingleNodeThatLostRecordsServesWhatItHas(t *testing.T) {
	for _, lost := range []string{"a record", "the WAL volume"} {
		t.Run(lost, func(t *testing.T) {
			scenario(t, 1, control.Timings{}, func(w *world) {
				n0 := w.machines[0]
				x, y := claim("code://x", "rotten record"), claim("code://y", "fine")
				require.NoError(t, n0.put(y))
				for i := range 400 {
					require.NoError(t, n0.put(claim("code://z", fmt.Sprint(i))))
				}
				require.NoError(t, n0.put(x))
				time.Sleep(time.Minute)
				if lost == "a record" {
					n0.rot("rotten record")
					require.Error(t, n0.read(x, cluster.Local))
					time.Sleep(time.Minute)
				} else {
					w.crash(n0, memfs.LoseAll, true)
					n0.disk.Wipe(walDir)
					n0.raft = map[string]*raftmem.Disk{}
					w.startMachine(n0)
				}
				for range 2 {
					for i := 0; n0.node.Ready() != nil; i++ {
						require.Less(t, i, 60, "%v", n0.node.Ready())
						time.Sleep(time.Second)
					}
					time.Sleep(10 * time.Second)
					require.NoError(t, n0.get(y))
					require.NotEmpty(t, n0.node.Cluster().Incomplete())
					require.NoError(t, n0.put(claim("code://after", fmt.Sprint(time.Now()))))
					w.crash(n0, memfs.KillProcess, false)
					w.startMachine(n0)
				}
				time.Sleep(10 * time.Second)
				defer w.supervise()()
				require.NoError(t, n0.node.Control().AcceptLoss(context.Background(), n0.name))
				time.Sleep(10 * time.Second)
				w.settle()
				require.Empty(t, n0.node.Cluster().Incomplete())
				require.True(t, n0.node.Store().Whole())
				if lost == "a record" {
					require.ErrorIs(t, n0.get(x), store.ErrNotFound)
					require.NoError(t, n0.put(x))
					require.NoError(t, n0.get(x))
				}
			})
		})
	}
}

// Two of three members lost records permanently. An operator accepts the loss of
// one of them, and the other one is refilled.
func TestAcceptedLossEndsAStateThatNothingElseEnds(t *testing.T) {
	scenario(t, 3, control.Timings{}, func(w *world) {
		n0, n1, n2 := w.machines[0], w.machines[1], w.machines[2]
		x := claim("code://x", "x")
		require.NoError(t, n0.put(x))
		for i := range 2000 { // until x is in a pack only
			require.NoError(t, n0.put(claim("code://other", fmt.Sprint(i))))
		}
		for _, m := range []*machine{n0, n1} { // a clean stop writes the index's marker
			w.stopMachine(m)
			w.startMachine(m)
			w.settle()
		}
		time.Sleep(time.Minute)
		for _, m := range []*machine{n0, n1} {
			w.crash(m, memfs.LoseAll, true)
			m.disk.Wipe(dbDir)
		}
		w.startMachine(n0)
		w.startMachine(n1)
		time.Sleep(time.Minute)
		require.ErrorIs(t, n2.get(x), cluster.ErrUnavailable)
		require.Error(t, n2.node.Control().AcceptLoss(context.Background(), "nobody"))
		require.NoError(t, n2.node.Control().AcceptLoss(context.Background(), n1.name))
		w.settle()
		require.NoError(t, n2.put(claim("code://x", "y")))
	})
}
