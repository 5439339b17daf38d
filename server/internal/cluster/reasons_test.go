package cluster

import (
	"context"
	"errors"
	"maps"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/stemedb/stemedb/server/internal/control"
	"github.com/stemedb/stemedb/server/internal/store"
)

// reasonValues reads the metric and the number of its series for each reason.
func (n *node) reasonValues() (values map[string]float64) {
	families, err := n.metrics.Gather()
	require.NoError(n.w.t, err)
	values = map[string]float64{}
	for _, f := range families {
		if f.GetName() != "stemedb_health_reason" {
			continue
		}
		for _, m := range f.GetMetric() {
			require.Equal(n.w.t, "reason", m.GetLabel()[0].GetName())
			values[m.GetLabel()[0].GetValue()] = m.GetGauge().GetValue()
		}
	}
	return values
}

// troublesWith returns the instances of one reason.
func (n *node) troublesWith(code string) (found []Trouble) {
	for _, t := range n.cluster.Status().Troubles {
		if t.Code == code {
			found = append(found, t)
		}
	}
	return found
}

func (c *table) Err() error {
	if err := c.failure.Load(); err != nil {
		return *err
	}
	return nil
}

// Each reason is provoked: the status names it with a remedy, and its series of
// the metric exists from the start and becomes 1. A reason that is missing here
// fails the test.
func TestEveryHealthReasonIsNamedWithARemedyAndIsAMetric(t *testing.T) {
	const capacity = 1 << 30
	causes := map[string]func(t *testing.T, w *world, a *node){
		CodeStorageFailed: func(_ *testing.T, _ *world, a *node) {
			a.disk.FailSync(1)
			a.cluster.Assert(context.Background(), "p", claims("s", 0, 1))
		},
		CodeControlFailed: func(_ *testing.T, _ *world, a *node) {
			err := errors.New("a page of the table's log is damaged")
			a.control.failure.Store(&err)
		},
		CodeNotWhole: func(t *testing.T, _ *world, a *node) {
			require.NoError(t, a.control.ReportNotWhole(context.Background()))
		},
		CodeReadOnly: func(_ *testing.T, _ *world, a *node) { a.fillTo("db", 10<<20) },
		CodeNearlyFull: func(t *testing.T, _ *world, a *node) {
			a.fillTo("db", 19<<20)
			time.Sleep(time.Minute)
			require.Empty(t, a.troublesWith(CodeReadOnly), "the warning comes first")
		},
		CodeDamaged: func(t *testing.T, w *world, a *node) {
			ids := a.write(claim("rotten subject", 1))
			time.Sleep(time.Minute)
			for _, other := range []string{"b", "c"} { // no member can supply a copy
				w.net.Cut("a", other)
			}
			a.rot("rotten subject")
			_, err := a.cluster.Get(context.Background(), "p", ids[0], Local)
			require.Error(t, err)
		},
	}
	require.ElementsMatch(t, Reasons(), slices.Collect(maps.Keys(causes)))
	for _, code := range Reasons() {
		t.Run(code, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := threeNodes(t, func(w *world) {
					w.opts = func(o *store.Options) { o.Reserve, o.ReserveHigh = 16<<20, 20<<20 }
					for _, n := range w.nodes {
						n.disk.SetCapacity("db", capacity)
					}
				})
				a := w.nodes["a"]
				time.Sleep(time.Minute)
				require.Empty(t, a.cluster.Status().Troubles)
				values := a.reasonValues()
				require.ElementsMatch(t, Reasons(), slices.Collect(maps.Keys(values)))
				for other, value := range values {
					require.Zero(t, value, other)
				}
				causes[code](t, w, a)
				w.await(code, func() bool { return len(a.troublesWith(code)) > 0 })
				for _, trouble := range a.troublesWith(code) {
					require.NotEmpty(t, trouble.Detail)
					require.NotEmpty(t, trouble.Remedy)
				}
				require.EqualValues(t, 1, a.reasonValues()[code])
				w.net.HealAll()
				time.Sleep(time.Minute)
			})
		})
	}
}

// fillTo fills a volume up to that many free bytes.
func (n *node) fillTo(dir string, free uint64) {
	left, total, err := n.disk.Free(dir)
	require.NoError(n.w.t, err)
	n.disk.SetCapacity(dir, total-left+free)
}

// The volume is named, and the reason disappears when there is space again; it
// does not flap while the free space varies around the threshold.
func TestNearlyFullNamesTheVolumeAndPasses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const mib = 1 << 20
		w := newWorld(t, "a")
		w.opts = func(o *store.Options) { o.Reserve, o.ReserveHigh = 16*mib, 20*mib }
		w.startAll()
		w.setMembers("a")
		a := w.nodes["a"]
		nearly := func() []string {
			time.Sleep(10 * time.Second)
			var volumes []string
			for _, t := range a.troublesWith(CodeNearlyFull) {
				volumes = append(volumes, t.Volume)
			}
			return volumes
		}
		require.Empty(t, nearly())
		// The threshold is the reserve plus a tenth of the volume, here of its used and
		// free parts.
		fillTo := func(dir string, free uint64) {
			a.fillTo(dir, free)
			time.Sleep(10 * time.Second)
			a.fillTo(dir, free) // the log may have released a segment that it was preparing
		}
		fillTo("wal", 18*mib)
		require.Equal(t, []string{"wal"}, nearly())
		require.Contains(t, a.troublesWith(CodeNearlyFull)[0].Detail, "the WAL volume (wal) has")
		fillTo("db", 17*mib)
		require.Equal(t, []string{"wal", "packs"}, nearly())
		require.Contains(t, a.troublesWith(CodeNearlyFull)[1].Detail, "the DB volume (db/packs) has")
		require.Empty(t, a.troublesWith(CodeReadOnly))
		fillTo("wal", 21*mib)
		require.Equal(t, []string{"wal", "packs"}, nearly())
		a.disk.SetCapacity("wal", 1<<30)
		a.disk.SetCapacity("db", 1<<30)
		require.Empty(t, nearly())
	})
}

// The reason for a loss, the readiness and the header of reads, for one member
// and for three: nobody can refill a single node, and no text advises to empty
// its volumes.
func TestAdviceAfterALossFitsTheNumberOfMembers(t *testing.T) {
	for members, names := range map[int][]string{1: {"a"}, 3: {"a", "b", "c"}} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, names...)
			w.startAll()
			w.setMembers(names...)
			w.awaitConnected()
			a := w.nodes["a"]
			require.NoError(t, a.control.ReportNotWhole(context.Background()))
			trouble := a.troublesWith(CodeNotWhole)[0]
			if members == 3 {
				require.Equal(t, "the other members refill it", trouble.Remedy)
				require.Empty(t, a.cluster.Incomplete())
				require.ErrorContains(t, a.cluster.Ready(), "the other members refill it")
				return
			}
			for _, text := range []string{trouble.Remedy, a.cluster.Incomplete()} {
				require.Contains(t, text, "stemedb cluster accept-loss a --yes; do not empty the volumes")
				require.NotContains(t, text, "the other members")
			}
			// A node that joins does not change that before it is a member.
			w.change(func(s *control.State) { s.Change = &control.Change{ID: 1, Kind: control.Join, New: s.Members} })
			require.Contains(t, a.cluster.Incomplete(), "nobody can refill it")
			if err := a.cluster.Ready(); err != nil {
				require.NotContains(t, err.Error(), "lost records", "it serves the rest")
			}
		})
	}
}
