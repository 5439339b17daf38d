package control_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// Two copies differ, and the third member was emptied. Its replacement has its
// table from the leader and decides nothing: neither copy is overwritten, or
// trusted, until an operator restores the right one.
func TestANewcomerDecidesNotWhoseCopyIsRight(t *testing.T) {
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
		b.wipe()
		w.start()
		w.eventually(time.Minute, func() bool {
			return a.control.Err() != nil && b.control.Err() != nil && c.control.Err() != nil
		}, "all are in doubt")
		for range 300 {
			time.Sleep(time.Second)
			w.sync()
			for _, n := range w.node {
				ok, _ := n.control.Confirmed()
				require.False(t, ok, "%s trusts its copy", n.name)
			}
		}
		held, ok := a.control.GetKey(revoked)
		require.True(t, ok)
		require.NotZero(t, held.RevokedAt, "the right copy still exists")
		require.Zero(t, a.metric("restarts_total", ""), "a was not replaced")
		require.Zero(t, c.metric("restarts_total", ""), "and neither was c")
	})
}
