package sim

import (
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// defaultSeeds is the number of schedules that `make test` runs.
const defaultSeeds = 60

var verbose = os.Getenv("STEMEDB_SIM_SEED") != ""

// failedOnce are seeds beyond the first ones that found a fault; docs/reliability.md
// names it.
var failedOnce = []uint64{20187}

// seeds returns the seeds selected by the environment.
func seeds(t *testing.T) []uint64 {
	t.Helper()
	number := func(name string, otherwise uint64) uint64 {
		text := os.Getenv(name)
		if text == "" {
			return otherwise
		}
		n, err := strconv.ParseUint(text, 10, 64)
		require.NoError(t, err, name)
		return n
	}
	if verbose {
		return []uint64{number("STEMEDB_SIM_SEED", 0)}
	}
	count := uint64(defaultSeeds)
	if testing.Short() {
		count = 10
	}
	all := make([]uint64, number("STEMEDB_SIM_SEEDS", count))
	for i := range all {
		all[i] = number("STEMEDB_SIM_FROM", 1) + uint64(i)
	}
	if os.Getenv("STEMEDB_SIM_FROM") == "" {
		all = append(all, failedOnce...)
	}
	return all
}

// tally sums up the results of the seeds of one run.
type tally struct {
	mu                                   sync.Mutex
	seeds, acked, refused, reads, unread int
	virtual                              time.Duration
	faults                               map[string]int
}

func (s *tally) add(w *world, h *history) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.seeds++
	s.acked, s.refused, s.reads, s.unread = s.acked+h.acked, s.refused+h.refused, s.reads+h.reads, s.unread+h.unread
	s.virtual += time.Since(w.began)
	for name, n := range w.faults {
		s.faults[name] += n
	}
}

func (s *tally) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d seeds held, %.1f virtual hours, %d writes acknowledged (%d refused), %d quorum reads checked (%d refused)",
		s.seeds, s.virtual.Hours(), s.acked, s.refused, s.reads, s.unread)
	for _, name := range slices.Sorted(maps.Keys(s.faults)) {
		fmt.Fprintf(&b, "\n%7d %s", s.faults[name], name)
	}
	return b.String()
}

// TestFaults: three to five nodes, clients, and a random schedule of overlapping
// faults of machines, disks and networks. Every record that was acknowledged or
// shown is in each later quorum read; in the end every node by itself holds all
// of these records, and nothing else.
func TestFaults(t *testing.T) {
	sum := &tally{faults: map[string]int{}}
	t.Cleanup(func() { t.Log(sum) })
	for _, seed := range seeds(t) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) { faults(t, seed, sum) })
		})
	}
}

func faults(t *testing.T, seed uint64, sum *tally) {
	t.Helper()
	w := newWorld(t, seed, 0)
	if seed%2 == 0 {
		w.scrub = -1 // scrubbing must not hide other defects
	}
	for range 3 + w.rng.IntN(3)/2 {
		w.addMachine(seed)
	}
	defer w.close()
	for _, m := range w.machines {
		m.start()
	}
	w.settle()
	w.registerKeys()
	h := newHistory()
	w.history = h
	defer w.supervise()()
	c := w.startClients(seed, h)
	defer c.end()
	for range 5 + w.rng.IntN(8) {
		w.step()
	}
	w.heal()
	w.settle()
	w.requireService(h)
	w.checkKeys(h)
	c.end()
	w.requireVerdict(h)
	sum.add(w, h)
	w.logf("%d writes acknowledged, %d refused, %d reads", h.acked, h.refused, h.reads)
}
