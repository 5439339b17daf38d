package control_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/stemedb/stemedb/server/internal/control"
)

// c has joined a and b, and its storage fails before it votes: it answers, but
// its copy of the table falls behind. Then d joins and is lost permanently. Its
// join is abandoned like any other, so that writes need only a and b.
func TestAJoinIsGivenUpAlthoughAnotherMemberDoesNotFollowTheTable(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, "a", "b")
		defer w.close()
		for _, n := range w.node {
			n.timings = control.Timings{GiveUpAfter: time.Minute}
		}
		w.start()
		w.settled(2)
		w.everywhere(100)
		a, c := w.node["a"], w.add("c")
		c.start()
		w.eventually(time.Minute, func() bool {
			s := c.control.State()
			return s.Change != nil && s.Change.Subject == c.id()
		}, "c knows of its join")
		c.disk.Fail(errors.New("no space left on device"))
		w.eventually(time.Minute, func() bool {
			w.sync()
			return a.control.State().Change == nil && len(a.control.State().Members) == 3
		}, "the join of c is closed")
		require.Equal(t, []string{"a", "b"}, w.leader().control.Voters())

		d := w.add("d")
		d.start()
		w.eventually(time.Minute, func() bool { return a.control.State().Change != nil }, "the join of d is open")
		d.kill()
		time.Sleep(10 * time.Minute)
		require.Nil(t, a.control.State().Change, "its subject has been silent for ten minutes")
	})
}

// Of five members a is cut off from three, and e, which still reaches it,
// restarts with empty volumes. It is admitted by the members that have a leader,
// although a is first on the join list.
func TestANodeThatJoinsAsksEveryMember(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, "a", "b", "c", "d", "e")
		defer w.close()
		w.start()
		w.settled(5)
		w.everywhere(100)
		e := w.node["e"]
		e.kill()
		for _, name := range []string{"b", "c", "d"} {
			w.net.Cut(host("a"), host(name))
		}
		e.wipe()
		time.Sleep(30 * time.Second)
		_, _, err := w.node["b"].control.CreateKey(t.Context(), key("k"))
		require.NoError(t, err, "b, c and d have a leader")
		e.start()
		time.Sleep(10 * time.Minute)
		_, ok := w.node["b"].control.State().MemberByID(e.id())
		require.True(t, ok, "%s", e.control.Phase())
	})
}

// A second node joins a single member, which loses a record meanwhile. The join
// can no longer close, and would not have been opened in this state. It is
// abandoned, so that writes need one acknowledgement again.
func TestAJoinThatTheLossOfTheOnlyMemberEndsIsGivenUp(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, "a")
		defer w.close()
		a := w.node["a"]
		a.timings = control.Timings{GiveUpAfter: time.Minute}
		w.start()
		w.settled(1)
		w.everywhere(100)
		b := w.add("b")
		b.start()
		w.eventually(time.Minute, func() bool { return a.control.State().Change != nil }, "the join of b is open")
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		require.NoError(t, a.control.ReportNotWhole(ctx))
		time.Sleep(10 * time.Minute)
		require.Nil(t, a.control.State().Change, "waits for %v", a.control.ChangeWaitsFor())
	})
}
