package sim

import (
	"fmt"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/stemedb/stemedb/record"
	"github.com/stemedb/stemedb/server/internal/cluster"
	"github.com/stemedb/stemedb/server/internal/control"
	"github.com/stemedb/stemedb/server/internal/vfs/memfs"
)

// refuseReads makes reads of the machine's WAL volume fail for a while; if the
// process ends because of that, it is restarted.
func (m *machine) refuseReads(d time.Duration) {
	m.disk.Fail(memfs.OpRead, walDir, 0, -1, syscall.EIO)
	time.Sleep(d)
	m.w.mendDisk(m)
}

// A single node grows to three, and its disk cannot be read for some seconds
// during each join. The newcomers' cursors do not pass records that they did not
// get.
func TestGrowthDuringAnOutageOfReadsMissesNothing(t *testing.T) {
	scenario(t, 1, control.Timings{}, func(w *world) {
		n0 := w.machines[0]
		var all []*record.Assertion
		for i := range 40 {
			all = append(all, claim("code://x", fmt.Sprint("acknowledged ", i)))
			require.NoError(t, n0.put(all[i]))
		}
		time.Sleep(10 * time.Second)
		for len(w.machines) < 3 {
			n := w.addMachine(1)
			n.start()
			n0.refuseReads(20 * time.Second)
			w.settle()
			for _, a := range all {
				require.NoError(t, n.read(a, cluster.Local), "%s is whole", n.name)
			}
		}
		w.crash(n0, memfs.KillProcess, false)
		time.Sleep(15 * time.Second)
		for _, a := range all {
			requireSeenOrUnavailable(t, w.machines[1], a)
			requireSeenOrUnavailable(t, w.machines[2], a)
		}
	})
}

// A replacement loses a record while it is being refilled, and recovers it. That
// does not make it whole.
func TestLossThatAReplacedMemberTakesBackMakesItNotWhole(t *testing.T) {
	scenario(t, 3, control.Timings{}, func(w *world) {
		b, others := w.leader()
		a, c := others[0], others[1]
		rotten := claim("code://r", "soon rotten")
		require.NoError(t, a.put(rotten))
		time.Sleep(40 * time.Second)
		// b's log accepts no further writes, and stays readable.
		b.disk.Fail(memfs.OpSync, walDir, 0, -1, syscall.EIO)
		acked := claim("code://w", "acknowledged by a and c")
		require.NoError(t, a.put(acked))
		require.Error(t, b.read(acked, cluster.Local))
		w.crash(c, memfs.LoseAll, true)
		c.wipeBoth()
		w.net.Cut(a.name, c.name)
		w.startMachine(c)
		time.Sleep(20 * time.Second)
		require.NoError(t, c.read(rotten, cluster.Local))
		require.Error(t, c.read(acked, cluster.Local))
		w.net.Isolate(c.name)
		c.rot("soon rotten")
		require.Error(t, c.read(rotten, cluster.Local))
		time.Sleep(80 * time.Second)
		w.net.Rejoin(c.name)
		w.net.Cut(a.name, c.name)
		time.Sleep(2 * time.Minute)
		require.NotNil(t, b.node.Control().State().Change, "c lacks the records that only a holds")
		w.crash(a, memfs.KillProcess, false)
		time.Sleep(10 * time.Second)
		requireSeenOrUnavailable(t, b, acked)
		requireSeenOrUnavailable(t, c, acked)
	})
}
