package control_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	"github.com/stemedb/stemedb/server/internal/control"
	"github.com/stemedb/stemedb/server/internal/control/controlpb"
)

// A node that lost its volumes must not be mistaken for its earlier incarnation:
// with c down, a and the emptied b are no majority, in spite of b's name.
func TestEmptiedNodeDoesNotVoteAsItsOldSelf(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, "a", "b", "c")
		defer w.close()
		w.start()
		w.settled(3)
		w.node["c"].kill()
		w.node["b"].kill()
		w.node["b"].wipe()
		w.node["b"].start()
		for range 6 {
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			_, _, err := w.node["a"].control.CreateKey(ctx, key("k"))
			cancel()
			require.ErrorIs(t, err, control.ErrNoLeader)
		}
		require.False(t, w.node["b"].control.State().Formed())
		require.Contains(t, w.node["b"].control.Phase(), "waiting to be admitted to")
		w.node["c"].start() // a and c are a majority and admit b
		w.settled(3)
	})
}

func TestCallsForAnotherMemberAreRefused(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, "a", "b", "c")
		defer w.close()
		w.start()
		w.settled(3)
		a := w.node["a"].control
		b, _ := a.State().Member("b")
		ask := func(m control.Member) error {
			conn, err := a.Conn(m)
			require.NoError(t, err)
			_, err = controlpb.NewControlClient(conn).Progress(t.Context(), &controlpb.ProgressRequest{})
			return err
		}
		require.NoError(t, ask(b))
		b.Incarnation = "before"
		err := ask(b)
		require.Error(t, err)
		require.True(t, control.WrongMember(fmt.Errorf("wrapped: %w", err)))
		_, stale := control.StaleGeneration(err)
		require.False(t, stale)
	})
}

func TestGenerationsAreChecked(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, "a", "b", "c")
		defer w.close()
		w.start()
		w.settled(3)
		c := w.node["a"].control
		state := c.State()
		call := func(pairs ...string) error {
			ctx := metadata.NewIncomingContext(t.Context(), metadata.Pairs(pairs...))
			_, err := c.UnaryServer()(ctx, nil, &grpc.UnaryServerInfo{FullMethod: "/stemedb.cluster.v1.Peer/Fetch"},
				func(ctx context.Context, _ any) (any, error) {
					require.Equal(t, "b/x", control.CallerID(ctx))
					return nil, nil
				})
			return err
		}
		to := []string{"stemedb-to", c.ID(), "stemedb-from", "b/x", "stemedb-cluster", state.ClusterID}
		require.NoError(t, call(append(to, "stemedb-generation", fmt.Sprint(state.Generation))...))
		require.NoError(t, call(append(to, "stemedb-generation", fmt.Sprint(state.Generation+1))...))
		err := call(append(to, "stemedb-generation", fmt.Sprint(state.Generation-1))...)
		have, stale := control.StaleGeneration(err)
		require.True(t, stale)
		require.Equal(t, state.Generation, have)
		require.Error(t, call(to...), "a generation is needed")
		require.Error(t, call(append(to, "stemedb-generation", "many")...))
		require.True(t, control.WrongMember(call("stemedb-to", "a/other", "stemedb-generation", "9")))
		require.True(t, control.WrongMember(call("stemedb-generation", "9")))
		require.True(t, control.WrongMember(call("stemedb-to", c.ID(), "stemedb-cluster", "other", "stemedb-generation", "9")))

		// A refused caller waits until its own copy has reached that generation.
		require.NoError(t, c.WaitGeneration(t.Context(), state.Generation))
		done := make(chan error, 1)
		go func() { done <- c.WaitGeneration(t.Context(), state.Generation+1) }()
		w.node["b"].data.reset()
		require.NoError(t, w.node["b"].control.ReportNotWhole(t.Context()))
		require.NoError(t, <-done)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		require.Error(t, c.WaitGeneration(ctx, 1000))
		w.settled(3)
	})
}
