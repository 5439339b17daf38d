package cluster

import (
	"context"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/stemedb/stemedb/record"
	"github.com/stemedb/stemedb/server/internal/cluster/peerpb"
	"github.com/stemedb/stemedb/server/internal/store"
)

// From the start of a member that lost a pack until the control table marks it as
// not whole, only the member's store knows of the loss.

// unheard is a control table that accepts no report of a loss.
type unheard struct{ Control }

func (unheard) ReportNotWhole(ctx context.Context) error {
	<-ctx.Done()
	return ctx.Err()
}

// smallSegments are sealed and reused after a few hundred records.
func smallSegments(w *world) {
	w.opts = func(o *store.Options) { o.SegmentSize, o.MarkerBytes, o.MarkerInterval = 128<<10, 32<<10, time.Second }
	w.tune = func(c *Config) { c.Limits.PullBytes, c.Limits.MessageBytes = 32<<10, 32<<10 }
}

// withALostPack returns three nodes, of which a has just started without one of
// its packs, and the records written before. tuned changes a's configuration.
func withALostPack(t *testing.T, tuned func(*Config)) (w *world, ids []record.Hash) {
	t.Helper()
	w = threeNodes(t, smallSegments)
	a := w.nodes["a"]
	for i := range 40 {
		ids = append(ids, a.write(claims(fmt.Sprint("s", i), 0, 20)...)...)
	}
	for _, n := range w.nodes {
		w.await("the records on "+n.name, func() bool { return n.holds(ids...) })
	}
	time.Sleep(time.Minute) // segments are sealed, applied and reused
	packs, err := a.disk.ReadDir("db/packs")
	require.NoError(t, err)
	first := slices.IndexFunc(packs, func(e fs.DirEntry) bool { return path.Ext(e.Name()) == ".pack" })
	require.GreaterOrEqual(t, first, 0)
	a.shutdown()
	require.NoError(t, a.disk.Remove(path.Join("db/packs", packs[first].Name())))
	plain := w.tune
	w.tune = func(c *Config) { plain(c); tuned(c) }
	a.start()
	w.tune = plain
	require.False(t, a.store.Whole(), "no other file holds the records of the pack")
	return w, ids
}

func TestMemberWithALostPackCountsInNoReadBeforeItsReport(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, ids := withALostPack(t, func(c *Config) { c.Control = unheard{c.Control} })
		a, b := w.nodes["a"], w.nodes["b"]
		time.Sleep(2 * Timings{}.withDefaults().StartWait) // the others have compared
		me, _ := a.control.State().MemberByID(a.control.id)
		require.True(t, me.Whole, "the test needs a table that does not show the loss")

		conn, err := b.control.Conn(w.member("a"))
		require.NoError(t, err)
		peer := peerpb.NewPeerClient(conn)
		refused := func(err error) {
			t.Helper()
			require.Equal(t, codes.FailedPrecondition, status.Code(err), "%v", err)
			require.ErrorContains(t, err, "not whole")
		}
		_, err = peer.SetDigest(t.Context(), &peerpb.SetRequest{Project: "p", Subject: "s0"})
		refused(err)
		_, err = peer.Subjects(t.Context(), &peerpb.SubjectsRequest{Project: "p", Limit: 10})
		refused(err)
		stream, err := peer.SetKeys(t.Context(), &peerpb.SetRequest{Project: "p", Subject: "s0"})
		require.NoError(t, err)
		_, err = stream.Recv()
		refused(err)

		for _, id := range ids[:3] {
			_, err := a.cluster.Get(t.Context(), "p", id, Quorum)
			requireUnavailable(t, err, CodeNotWhole)
		}
		requireUnavailable(t, a.cluster.Ready(), CodeNotWhole)
	})
}

func TestLossThatIsFoundAtTheStartIsReportedAndRefilled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, ids := withALostPack(t, func(c *Config) { c.Timings.MendWait = -1 })
		a := w.nodes["a"]
		w.await("the report", func() bool {
			me, _ := a.control.State().MemberByID(a.control.id)
			return !me.Whole
		})
		// Like the leader: a is whole when its cursors are far enough.
		end := map[string]uint64{}
		for _, name := range []string{"b", "c"} {
			end[w.member(name).Incarnation] = uint64(w.nodes[name].store.End())
		}
		w.await("cursors behind the others' logs", func() bool {
			at := a.cluster.progress.Cursors()
			for incarnation, e := range end {
				if at[incarnation] < e {
					return false
				}
			}
			return true
		})
		for _, id := range ids {
			_, err := a.store.Assertion("p", id)
			require.NoError(t, err, "the cursors cover it")
		}
		w.setMembers("a", "b", "c")
		w.await("the end of the refill", func() bool { return a.store.Whole() && a.cluster.Ready() == nil })
	})
}
