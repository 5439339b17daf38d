package sim

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/stemedb/stemedb/server/internal/control"
	"github.com/stemedb/stemedb/server/internal/control/raftmem"
	"github.com/stemedb/stemedb/server/internal/vfs/memfs"
)

// volumes are copies of both volumes of a machine.
type volumes struct {
	wal, db map[string][]byte
	raft    map[string]*raftmem.Disk // on the WAL volume
}

func (m *machine) copyVolumes() volumes {
	v := volumes{wal: m.snapshot(walDir), db: m.snapshot(dbDir), raft: map[string]*raftmem.Disk{}}
	m.raftMu.Lock()
	defer m.raftMu.Unlock()
	for incarnation, disk := range m.raft {
		c, err := disk.Copy()
		require.NoError(m.w.t, err)
		v.raft[incarnation] = c
	}
	return v
}

// rollBackRaft restores the control table's storage; the machine is down.
func (m *machine) rollBackRaft(old volumes) {
	m.raftMu.Lock()
	defer m.raftMu.Unlock()
	m.raft = old.raft
}

// TestQuorumReadsMissNothingAfterAVolumeWasPutBack: a write is acknowledged by n0
// and n1 while n2 is cut off; then n0's volumes are restored to an older copy and
// n1 is down. No quorum read of n0 and n2 misses the write, and once n1 is back
// the cluster is whole again.
func TestQuorumReadsMissNothingAfterAVolumeWasPutBack(t *testing.T) {
	for _, which := range []string{"wal", "both", "db"} {
		for _, live := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, copied live %t", which, live), func(t *testing.T) {
				scenario(t, 3, control.Timings{}, func(w *world) {
					n0, n1, n2 := w.machines[0], w.machines[1], w.machines[2]
					require.NoError(t, n0.put(claim("code://x", "before")))
					var old volumes
					if live {
						time.Sleep(10 * time.Second)
						old = n0.copyVolumes()
					} else {
						w.stopMachine(n0)
						old = n0.copyVolumes()
						w.startMachine(n0)
						w.settle()
					}
					// n2 sees a few records from after the copy.
					require.NoError(t, n0.put(claim("code://x", "after the copy")))
					time.Sleep(time.Second)
					w.net.Isolate("n2")
					time.Sleep(2 * time.Second)
					lost := claim("code://x", "acknowledged by n0 and n1")
					require.NoError(t, n0.put(lost))
					time.Sleep(30 * time.Second)
					w.stopMachine(n0)
					if which != "db" {
						n0.rollBack(walDir, old.wal)
						n0.rollBackRaft(old)
					}
					if which != "wal" {
						n0.rollBack(dbDir, old.db)
					}
					w.crash(n1, memfs.KillProcess, false)
					w.net.HealAll()
					w.startMachine(n0)
					for range 60 {
						time.Sleep(500 * time.Millisecond)
						w.restartEnded()
						if n0.up() {
							requireSeenOrUnavailable(t, n0, lost)
							requireSeenOrUnavailable(t, n2, lost)
						}
					}
					if which != "db" {
						require.False(t, n0.node.Store().Whole(), "the loss is known")
					}
					w.startMachine(n1)
					w.settle()
					for _, m := range w.machines {
						require.NoError(t, m.get(lost))
					}
				})
			})
		}
	}
}

// TestRegrownLogIsStillALoss: the volumes are restored to a copy that was taken
// while the member ran, and its log grows past the cursor of the only peer that
// knows of the loss before that peer is back.
func TestRegrownLogIsStillALoss(t *testing.T) {
	scenario(t, 3, control.Timings{}, func(w *world) {
		n0, n1, n2 := w.machines[0], w.machines[1], w.machines[2]
		require.NoError(t, n0.put(claim("code://x", "before")))
		time.Sleep(10 * time.Second)
		old := n0.copyVolumes()
		w.net.Isolate("n2")
		time.Sleep(2 * time.Second)
		lost := claim("code://x", "in the log until the rollback")
		require.NoError(t, n0.put(lost))
		time.Sleep(time.Minute)
		end := n0.node.Store().End()
		w.crash(n0, memfs.KillProcess, false)
		w.crash(n1, memfs.KillProcess, false)
		n0.rollBack(walDir, old.wal)
		n0.rollBackRaft(old)
		n0.rollBack(dbDir, old.db)
		w.net.HealAll()
		w.startMachine(n0)
		time.Sleep(30 * time.Second)
		// n2 has seen none of the lost records: no reachable member knows of the loss.
		for i := 0; n0.node.Store().End() <= end; i++ {
			require.NoError(t, n2.put(claim("code://y", fmt.Sprint("grown again ", i))))
		}
		time.Sleep(5 * time.Second)
		require.True(t, n0.node.Store().Whole())
		w.startMachine(n1)
		for range 60 {
			time.Sleep(500 * time.Millisecond)
			w.restartEnded()
		}
		w.settle()
		require.NotZero(t, n0.losses(), "the loss is known")
		for _, m := range w.machines {
			require.NoError(t, m.get(lost))
			_, err := m.node.Store().Assertion(simProject, lost.ID())
			require.NoError(t, err)
		}
	})
}

// losses is the number of losses recorded in the machine's log.
func (m *machine) losses() int { return m.node.Store().Health().Losses }
