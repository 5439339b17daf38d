package control_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// A newcomer has the table long before it holds the records. If it goes away
// then, the table must not lose its majority.
func TestNewcomerThatGoesAwayTakesNoMajorityWithIt(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, "a", "b", "c")
		defer w.close()
		w.start()
		w.settled(3)
		w.everywhere(100)
		w.add("d").start()
		w.eventually(20*time.Second, func() bool {
			s := w.node["d"].control.State()
			return s.Change != nil && s.Change.Subject == w.node["d"].id()
		}, "the newcomer has the table")
		time.Sleep(time.Minute) // nobody pulls any log, so the join stays open
		require.NotNil(t, w.node["a"].control.State().Change)
		w.node["d"].kill()
		w.node["c"].kill()
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		_, _, err := w.running().control.CreateKey(ctx, key("k"))
		require.NoError(t, err, "two of the three voters are left")
	})
}

// A newcomer votes once its join is closed, although nothing else happens then:
// the cluster that has grown to three tolerates the loss of one.
func TestNewcomerVotesWhenItsJoinIsClosed(t *testing.T) {
	for _, lost := range []string{"a", "b", "c"} {
		bubble(t, func(t *testing.T) {
			w := newWorld(t, "a")
			defer w.close()
			w.start()
			w.settled(1)
			for i, name := range []string{"b", "c"} {
				w.add(name).start()
				w.settled(i + 2)
			}
			time.Sleep(10 * time.Second)
			w.node[lost].kill()
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			defer cancel()
			_, _, err := w.running().control.CreateKey(ctx, key("k"))
			require.NoError(t, err, "two of three voters are left without %s", lost)
		})
	}
}

// A stopping leader hands over while a distant follower still answers for entries
// of the old term. With Raft's pipelining the leader never stopped.
func TestLeaderThatIsStoppedWhileEntriesAreOnTheirWayEnds(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, "a", "b", "c")
		defer w.close()
		w.start()
		w.settled(3)
		for _, n := range w.node {
			require.False(t, n.control.Pipelines())
		}
		for i := range 5 {
			leader := w.leader()
			far := w.node["a"]
			if far == leader {
				far = w.node["b"]
			}
			distance := func(d time.Duration) {
				w.net.SetDelayBetween(host(leader.name), host(far.name), d, d)
				w.net.SetDelayBetween(host(far.name), host(leader.name), d, d)
			}
			distance(300 * time.Millisecond)
			for j := range 20 {
				_, _, err := leader.control.CreateKey(t.Context(), key(fmt.Sprint(i, j)))
				require.NoError(t, err)
			}
			leader.stop()
			distance(time.Millisecond)
			leader.start()
			w.settled(3)
		}
	})
}
