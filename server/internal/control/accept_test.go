package control

import (
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/stemedb/stemedb/server/internal/control/controlpb"
)

// accepting returns the command for the loss that the table shows.
func accepting(s *State, id string) *acceptLoss {
	m, _ := s.MemberByID(id)
	return &acceptLoss{Member: id, Loss: m.report(), Change: s.LastChange}
}

func TestALossIsAcceptedOnlyWhenTooFewWholeMembersAreLeft(t *testing.T) {
	for n, lost := range map[int]int{1: 1, 2: 2, 3: 2, 4: 3, 5: 3} {
		var names []string
		for i := range n {
			names = append(names, string(rune('a'+i)))
		}
		tb := formed(t, names...)
		for i := range lost {
			id := names[i] + "/1"
			if i > 0 {
				answer := applied(t, tb, accepting(tb.state.Load(), "a/1"))[0]
				require.ErrorIs(t, answer.err(), ErrLossStands, "%d of %d lost records", i, n)
				require.ErrorContains(t, answer.err(), "enough to refill a")
			}
			require.NoError(t, applied(t, tb, &loss{Member: id, Loss: "x" + id})[0].err())
			if i == 0 && n > 1 {
				require.NoError(t, applied(t, tb, &refill{Member: id})[0].err())
			}
		}
		require.NoError(t, applied(t, tb, accepting(tb.state.Load(), "a/1"))[0].err(), "%d of %d lost records", lost, n)
		s := tb.state.Load()
		a, _ := s.MemberByID("a/1")
		require.True(t, a.Whole)
		require.Nil(t, s.Change)
		candidates, need := s.ReadSet()
		require.LessOrEqual(t, len(candidates), need, "each read hears every whole member")
	}
}

// The command is repeated after its answer was lost, and the member has lost more
// records since.
func TestARepeatedAcceptanceAcceptsNoLaterLoss(t *testing.T) {
	tb := formed(t, "a", "b", "c")
	applied(t, tb, &loss{Member: "a/1", Loss: "x"}, &loss{Member: "b/1", Loss: "y"})
	accept := accepting(tb.state.Load(), "a/1")
	require.NoError(t, applied(t, tb, accept)[0].err())
	require.NoError(t, applied(t, tb, accept)[0].err(), "again, with nothing new")
	applied(t, tb, &loss{Member: "a/1", Loss: "z"})
	require.ErrorIs(t, applied(t, tb, accept)[0].err(), ErrLossStands)
	a, _ := tb.state.Load().MemberByID("a/1")
	require.False(t, a.Whole)

	// A member that is not whole without a report: its replacement was cancelled.
	tb = formed(t, "a", "b", "c")
	applied(t, tb, &loss{Member: "b/1", Loss: "y"}, &admit{Member: member("a", "2")}, &cancelChange{Change: 1})
	accept = accepting(tb.state.Load(), "a/1")
	require.NoError(t, applied(t, tb, accept)[0].err())
	applied(t, tb, &admit{Member: member("a", "2")}, &cancelChange{Change: 2})
	require.ErrorIs(t, applied(t, tb, accept)[0].err(), ErrLossStands)
}

func TestANewcomerIsNotAcceptedInPlaceOfItsRecords(t *testing.T) {
	for name, newcomer := range map[string]Member{"join": member("d", "1"), "replace": member("a", "2")} {
		t.Run(name, func(t *testing.T) {
			tb := formed(t, "a", "b", "c")
			applied(t, tb, &admit{Member: newcomer}, &loss{Member: "b/1", Loss: "y"}, &loss{Member: "c/1", Loss: "z"})
			before := tb.state.Load()
			answer := applied(t, tb, accepting(before, newcomer.ID()))[0]
			require.ErrorIs(t, answer.err(), ErrLossStands)
			require.ErrorContains(t, answer.err(), "empty volumes")
			require.Equal(t, before.Members, tb.state.Load().Members)
			require.Equal(t, before.Change, tb.state.Load().Change)
		})
	}
}

