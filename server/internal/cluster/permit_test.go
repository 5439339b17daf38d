package cluster

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/stemedb/stemedb/record"
	"github.com/stemedb/stemedb/server/internal/vfs/memfs"
)

// TestPermitIsAskedWhenAWriteHasItsTurn: a write whose permit is withdrawn while
// it waits for room reaches no log.
func TestPermitIsAskedWhenAWriteHasItsTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := threeNodes(t, func(w *world) {
			w.tune = func(c *Config) { c.Limits.InFlightBytes = 1 } // one write at a time
		})
		a := w.nodes["a"]
		w.nodes["b"].crash(memfs.LoseAll)
		w.nodes["c"].crash(memfs.LoseAll)
		first := make(chan WriteResult, 1)
		go func() { first <- a.cluster.Assert(context.Background(), "p", claims("s", 0, 1))[0] }()
		time.Sleep(100 * time.Millisecond)

		withdrawn := errors.New("withdrawn")
		var asked, by time.Time
		refuses := WithPermit(context.Background(), func(end time.Time) error {
			asked, by = time.Now(), end
			return withdrawn
		})
		began := time.Now()
		for _, r := range a.cluster.Assert(refuses, "p", claims("s", 1, 3)) {
			require.ErrorIs(t, r.Err, withdrawn)
		}
		v := &record.Vote{Assertion: claim("s", 0).ID(), Weight: 1, Timestamp: 1_000}
		record.SignVote(agent, v)
		require.ErrorIs(t, a.cluster.Vote(refuses, "p", v).Err, withdrawn)
		require.ErrorIs(t, (<-first).Err, ErrUnavailable)
		require.Greater(t, asked.Sub(began), time.Second, "it had to wait for the first write")
		require.Equal(t, a.cluster.timings.WriteWait, by.Sub(asked))

		w.nodes["b"].start()
		w.nodes["c"].start()
		w.await("the first write on all members", func() bool {
			return w.nodes["b"].holds(claim("s", 0).ID()) && w.nodes["c"].holds(claim("s", 0).ID())
		})
		for _, n := range w.nodes {
			for i := 1; i < 4; i++ {
				require.False(t, n.holds(claim("s", i).ID()), "%s holds a record that was refused", n.name)
			}
		}
		granted := WithPermit(context.Background(), func(time.Time) error { return nil })
		require.NoError(t, a.cluster.Assert(granted, "p", claims("s", 9, 1))[0].Err)
	})
}

// TestWriteIsGivenUpByTheTimeOfItsPermit: a write ends by the time for which its
// permit was asked, with or without success.
func TestWriteIsGivenUpByTheTimeOfItsPermit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := threeNodes(t)
		w.net.Isolate("a")
		var by time.Time
		ctx := WithPermit(context.Background(), func(end time.Time) error { by = end; return nil })
		require.ErrorIs(t, w.nodes["a"].cluster.Assert(ctx, "p", claims("s", 0, 1))[0].Err, ErrUnavailable)
		require.False(t, time.Now().After(by))
	})
}

// TestAbandonedWriteIsNotSent: a write that was abandoned while it waited in a
// peer's queue is not sent; one that has its majority is.
func TestAbandonedWriteIsNotSent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := threeNodes(t)
		p := newPeer(w.nodes["a"].cluster, w.member("b"))
		queue := func() *write {
			x := &write{done: make(chan struct{})}
			x.encode(1 << 20)
			x.wire = []byte("12345")
			require.True(t, p.offer(x))
			return x
		}
		gaveUp, won, waits := queue(), queue(), queue()
		for _, id := range []string{"a", "c"} {
			won.ack(w.member(id).ID(), 0, w.nodes["a"].control.State)
		}
		for _, x := range []*write{gaveUp, won} {
			x.outcome()
		}
		require.Equal(t, []*write{won, waits}, p.take(nil, 0, 0))
		require.EqualValues(t, 10, p.bytes)
	})
}
