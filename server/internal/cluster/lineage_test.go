package cluster

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/stemedb/stemedb/record"
	"github.com/stemedb/stemedb/server/internal/store"
	"github.com/stemedb/stemedb/server/internal/vfs/memfs"
)

// successor replaces the lifecycle of an assertion.
func successor(of *record.Assertion, at uint64, lifecycle record.Lifecycle) *record.Assertion {
	id := of.ID()
	a := &record.Assertion{Content: of.Content}
	a.ParentHash, a.Timestamp, a.Lifecycle = &id, at, lifecycle
	a.Sign(agent)
	return a
}

func (n *node) lifecycle(id record.Hash) record.Lifecycle {
	s, err := n.cluster.Get(context.Background(), "p", id, Quorum)
	require.NoError(n.w.t, err)
	return s.Lifecycle
}

// hold puts an assertion on this node alone.
func (n *node) hold(as ...*record.Assertion) {
	for _, a := range as {
		require.NoError(n.w.t, n.cluster.putAndWait(context.Background(), []store.Item{
			store.NewContent("p", a.ID(), &a.Content), store.NewSignature("p", a.ID(), a.Signatures[0]),
		}))
	}
}

// noCatchUp lets only reads bring records to other nodes.
func noCatchUp(w *world) { w.tune = func(c *Config) { c.Timings.TailLinger = time.Hour } }

// TestQuorumGetSeesSuccessors: a majority without this node acknowledges a
// successor while this node's disk is still writing it.
func TestQuorumGetSeesSuccessors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := threeNodes(t)
		a := w.nodes["a"]
		parent := claim("s", 1)
		approved := successor(parent, 2, record.Approved)
		ids := a.write(parent)
		for _, n := range w.nodes {
			w.await("the parent on "+n.name, func() bool { return n.holds(ids...) })
		}
		a.disk.SetLatency(func(op memfs.Op) time.Duration {
			if op.Kind == memfs.OpSync {
				return 500 * time.Millisecond
			}
			return 0
		})
		child := w.nodes["b"].write(approved)
		require.False(t, a.holds(child...), "the test needs a successor that is not here yet")
		require.Equal(t, record.Approved, a.lifecycle(ids[0]))
	})
}

// TestQuorumGetFollowsTheLineage: each of two nodes has a part of it, and every
// record shown is on a majority.
func TestQuorumGetFollowsTheLineage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := threeNodes(t, noCatchUp)
		a, b, c := w.nodes["a"], w.nodes["b"], w.nodes["c"]
		parent := claim("s", 1)
		second := successor(parent, 2, record.UnderReview)
		rival := successor(parent, 3, record.Rejected)
		third := successor(rival, 3, record.Approved)
		fourth := successor(third, 4, record.Deprecated)
		a.hold(parent, second, fourth) // fourth counts here once third has arrived
		c.hold(parent, rival, third)
		b.crash(memfs.LoseAll)
		require.Equal(t, record.Deprecated, a.lifecycle(parent.ID()))
		for _, n := range []*node{a, c} {
			s, err := n.store.Assertion("p", parent.ID())
			require.NoError(t, err)
			require.Equal(t, fourth.ID(), *s.ReplacedBy, "on %s alone", n.name)
		}
		differed := a.metric("read_differences_total")
		require.Equal(t, record.Deprecated, a.lifecycle(parent.ID()))
		require.Equal(t, differed, a.metric("read_differences_total"), "now they agree")
	})
}

// TestQuorumGetLeavesTheSubjectAlone: other records of the subject do not make a
// Get more expensive.
func TestQuorumGetLeavesTheSubjectAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := threeNodes(t, noCatchUp)
		a, c := w.nodes["a"], w.nodes["c"]
		a.write(claims("hot", 0, 50)...)
		parent := claim("hot", 1)
		c.hold(claims("hot", 100, 5)...)
		w.nodes["b"].crash(memfs.LoseAll)
		require.Equal(t, record.Proposed, a.lifecycle(parent.ID()))
		require.Zero(t, a.metric("read_differences_total"))
	})
}
