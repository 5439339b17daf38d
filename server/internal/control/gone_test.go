package control

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// A member lost some records, and then its volumes: its next incarnation asks to
// be admitted. A later decision about the former loss does not apply to the
// latter. If the dead incarnation counted as whole, a replacement would wait for
// its log, and the losses of others could not be accepted.
func TestAWordAboutALossFromBeforeTheVolumesWereGoneIsOutdated(t *testing.T) {
	for name, open := range map[string][]command{
		"replaced at once":                  nil,
		"replaced while it is refilled":     {&refill{Member: "a/1"}},
		"waits for the refill of a member":  {&refill{Member: "b/1"}},
		"waits, and the change is given up": {&refill{Member: "b/1"}, &admit{Member: member("a", "2")}, &cancelChange{Change: 1}},
	} {
		t.Run(name, func(t *testing.T) {
			tb := formed(t, "a", "b", "c")
			applied(t, tb, &loss{Member: "a/1", Loss: "x"}, &loss{Member: "b/1", Loss: "y"})
			accept, withdraw := accepting(tb.state.Load(), "a/1"), &withdrawLoss{Member: "a/1", Loss: "x"}
			applied(t, tb, open...)
			applied(t, tb, &admit{Member: member("a", "2")})
			require.ErrorIs(t, applied(t, tb, accept)[0].err(), ErrLossStands)
			require.ErrorIs(t, applied(t, tb, withdraw)[0].err(), errOutdated)
			dead, ok := tb.state.Load().MemberByID("a/1")
			require.True(t, ok)
			require.False(t, dead.Whole)
		})
	}
}

// A member that is not whole holds enough to become whole with the subject of the
// open change, and reports that. Then its volumes are lost. The earlier answer
// must not make the dead incarnation whole; and the newcomer, which keeps asking,
// must not prevent the change from closing.
func TestACloseFromBeforeTheVolumesOfAMemberWereGoneIsOutdated(t *testing.T) {
	tb := formed(t, "a", "b", "c", "d", "e")
	applied(t, tb, &loss{Member: "a/1", Loss: "x"}, &loss{Member: "b/1", Loss: "y"}, &refill{Member: "a/1"})
	closing := func(whole ...string) *closeChange {
		s := tb.state.Load()
		return &closeChange{Change: s.Change.ID, Generation: s.Generation, Whole: whole}
	}
	early := closing("a/1", "b/1", "c/1", "d/1", "e/1")
	newcomer := &admit{Member: member("b", "2")}
	require.ErrorIs(t, applied(t, tb, newcomer)[0].err(), errBusy)
	require.ErrorIs(t, applied(t, tb, early)[0].err(), errOutdated)

	late := closing("a/1", "c/1", "d/1", "e/1")
	require.ErrorIs(t, applied(t, tb, newcomer)[0].err(), errBusy)
	require.NoError(t, applied(t, tb, late)[0].err())
	dead, _ := tb.state.Load().MemberByID("b/1")
	require.False(t, dead.Whole)
}

// The leader abandons a change because its subject is silent. Meanwhile that node
// restarts with empty volumes: the change now belongs to the newcomer, which has
// not been silent. An operator cancels the change as it is.
func TestAChangeIsNotGivenUpForASubjectThatIsNoLongerIts(t *testing.T) {
	tb := formed(t, "a", "b", "c")
	applied(t, tb, &admit{Member: member("d", "1")})
	seen := tb.state.Load()
	applied(t, tb, &admit{Member: member("d", "2")})
	givenUp := &cancelChange{Change: seen.Change.ID, Generation: seen.Generation}
	require.ErrorIs(t, applied(t, tb, givenUp)[0].err(), errOutdated)
	require.Equal(t, "d/2", tb.state.Load().Change.Subject)

	require.NoError(t, applied(t, tb, &cancelChange{Change: seen.Change.ID})[0].err())
	require.Nil(t, tb.state.Load().Change)
}

// A log from before commands had a generation is applied unchanged.
func TestACancelledChangeOfAnOlderLogIsTheSameCommand(t *testing.T) {
	type former struct {
		Change uint64 `cbor:"change"`
	}
	body, err := marshal(&former{Change: 7})
	require.NoError(t, err)
	b, err := encodeCommand(&cancelChange{Change: 7})
	require.NoError(t, err)
	require.Equal(t, sealCommand(1, kindCancel, body), b)
}
