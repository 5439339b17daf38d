package cluster

import (
	"context"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/stemedb/stemedb/server/internal/control"
	"github.com/stemedb/stemedb/server/internal/vfs/memfs"
)

// A member counts towards a majority only if the record is durable there. In
// these tests c is down, so a write through a needs both a and b.

func withoutC(t *testing.T) (w *world, a, b *node) {
	t.Helper()
	w = threeNodes(t)
	w.nodes["c"].crash(memfs.LoseAll)
	return w, w.nodes["a"], w.nodes["b"]
}

// try writes one claim and returns the outcome.
func (n *node) try(i int) error {
	return n.cluster.Assert(context.Background(), "p", claims("s", i, 1))[0].Err
}

// requireUnavailable requires that the write failed with this code.
func requireUnavailable(t *testing.T, err error, code string) {
	t.Helper()
	var u *UnavailableError
	require.ErrorAs(t, err, &u)
	require.Equal(t, code, u.Code)
}

// hangSyncs makes each sync of the node's WAL volume take that long.
func (n *node) hangSyncs(d time.Duration) {
	n.disk.SetLatency(func(op memfs.Op) time.Duration {
		if op.Kind == memfs.OpSync && strings.HasPrefix(op.Name, "wal/") {
			return d
		}
		return 0
	})
}

func TestPeerAcknowledgesNothingBeforeItsOwnSync(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, a, b := withoutC(t)
		require.NoError(t, a.try(0))
		b.hangSyncs(time.Minute)
		requireUnavailable(t, a.try(1), CodeNoQuorum)
		b.crash(memfs.LoseAll)
		b.start()
		require.False(t, b.holds(claim("s", 1).ID()), "an acknowledgement would have been false")
	})
}

func TestPeerAcknowledgesNoPutThatItsLogRefused(t *testing.T) {
	for name, spoil := range map[string]func(b *node){
		"its sync fails": func(b *node) { b.disk.Fail(memfs.OpSync, "wal/", 0, -1, syscall.EIO) },
		"its log has failed": func(b *node) {
			b.disk.Fail(memfs.OpSync, "wal/", 0, 1, syscall.EIO)
			require.Error(b.w.t, b.cluster.Assert(context.Background(), "p", claims("other", 0, 1))[0].Err)
		},
		"its volume is full": func(b *node) {
			b.disk.SetCapacity("wal", 1)
			time.Sleep(5 * time.Second) // free space is checked every 2 s
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				_, a, b := withoutC(t)
				require.NoError(t, a.try(0))
				spoil(b)
				requireUnavailable(t, a.try(1), CodeNoQuorum)
				require.False(t, b.holds(claim("s", 1).ID()))
			})
		})
	}
}

func TestCoordinatorDoesNotCountItselfAfterItsLogFailed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, a, b := withoutC(t)
		require.NoError(t, a.try(0))
		a.disk.Fail(memfs.OpSync, "wal/", 0, -1, syscall.EIO)
		requireUnavailable(t, a.try(1), CodeStorageFailed)
		require.True(t, b.holds(claim("s", 1).ID()), "the other one has it, and a majority would be both")
		requireUnavailable(t, a.try(2), CodeStorageFailed)
		w.nodes["c"].start()
		w.await("c", func() bool { return w.nodes["c"].holds(claim("s", 1).ID()) })
	})
}

// TestPeerThatMovedOnWhileItsSyncHungDoesNotAcknowledge: b may have reported the
// end of its log for a change of members before the record was in it. The
// coordinator does not know of the change yet and would count b by the old rule.
func TestPeerThatMovedOnWhileItsSyncHungDoesNotAcknowledge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, a, b := withoutC(t)
		require.NoError(t, a.try(0))
		a.control.lag(true)
		b.hangSyncs(2 * time.Second)
		done := make(chan error, 1)
		go func() { done <- a.try(1) }()
		time.Sleep(500 * time.Millisecond)
		w.change(func(*control.State) {})
		requireUnavailable(t, <-done, CodeNoQuorum)
		require.True(t, b.holds(claim("s", 1).ID()), "the test is about a record that did become durable")
		a.control.lag(false)
		b.hangSyncs(0)
		w.awaitConnected()
		require.NoError(t, a.try(1))
	})
}

// TestAcknowledgementCoversNoEarlierMessageThatIsNotDurable: messages of a stream
// become durable in any order, and acknowledgements are cumulative.
func TestAcknowledgementCoversNoEarlierMessageThatIsNotDurable(t *testing.T) {
	taken := &taken{wake: make(chan struct{}, 1), room: make(chan struct{}, 1), pending: make([]message, 3)}
	for _, step := range []struct{ durable, acknowledged uint64 }{{2, 0}, {3, 0}, {1, 3}} {
		taken.finish(step.durable, nil)
		seq, _, _, err := taken.progress()
		require.NoError(t, err)
		require.Equal(t, step.acknowledged, seq, "after message %d", step.durable)
	}
}

// TestLargeWriteIsAcknowledgedWithItsLastMessage: a write that needs several
// messages is durable at a peer when all of them are.
func TestLargeWriteIsAcknowledgedWithItsLastMessage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := threeNodes(t)
		p := newPeer(w.nodes["a"].cluster, w.member("b"))
		large := &write{done: make(chan struct{}), wire: make([]byte, 30), cuts: []int{10, 20, 30}}
		require.True(t, p.offer(large))
		require.Equal(t, []*write{large}, p.take(nil, 0, 7))
		for seq := range uint64(3) {
			p.acked(seq)
			require.Empty(t, large.acks, "after message %d of 3", seq)
		}
		p.acked(3)
		require.Equal(t, map[string]uint64{w.member("b").ID(): 7}, large.acks)
	})
}