func TestAClusterGrowsOnlyFromEnoughWholeMembers(t *testing.T) {
	for n, lost := range map[int]int{1: 1, 2: 2, 3: 2, 5: 3} {
		tb := formed(t, "a", "b", "c", "d", "e")
		s := tb.state.Load().clone()
		s.Members = s.Members[:n]
		tb.publish(s)
		newcomer := &admit{Member: member("x", "1")}
		for _, m := range s.Members[:lost] {
			applied(t, tb, &loss{Member: m.ID(), Loss: m.Name})
		}
		err := applied(t, tb, newcomer)[0].err()
		require.ErrorIs(t, err, errTooFewWhole)
		require.ErrorContains(t, err, "stemedb cluster accept-loss")
		require.Nil(t, tb.state.Load().Change)
		applied(t, tb, accepting(tb.state.Load(), "a/1"))
		require.NoError(t, applied(t, tb, newcomer)[0].err())
		require.Equal(t, Join, tb.state.Load().Change.Kind)
	}
}

// The subject of a change answers all the time.
func TestAnAnsweringSubjectThatGetsNowhereIsGivenUp(t *testing.T) {
	const after = 5 * time.Minute
	own := map[string]uint64{}
	for name, test := range map[string]struct {
		open    []command
		subject string
		cursors func(minute int) map[string]uint64
		gives   bool
	}{
		"a join without any progress": {[]command{&admit{Member: member("d", "1")}}, "d/1", func(int) map[string]uint64 { return own }, true},
		"a join that takes in new records of one log only": {
			[]command{&admit{Member: member("d", "1")}},
			"d/1",
			func(minute int) map[string]uint64 { return map[string]uint64{"a": uint64(10 + minute)} }, true,
		},
		"a slow join": {
			[]command{&admit{Member: member("d", "1")}},
			"d/1",
			func(minute int) map[string]uint64 { return map[string]uint64{"a": 10, "b": uint64(minute / 4)} }, false,
		},
		"a join that waits for others": {
			[]command{&admit{Member: member("d", "1")}},
			"d/1",
			func(int) map[string]uint64 { return map[string]uint64{"a": 10, "b": 10} }, false,
		},
		"a refill that nobody waits for": {[]command{&loss{Member: "c/c", Loss: "x"}, &refill{Member: "c/c"}}, "c/c", func(int) map[string]uint64 { return own }, false},
		"a refill that another one waits for": {
			[]command{&loss{Member: "c/c", Loss: "x"}, &refill{Member: "c/c"}, &loss{Member: "e/e", Loss: "x"}}, "c/c", func(int) map[string]uint64 { return own }, true,
		},
		"a replacement, which has a vote": {
			[]command{&admit{Member: member("c", "2")}, &loss{Member: "e/e", Loss: "x"}}, "c/2", func(int) map[string]uint64 { return own }, false,
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				tb := newTable(&broadcast{})
				f := &found{ClusterID: "c"}
				for _, n := range []string{"a", "b", "c", "e", "f"} {
					f.Members = append(f.Members, member(n, n))
				}
				applied(t, tb, f)
				applied(t, tb, test.open...)
				change := tb.state.Load().Change
				d := &driver{}
				gave := false
				for minute := range 30 {
					d.takeUp(change)
					end := func(name string) *controlpb.ProgressResponse {
						return &controlpb.ProgressResponse{Incarnation: name, Generation: change.Generation, LogEnd: uint64(10 + minute)}
					}
					subject := end("")
					subject.Cursors = test.cursors(minute)
					d.note(change, map[string]*controlpb.ProgressResponse{"a/a": end("a"), "b/b": end("b")})
					d.watch(change, false, subject)
					gave = gave || d.hopeless(change, after) != ""
					require.False(t, gave && minute < 5, "not before its time")
					time.Sleep(time.Minute)
				}
				require.Equal(t, test.gives, gave)
			})
		})
	}
}

