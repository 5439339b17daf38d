package sim

import (
	"fmt"
	"os"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/stemedb/stemedb/server/internal/vfs/memfs"
)

// defaultSeeds is how many schedules `make test` runs.
const defaultSeeds = 200

var verbose = os.Getenv("STEMEDB_SIM_SEED") != ""

// seeds are those to run, by the environment.
func seeds(t *testing.T) []uint64 {
	if one := os.Getenv("STEMEDB_SIM_SEED"); one != "" {
		n, err := strconv.ParseUint(one, 10, 64)
		require.NoError(t, err)
		return []uint64{n}
	}
	count := defaultSeeds
	if testing.Short() {
		count = 10
	}
	if many := os.Getenv("STEMEDB_SIM_SEEDS"); many != "" {
		n, err := strconv.Atoi(many)
		require.NoError(t, err)
		count = n
	}
	all := make([]uint64, count)
	for i := range all {
		all[i] = uint64(i + 1)
	}
	return all
}

// TestFaults: three nodes, clients, and a schedule of crashes that lose what
// was not synced, of cuts and of lost volumes. Nothing acknowledged is missing
// in any later quorum read, and in the end each node alone holds everything.
func TestFaults(t *testing.T) {
	for _, seed := range seeds(t) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) { faults(t, seed) })
		})
	}
}

func faults(t *testing.T, seed uint64) {
	w := newWorld(t, seed, 3)
	defer w.close()
	for _, m := range w.machines {
		m.start()
	}
	w.settle()
	c := w.startClients(seed, 3, 2)
	defer c.end()
	steps := 6 + w.rng.IntN(8)
	for range steps {
		w.step()
	}
	w.heal()
	w.settle()
	time.Sleep(2 * time.Second)
	c.end()
	// What the last writes left behind spreads by itself.
	deadline := time.Now().Add(time.Minute)
	for {
		var missing []string
		for _, m := range w.machines {
			missing = append(missing, c.missingAt(m)...)
		}
		if len(missing) == 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("seed %d: %d of %d acknowledged facts are missing, such as %v", seed, len(missing), len(c.facts), missing[:min(5, len(missing))])
		}
		time.Sleep(time.Second)
	}
	require.Empty(t, c.wrong, "seed %d", seed)
	require.Positive(t, c.writes, "no write was acknowledged: the schedule tests nothing")
	require.Positive(t, c.reads, "no read was answered: the schedule tests nothing")
	w.logf("%d writes acknowledged, %d refused, %d reads, %d steps", c.writes, c.failed, c.reads, steps)
}

// step draws one fault, lets it last, and perhaps mends it.
func (w *world) step() {
	m := w.machines[w.rng.IntN(len(w.machines))]
	other := w.machines[w.rng.IntN(len(w.machines))]
	last := func(most time.Duration) { time.Sleep(time.Duration(w.rng.Int64N(int64(most)))) }
	switch n := w.rng.IntN(20); {
	case n < 6:
		mode := []memfs.Mode{memfs.KillProcess, memfs.LoseAll, memfs.LoseSome, memfs.LoseSome}[w.rng.IntN(4)]
		power := w.rng.IntN(2) == 0
		w.logf("crash %s (mode %d, power off %v)", m.name, mode, power)
		w.crash(m, mode, power)
		last(15 * time.Second)
		w.startMachine(m)
		last(10 * time.Second)
	case n < 8:
		w.logf("crash all")
		for _, m := range w.machines {
			w.crash(m, memfs.LoseSome, true)
		}
		last(5 * time.Second)
		for _, m := range w.machines {
			w.startMachine(m)
		}
		last(20 * time.Second)
	case n < 10:
		w.logf("restart %s", m.name)
		w.stopMachine(m)
		w.startMachine(m)
		last(5 * time.Second)
	case n < 13 && m != other:
		w.logf("cut %s -> %s", m.name, other.name)
		w.net.CutOneWay(m.name, other.name)
		last(30 * time.Second)
		if w.rng.IntN(3) > 0 {
			w.net.HealAll()
		}
	case n < 16:
		w.logf("isolate %s", m.name)
		w.net.Isolate(m.name)
		last(40 * time.Second)
		w.net.Rejoin(m.name)
		last(5 * time.Second)
	case n < 18:
		// A volume may be lost when the others can refill it: one loss at a
		// time is what is promised.
		w.heal()
		w.settle()
		w.logf("%s loses both volumes", m.name)
		w.crash(m, memfs.LoseAll, true)
		m.wipe()
		last(10 * time.Second)
		w.startMachine(m)
		last(30 * time.Second)
	case n < 19:
		w.logf("the disk of %s is slow", m.name)
		slow := time.Duration(1+w.rng.IntN(30)) * time.Millisecond
		m.disk.SetLatency(func(op memfs.Op) time.Duration {
			if op.Kind == memfs.OpSync {
				return slow
			}
			return 0
		})
		last(10 * time.Second)
		m.disk.SetLatency(nil)
	default:
		last(20 * time.Second)
	}
}

// heal mends the network and starts whatever is down.
func (w *world) heal() {
	w.net.HealAll()
	for _, m := range w.machines {
		if m.node == nil {
			w.startMachine(m)
		}
	}
}
