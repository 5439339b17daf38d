package control_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/stemedb/stemedb/server/internal/control"
	"github.com/stemedb/stemedb/server/internal/keys"
)

// slowRestart is a single node whose part of the control table failed and
// restarts from a snapshot that is older than a revocation. f runs during that
// start, when Raft already runs.
func slowRestart(t *testing.T, f func(a *node)) (w *world, revoked keys.Hash) {
	t.Helper()
	w = newWorld(t, "a")
	a := w.node["a"]
	a.timings = control.Timings{SnapshotAfter: 20, SnapshotEvery: 5 * time.Second}
	var once atomic.Bool
	a.logs = func(message string) {
		if strings.HasPrefix(message, "a snapshot of the control table is damaged") && once.CompareAndSwap(false, true) {
			f(a)
		}
	}
	a.start()
	w.settled(1)
	untilSnapshot := func() {
		for before, i := a.disk.Snapshot(), 0; a.disk.Snapshot() == before; i++ {
			_, _, err := a.control.CreateKey(t.Context(), key(fmt.Sprint(before, i)))
			require.NoError(t, err)
			time.Sleep(time.Second)
		}
	}
	untilSnapshot()
	revoked = w.revokedKey("k")
	untilSnapshot()
	a.disk.RotSnapshot(0)
	a.disk.Fail(errors.New("the disk is gone"))
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	_, _, err := a.control.CreateKey(ctx, key("refused"))
	require.Error(t, err)
	w.eventually(time.Minute, func() bool { return a.control.Err() != nil }, "it notices")
	a.disk.SetLatency(func() time.Duration { return time.Second })
	a.disk.Fail(nil)
	w.eventually(2*time.Minute, once.Load, "it restarts")
	return w, revoked
}

// The start of the part takes half a minute, in which Raft applies its log.
func TestCommandsThatAreAppliedDuringASlowRestartCount(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w, revoked := slowRestart(t, func(*node) { time.Sleep(30 * time.Second) })
		defer w.close()
		a := w.node["a"]
		w.settled(1)
		for _, label := range []string{"one", "two"} {
			_, _, err := a.control.CreateKey(t.Context(), key(label))
			require.NoError(t, err)
			held, ok := a.control.GetKey(revoked)
			require.True(t, ok)
			require.NotZero(t, held.RevokedAt, "the revocation is still in the table")
		}
	})
}

// The disk fails again while the part starts, and works later.
func TestAPartThatFailsWhileItIsStartedIsStartedAgain(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w, revoked := slowRestart(t, func(a *node) {
			a.disk.Fail(errors.New("the disk is gone again"))
			time.Sleep(30 * time.Second)
		})
		defer w.close()
		a := w.node["a"]
		w.eventually(time.Minute, func() bool { return a.metric("failures_total", "storage") > 1 }, "it notices the second failure")
		require.Error(t, a.control.Err())
		a.disk.Fail(nil)
		w.settled(1)
		_, _, err := a.control.CreateKey(t.Context(), key("one"))
		require.NoError(t, err, "it accepts changes again")
		held, ok := a.control.GetKey(revoked)
		require.True(t, ok)
		require.NotZero(t, held.RevokedAt)
	})
}
