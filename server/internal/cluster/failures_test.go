package cluster

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/stemedb/stemedb/record"
	"github.com/stemedb/stemedb/server/internal/store"
	"github.com/stemedb/stemedb/server/internal/vfs/memfs"
	"github.com/stemedb/stemedb/server/internal/wal"
)

// failures are the values of the counter of failed writes by code, without zeros.
func (n *node) failures() map[string]float64 {
	families, err := n.metrics.Gather()
	require.NoError(n.w.t, err)
	found := map[string]float64{}
	for _, f := range families {
		if f.GetName() != "stemedb_write_failures_total" {
			continue
		}
		for _, m := range f.GetMetric() {
			if v := m.GetCounter().GetValue(); v > 0 {
				found[m.GetLabel()[0].GetValue()] = v
			}
		}
	}
	return found
}

// Every path on which a write can fail is counted, by the code of its error and once
// for each record.
func TestEveryFailedWriteIsCountedByItsCode(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := threeNodes(t, func(w *world) {
			w.tune = func(c *Config) { c.Limits.InFlightBytes, c.Limits.PeerQueueBytes = 1, 1 }
		})
		a, ctx := w.nodes["a"], context.Background()
		a.write(claim("acknowledged", 1))
		require.Empty(t, a.failures())

		invalid := claim("s", 1)
		invalid.Signatures[0].Sig[0]++
		require.Error(t, a.cluster.Assert(ctx, "p", []*record.Assertion{invalid})[0].Err)
		require.Empty(t, a.failures(), "an invalid record is its caller's fault")

		refuses := WithPermit(ctx, func(time.Time) error { return errors.New("revoked") })
		a.cluster.Assert(refuses, "p", claims("s", 0, 3))
		want := map[string]float64{failureOther: 3}
		require.Equal(t, want, a.failures())

		gone, cancel := context.WithCancel(ctx)
		cancel()
		a.cluster.signatures = newSignatureCheck(1, 1) // nobody runs it
		a.cluster.signatures.queue = nil
		require.ErrorIs(t, a.cluster.Assert(gone, "p", claims("s", 0, 2))[0].Err, ErrUnavailable)
		want[CodeOverloadedSignatures] = 2
		require.Equal(t, want, a.failures())
		a.cluster.skipSignatures = true

		w.nodes["b"].crash(memfs.LoseAll)
		w.nodes["c"].crash(memfs.LoseAll)
		first := make(chan WriteResult, 1)
		go func() { first <- a.cluster.Assert(ctx, "p", claims("s", 0, 1))[0] }()
		time.Sleep(100 * time.Millisecond)
		short, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		a.cluster.Assert(short, "p", claims("s", 1, 1))
		want[CodeOverloadedWrites] = 1
		require.Equal(t, want, a.failures())
		require.Error(t, (<-first).Err)
		want[CodeNoQuorum] = 1
		require.Equal(t, want, a.failures())
	})
}

// The errors of the local store have codes that the counter knows from the start.
func TestTheCounterOfFailedWritesBeginsWithEveryCode(t *testing.T) {
	for _, err := range []error{
		wal.ErrReadOnly, wal.ErrBusy, wal.ErrClosed, store.ErrBusy, store.ErrClosed, errors.New("an input/output error"),
	} {
		var u *UnavailableError
		require.ErrorAs(t, storageError(err), &u)
		require.Contains(t, WriteCodes(), u.Code, "%v", err)
	}
	synctest.Test(t, func(t *testing.T) {
		families, err := threeNodes(t).nodes["a"].metrics.Gather()
		require.NoError(t, err)
		for _, f := range families {
			if f.GetName() == "stemedb_write_failures_total" {
				require.Len(t, f.GetMetric(), len(WriteCodes())+1)
				return
			}
		}
		t.Fatal("no series before the first failure")
	})
}