// A join was unfillable for almost GiveUpAfter. Once it can be filled, that time
// starts again, whether its subject answers at first or not.
func TestAJoinThatCouldNotBeFilledHasItsTimeAnew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tb := formed(t, "a")
		applied(t, tb, &admit{Member: member("b", "1")}, &loss{Member: "a/1", Loss: "y"})
		const after = 10 * time.Minute
		d := &driver{}
		watch := func(p *controlpb.ProgressResponse) string {
			change := tb.state.Load().Change
			d.takeUp(change)
			d.note(change, map[string]*controlpb.ProgressResponse{"a/1": {Incarnation: "1", Generation: change.Generation, LogEnd: 10}})
			d.watch(change, false, p)
			return d.hopeless(change, after)
		}
		subject := func() *controlpb.ProgressResponse {
			return &controlpb.ProgressResponse{Generation: tb.state.Load().Generation}
		}
		for range 99 {
			require.Empty(t, watch(subject()))
			time.Sleep(after / 100)
		}
		old := subject()
		applied(t, tb, &withdrawLoss{Member: "a/1", Loss: "y"})
		for _, answer := range []*controlpb.ProgressResponse{old, nil, old} {
			time.Sleep(after / 200)
			require.Empty(t, watch(answer))
		}
		for range 90 {
			require.Empty(t, watch(subject()))
			time.Sleep(after / 100)
		}
		time.Sleep(after / 5)
		require.NotEmpty(t, watch(subject()), "it made no progress")
	})
}

// An abandoned refill does not begin again before those that waited for it.
func TestTheRefillThatWasGivenUpComesLast(t *testing.T) {
	tb := formed(t, "a", "b", "c", "d", "e")
	applied(t, tb, &loss{Member: "b/1", Loss: "x"}, &loss{Member: "c/1", Loss: "y"})
	c := &Control{log: slog.New(slog.DiscardHandler)}
	s := tb.state.Load()
	answers := map[string]*controlpb.ProgressResponse{"b/1": {}, "c/1": {}}
	require.Equal(t, "b/1", c.nextRefill(s, answers))
	c.driver.passed = "b/1"
	require.Equal(t, "c/1", c.nextRefill(s, answers))
	delete(answers, "c/1")
	require.Equal(t, "b/1", c.nextRefill(s, answers))
	require.Empty(t, c.nextRefill(s, nil))
}

// A member that is not whole and has no loss to withdraw, because its replacement
// was cancelled, loses more records after the operator's review.
func TestALaterLossOfAMemberWithoutAReportIsNotAccepted(t *testing.T) {
	tb := formed(t, "a", "b", "c")
	applied(t, tb, &loss{Member: "b/1", Loss: "y"}, &admit{Member: member("a", "2")}, &cancelChange{Change: 1})
	accept := accepting(tb.state.Load(), "a/1")
	require.NoError(t, applied(t, tb, &loss{Member: "a/1", Loss: "z"})[0].err())
	require.ErrorIs(t, applied(t, tb, accept)[0].err(), ErrLossStands)
	require.NoError(t, applied(t, tb, accepting(tb.state.Load(), "a/1"))[0].err())
}

// An answer of a member from before its report of a loss closes nothing, although
// it was not whole before either. A repeated report outdates nothing.
func TestACloseFromBeforeALossOfItsSubjectIsOutdated(t *testing.T) {
	for name, newcomer := range map[string]Member{"join": member("d", "1"), "replace": member("a", "2")} {
		t.Run(name, func(t *testing.T) {
			tb := formed(t, "a", "b", "c")
			applied(t, tb, &admit{Member: newcomer})
			closing := func(s *State) *closeChange {
				return &closeChange{Change: s.Change.ID, Generation: s.Generation, Whole: []string{newcomer.ID()}}
			}
			report := &loss{Member: newcomer.ID(), Loss: "z"}
			early := closing(tb.state.Load())
			require.NoError(t, applied(t, tb, report)[0].err())
			require.ErrorIs(t, applied(t, tb, early)[0].err(), errOutdated)

			late := closing(tb.state.Load())
			require.NoError(t, applied(t, tb, report)[0].err())
			require.NoError(t, applied(t, tb, late)[0].err())
			m, _ := tb.state.Load().MemberByID(newcomer.ID())
			require.True(t, m.Whole)
			require.Empty(t, m.report())
		})
	}
}
