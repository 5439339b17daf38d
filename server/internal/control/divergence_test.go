package control_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"github.com/stretchr/testify/require"

	"github.com/stemedb/stemedb/server/internal/control"
	"github.com/stemedb/stemedb/server/internal/keys"
)

// A copy whose State differs although every checksum is valid, as after a memory
// fault or a bug of a release.
func (n *node) diverge() {
	n.w.t.Helper()
	storage := control.Sealed(n.disk.Open())
	last, err := storage.Logs().LastIndex()
	require.NoError(n.w.t, err)
	changed := 0
	for i := uint64(1); i <= last; i++ {
		var e raft.Log
		if storage.Logs().GetLog(i, &e) != nil || !isRevocation(&e) {
			continue
		}
		e.Data = control.Revocation(keys.HashOf("another key"))
		require.NoError(n.w.t, storage.Logs().StoreLog(&e))
		changed++
	}
	require.Positive(n.w.t, changed)
}

func TestACopyThatDiffersIsReplaced(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, "a", "b", "c")
		defer w.close()
		w.start()
		w.settled(3)
		revoked := w.revokedKey("k")
		n := w.follower()
		n.stop()
		n.diverge()
		n.start()
		w.watchKey(revoked, time.Minute, func() bool {
			held, _ := n.control.GetKey(revoked)
			return held.RevokedAt != 0 && n.control.Err() == nil
		}, "the copy is replaced")
		require.Positive(t, n.metric("failures_total", "divergence"))
		w.settled(3)
		for _, other := range w.node {
			if other != n {
				require.Zero(t, other.metric("failures_total", "divergence"), "at %s", other.name)
			}
		}
	})
}

// A leader whose table differs from the majority's hands over and fetches it.
func TestALeaderThatDiffersStepsDown(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, "a", "b", "c")
		defer w.close()
		w.start()
		w.settled(3)
		revoked := w.revokedKey("k")
		c := w.node["c"]
		for range 50 {
			// Both others are down until c is able to lead.
			for _, n := range w.node {
				n.stop()
			}
			c.diverge()
			w.start()
			for range 100 {
				if w.leader() != nil {
					break
				}
				time.Sleep(100 * time.Millisecond)
			}
			if w.leader() == c {
				break
			}
			w.settled(3)
			// The copy was replaced: the entry is needed again.
			revoked = w.revokedKey(fmt.Sprint(time.Now().UnixNano()))
		}
		require.Equal(t, c, w.leader(), "c never led")
		w.eventually(time.Minute, func() bool { return c.metric("failures_total", "divergence") > 0 }, "c notices")
		w.settled(3)
		for _, n := range w.node {
			held, _ := n.control.GetKey(revoked)
			require.NotZero(t, held.RevokedAt, "at %s", n.name)
		}
	})
}

// Two copies differ and there is no third: neither is trusted until there is.
func TestTwoCopiesThatDifferWaitForAThird(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, "a", "b", "c")
		defer w.close()
		w.start()
		w.settled(3)
		revoked := w.revokedKey("k")
		for _, n := range w.node {
			n.stop()
		}
		a, b, c := w.node["a"], w.node["b"], w.node["c"]
		c.diverge()
		a.start()
		c.start()
		inDoubt := func() bool { return a.control.Err() != nil && c.control.Err() != nil }
		w.eventually(time.Minute, inDoubt, "both are in doubt")
		for range 600 {
			time.Sleep(time.Second)
			for _, n := range []*node{a, c} {
				ok, _ := n.control.Confirmed()
				require.False(t, ok, "%s trusts its copy", n.name)
			}
		}
		require.True(t, inDoubt())
		b.start()
		w.settled(3)
		for _, n := range w.node {
			require.NoError(t, n.control.Err())
			held, _ := n.control.GetKey(revoked)
			require.NotZero(t, held.RevokedAt, "at %s", n.name)
		}
	})
}

// A bit of the table in memory flips: the next audit finds it, and the table is
// read again from the node's storage.
func TestMemoryThatRotsIsReadAgain(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, "a")
		defer w.close()
		w.start()
		w.settled(1)
		revoked := w.revokedKey("k")
		a := w.node["a"]
		a.control.RotInMemory(revoked)
		w.eventually(5*time.Minute, func() bool {
			held, _ := a.control.GetKey(revoked)
			return held.RevokedAt != 0
		}, "the table is read again")
		w.settled(1)
		require.Equal(t, 1.0, a.metric("failures_total", "memory"))
		require.Equal(t, 1.0, a.metric("restarts_total", ""))
	})
}
