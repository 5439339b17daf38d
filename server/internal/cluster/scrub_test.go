package cluster

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// A comparison that has listed records which this node lacks judges them only when this
// node has processed all that the member's log held by then. While nothing comes from the
// member, although the connection is not broken yet, nothing can be said about them.
func TestAComparisonWaitsForTheLogOfTheMember(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := threeNodes(t)
		a, b := w.nodes["a"], w.member("b")
		ctx := context.Background()
		time.Sleep(time.Minute)
		require.NoError(t, a.cluster.followsTail(b))
		w.net.Cut("a", "b")
		require.NoError(t, a.cluster.followsTail(b), "the connection does not know yet")
		require.ErrorContains(t, a.cluster.awaitLogOf(ctx, b, time.Now()), "has not caught up with b")
		w.net.HealAll()
		w.awaitConnected()
		ids := w.nodes["b"].write(claims("s", 0, 50)...)
		require.NoError(t, a.cluster.awaitLogOf(ctx, b, time.Now()))
		require.True(t, a.holds(ids...))
	})
}
