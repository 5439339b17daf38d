package cluster

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/stemedb/stemedb/server/internal/store"
	"github.com/stemedb/stemedb/server/internal/wal"
)

// TestTheWaitForPeersBeginsWhenTheyCanCompare: a starting node is confirmed later
// than StartWait, and refuses every pull until then. Afterwards it waits for a
// member that does not pull at once, but not forever.
func TestTheWaitForPeersBeginsWhenTheyCanCompare(t *testing.T) {
	for _, back := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			w := threeNodes(t)
			b := w.nodes["b"]
			b.shutdown()
			b.unconfirmed.Store(true)
			b.start()
			time.Sleep(12 * time.Second)
			state := b.control.State()
			require.NotEmpty(t, b.cluster.unvouched(state))
			w.net.Isolate("a")
			b.unconfirmed.Store(false)
			b.control.follow()
			for range 80 {
				require.Error(t, b.cluster.Ready())
				require.Error(t, b.cluster.catchingUp(state))
				require.Contains(t, b.cluster.unvouched(state), "a")
				time.Sleep(100 * time.Millisecond)
			}
			if back {
				w.net.HealAll()
				w.await("a's comparison", func() bool { return b.cluster.compared(w.member("a").ID()) })
			}
			time.Sleep(5 * time.Second)
			require.NoError(t, b.cluster.Ready())
		})
	}
}

// A member that lost records still has its witness of this node's log, so a start
// waits for its comparison as for that of a whole member.
func TestAMemberWithALossIsWaitedForAsAWitness(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := threeNodes(t)
		a, b := w.nodes["a"], w.nodes["b"]
		require.NoError(t, a.control.ReportNotWhole(context.Background()))
		b.shutdown()
		w.net.Isolate("a")
		b.start()
		b.control.follow()
		time.Sleep(5 * time.Second)
		require.Equal(t, "a", b.cluster.unvouched(b.control.State()))
		require.Error(t, b.cluster.Ready())
		w.net.HealAll()
		w.await("readiness", func() bool { return b.cluster.Ready() == nil })
		require.True(t, b.cluster.compared(w.member("a").ID()))
	})
}

// TestACursorIsDurableWithWhatWasSeenOfItsLog: the cursor that becomes durable
// with the records of an answer has a witness that reaches as far.
func TestACursorIsDurableWithWhatWasSeenOfItsLog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := threeNodes(t)
		a, b := w.nodes["a"], w.nodes["b"]
		incarnation := b.store.Identity().Incarnation
		for i := range 3 {
			b.write(claim("held", i))
			lacking := claim("lacking", i)
			content := store.NewContent("p", lacking.ID(), &lacking.Content)
			b.put([]store.Item{content, store.NewSignature("p", lacking.ID(), lacking.Signatures[0])})
			w.await("the record on a", func() bool { return a.holds(lacking.ID()) })
			cursor, seen := a.store.Cursors()[incarnation], a.store.Witnesses()[incarnation]
			require.NotZero(t, cursor)
			require.GreaterOrEqual(t, seen.End, cursor)
			time.Sleep(time.Second)
		}
	})
}

// TestACursorBehindTheEndOfALogIsARollback: a peer has pulled more of a log than
// exists when its member restarts. The member records the loss, although the rest
// of the peer's witness matches.
func TestACursorBehindTheEndOfALogIsARollback(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := threeNodes(t)
		a, b := w.nodes["a"], w.nodes["b"]
		incarnation := b.store.Identity().Incarnation
		b.write(claim("seen", 1))
		time.Sleep(time.Second)
		end := b.store.End()
		b.shutdown()
		progress := a.cluster.progress
		require.LessOrEqual(t, progress.witness(incarnation).End, end)
		_, epoch := progress.at(incarnation)
		progress.set(incarnation, end+4096, epoch)
		b.start()
		w.await("the record of the loss", func() bool { return b.store.Health().Losses > 0 })
	})
}

// TestALateAnswerDoesNotTakeBackWhatWasSeen: two pullers of one member may overlap
// when its address changes.
func TestALateAnswerDoesNotTakeBackWhatWasSeen(t *testing.T) {
	seen := func(opening uint64, end wal.Position) wal.Witness {
		return wal.Witness{Opening: wal.Opening{Number: opening, ID: opening}, End: end}
	}
	p := &Progress{}
	p.saw("b", seen(2, 100))
	for _, late := range []wal.Witness{seen(1, 200), seen(2, 99)} {
		p.saw("b", late)
		require.Equal(t, seen(2, 100), p.witness("b"))
	}
	for _, next := range []wal.Witness{seen(2, 101), seen(3, 50), {}, seen(1, 10)} {
		p.saw("b", next)
		require.Equal(t, next, p.witness("b"))
	}
}
