package control_test

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// A replacement has pulled enough, and reports that to the leader. While the
// leader waits for another member's answer, the replacement finds a loss, resets
// its cursors and reports it. The change must not be closed by the earlier
// answer.
func TestAReplacementThatReportsALossDuringAPollIsNotWhole(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, "a", "b", "c")
		defer w.close()
		w.start()
		w.settled(3)
		w.everywhere(100)
		a, b, c := w.node["a"], w.node["b"], w.node["c"]
		c.kill()
		c.wipe()
		c.start()
		w.eventually(time.Minute, func() bool {
			s := a.control.State()
			return s.Change != nil && s.Change.Subject == c.id()
		}, "the replacement is open")
		time.Sleep(10 * time.Second)
		require.NotNil(t, a.control.State().Change)

		reported := make(chan struct{})
		b.data.whenAsked(func() {
			if len(c.data.Cursors()) < 2 {
				return
			}
			time.Sleep(time.Second) // c has answered by then
			c.data.reset()
			ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
			defer cancel()
			if c.control.ReportNotWhole(ctx) == nil {
				close(reported)
			}
		})
		c.data.mu.Lock()
		c.data.cursors = map[string]uint64{a.incarnation: 100, b.incarnation: 100}
		c.data.mu.Unlock()
		<-reported
		b.data.whenAsked(nil)
		time.Sleep(5 * time.Second)
		m, ok := a.control.State().MemberByID(c.id())
		require.True(t, ok)
		require.Empty(t, c.data.Cursors(), "it has no cursors")
		require.False(t, m.Whole, "it reported a loss and was not refilled since")
	})
}

// fiveAndOne is a cluster of b to f that a joins. The join is open, and a lacks
// everything.
func fiveAndOne(t *testing.T) (w *world, a, f *node) {
	t.Helper()
	w = newWorld(t, "b", "c", "d", "e", "f")
	w.start()
	w.settled(5)
	w.everywhere(100)
	a, f = w.add("a"), w.node["f"]
	a.join = append([]string{peerAddr("a")}, w.join...)
	a.start()
	w.eventually(time.Minute, func() bool { return f.control.State().Change != nil }, "the join is open")
	time.Sleep(20 * time.Second)
	require.NotNil(t, f.control.State().Change, "it lacks everything")
	return w, a, f
}

// A node whose name sorts before those of five members joins. Until it votes, the
// five do: two of them may fail. Once it is a member, it votes instead of the
// last one.
func TestAJoinTakesNoVoteBeforeItHasOne(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w, _, f := fiveAndOne(t)
		defer w.close()
		b, c := w.node["b"], w.node["c"]
		b.kill()
		c.kill()
		w.eventually(time.Minute, func() bool {
			ok, at := f.control.Confirmed()
			return ok && w.leader() != nil && time.Since(at) < 5*time.Second
		}, "three of five members have a leader")
		require.Equal(t, []string{"b", "c", "d", "e", "f"}, f.control.Voters())

		b.start()
		c.start()
		w.settled(6)
		w.eventually(time.Minute, func() bool {
			voters := f.control.Voters()
			require.GreaterOrEqual(t, len(voters), 5)
			return slices.Equal(voters, []string{"a", "b", "c", "d", "e"})
		}, "the first five vote")
	})
}

// The join is closed, but the newcomer is gone before it votes: the vote intended
// for the newcomer is not transferred until it is back.
func TestAVoteIsKeptUntilTheMemberThatGetsItVotes(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w, a, f := fiveAndOne(t)
		defer w.close()
		w.eventually(time.Minute, func() bool {
			w.sync()
			return f.control.State().Change == nil
		}, "the join is closed")
		a.kill()
		time.Sleep(time.Minute)
		require.Equal(t, []string{"b", "c", "d", "e", "f"}, f.control.Voters())
		a.start()
		w.eventually(time.Minute, func() bool {
			return slices.Equal(f.control.Voters(), []string{"a", "b", "c", "d", "e"})
		}, "the first five vote")
	})
}

// A member's disk is slow, and its copy of the table lags behind a report that
// the others have committed. Until the copy shows the report, it may mark the
// member as whole because of earlier events.
func TestAReportOfALossReturnsWhenTheCopyShowsIt(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, "a", "b", "c")
		defer w.close()
		w.start()
		w.settled(3)
		w.everywhere(100)
		c := w.running()
		for c.control.IsLeader() {
			c = w.node[map[string]string{"a": "b", "b": "c", "c": "a"}[c.name]]
		}
		c.data.reset()
		require.NoError(t, c.control.ReportNotWhole(t.Context()))
		first, _ := c.control.Self()
		require.False(t, first.Whole)
		c.disk.SetLatency(func() time.Duration { return 8 * time.Second })
		require.NoError(t, c.control.ReportNotWhole(t.Context()))
		second, _ := c.control.Self()
		c.disk.SetLatency(nil)
		require.NotEqual(t, first.Loss, second.Loss)
		at, _ := w.leader().control.State().MemberByID(c.id())
		require.Equal(t, at.Loss, second.Loss)
	})
}
