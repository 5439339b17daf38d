package cluster

import (
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/stemedb/stemedb/server/internal/control"
	"github.com/stemedb/stemedb/server/internal/store"
)

// members returns the members of a set given as the letters of their names.
func lettered(names string) []control.Member {
	var ms []control.Member
	for _, name := range strings.Split(names, "") {
		ms = append(ms, control.Member{Name: name, Incarnation: "1", Whole: true})
	}
	return ms
}

func stateOf(members string, change ...string) *control.State {
	s := &control.State{ClusterID: "x", Members: lettered(members)}
	if len(change) == 2 {
		s.Change = &control.Change{Old: lettered(change[0]), New: lettered(change[1])}
	}
	return s
}

func TestWriteWinsWithAMajority(t *testing.T) {
	for _, tc := range []struct {
		state *control.State
		acks  string
		wins  bool
	}{
		{stateOf("a"), "", false},
		{stateOf("a"), "a", true},
		{stateOf("a"), "b", false},
		{stateOf("ab"), "a", false},
		{stateOf("ab"), "ab", true},
		{stateOf("abc"), "a", false},
		{stateOf("abc"), "aaa", false}, // an ack counts once
		{stateOf("abc"), "bc", true},   // with or without the coordinator's ack
		{stateOf("abcd"), "ab", false},
		{stateOf("abcd"), "abd", true},
		{stateOf("abcde"), "ab", false},
		{stateOf("abcde"), "aef", false}, // f is not a member
		{stateOf("abcde"), "ace", true},
		{stateOf("a", "a", "ab"), "a", false},
		{stateOf("a", "a", "ab"), "ab", true},
		{stateOf("abc", "abc", "abcd"), "ab", false},
		{stateOf("abc", "abc", "abcd"), "abd", true},
		{stateOf("abc", "abc", "abx"), "ac", false}, // x replaces c
		{stateOf("abc", "abc", "abx"), "cx", false},
		{stateOf("abc", "abc", "abx"), "ab", true},
		{stateOf("abc", "abc", "abx"), "acx", true},
		{stateOf("abc", "abc", "ab"), "bc", false},
		{stateOf("abcde", "abcde", "abcd"), "abe", false},
		{stateOf("abcde", "abcde", "abcd"), "abc", true},
	} {
		name := fmt.Sprintf("%v/%s", names(tc.state.Members), tc.acks)
		t.Run(name, func(t *testing.T) {
			w := &write{done: make(chan struct{})}
			for _, id := range strings.Split(tc.acks, "") {
				w.ack(id+"/1", 0, func() *control.State { return tc.state })
			}
			select {
			case <-w.done:
				require.True(t, tc.wins)
			default:
				require.False(t, tc.wins)
			}
			require.Equal(t, tc.wins, w.settled.Load())
		})
	}
}

func names(ms []control.Member) string {
	s := ""
	for _, m := range ms {
		s += m.Name
	}
	return s
}

// TestRuleOfTheNewestState: acks collected under one state are evaluated with the
// state at the time of the next ack, or of a change of the state.
func TestRuleOfTheNewestState(t *testing.T) {
	state := stateOf("abc")
	newest := func() *control.State { return state }
	w := &write{done: make(chan struct{})}
	w.ack("a/1", 0, newest)
	state = stateOf("abc", "abc", "abcde")
	w.ack("b/1", 0, newest)
	require.False(t, w.won, "a majority of the old ones only")
	state = stateOf("abx")
	w.ack("c/1", 0, newest)
	require.True(t, w.won, "a and b of the new members")

	w = &write{done: make(chan struct{})}
	state = stateOf("abc")
	w.ack("a/1", 0, newest)
	require.False(t, w.won)
	state = stateOf("a")
	w.judge(newest)
	require.True(t, w.won)
	w.ack("b/1", 0, newest) // late acks are harmless
}

// An acknowledgement from before a loss of the member does not count, even when
// the member is whole again; one from afterwards does.
func TestAckFromBeforeALossDoesNotCount(t *testing.T) {
	state := stateOf("abc")
	newest := func() *control.State { return state }
	w := &write{done: make(chan struct{})}
	w.ack("b/1", 3, newest)
	lost := stateOf("abc")
	lost.Members[1].LostAt = 4
	state = lost
	w.ack("a/1", 6, newest)
	require.False(t, w.won)
	w.ack("b/1", 4, newest)
	require.True(t, w.won)
}

func TestReadPlan(t *testing.T) {
	notWhole := func(s *control.State, names string) *control.State {
		for _, set := range [][]control.Member{s.Members} {
			for i := range set {
				set[i].Whole = set[i].Whole && !strings.Contains(names, set[i].Name)
			}
		}
		return s
	}
	for _, tc := range []struct {
		name   string
		state  *control.State
		heard  string // in addition to a
		enough bool
		first  int // number of members asked at once
	}{
		{"1", stateOf("a"), "", true, 0},
		{"2", stateOf("ab"), "", false, 1},
		{"2", stateOf("ab"), "b", true, 1},
		{"3", stateOf("abc"), "", false, 1},
		{"3", stateOf("abc"), "c", true, 1},
		{"4", stateOf("abcd"), "d", false, 2},
		{"4", stateOf("abcd"), "cd", true, 2},
		{"5", stateOf("abcde"), "b", false, 2},
		{"5", stateOf("abcde"), "be", true, 2},
		{"3 of which one is not whole", notWhole(stateOf("abc"), "c"), "c", false, 1},
		{"1 to 2: the new one too", stateOf("a", "a", "ab"), "", false, 1},
		{"1 to 2: the new one too", stateOf("a", "a", "ab"), "b", true, 1},
		{"2 to 3: a majority of the old ones", stateOf("ab", "ab", "abc"), "c", false, 1},
		{"2 to 3: a majority of the old ones", stateOf("ab", "ab", "abc"), "b", true, 1},
		{"4 to 5", stateOf("abcd", "abcd", "abcde"), "be", false, 2},
		{"4 to 5", stateOf("abcd", "abcd", "abcde"), "bc", true, 2},
		{"replaced: the new one is no old one", stateOf("abc", "abc", "abx"), "x", false, 1},
		{"replaced", stateOf("abc", "abc", "abx"), "b", true, 1},
	} {
		t.Run(tc.name+" "+tc.heard, func(t *testing.T) {
			if tc.state.Change != nil {
				for i := range tc.state.Change.New {
					if _, old := find(tc.state.Members, tc.state.Change.New[i].ID()); !old {
						tc.state.Change.New[i].Whole = false
					}
				}
			}
			c := &Cluster{id: "a/1", store: wholeStore{}, control: &table{state: tc.state}, links: map[string]*link{}}
			c.vouches.given = true // its start was long ago
			p, err := c.planRead()
			require.NoError(t, err)
			var heard []control.Member
			for _, name := range strings.Split(tc.heard, "") {
				if name != "" {
					heard = append(heard, control.Member{Name: name, Incarnation: "1"})
				}
			}
			require.Equal(t, tc.enough, p.enough(heard))
			require.Equal(t, tc.first, p.firstCalls())
		})
	}

	c := &Cluster{id: "a/1", store: wholeStore{}, control: &table{state: notWhole(stateOf("abc"), "bc")}}
	c.vouches.given = true
	_, err := c.planRead()
	var u *UnavailableError
	require.ErrorAs(t, err, &u)
	require.Equal(t, CodeTooFewWhole, u.Code)
	c.control = &table{state: notWhole(stateOf("abc"), "a")}
	_, err = c.planRead()
	require.ErrorAs(t, err, &u)
	require.Equal(t, CodeNotWhole, u.Code)
}

func find(set []control.Member, id string) (control.Member, bool) {
	for _, m := range set {
		if m.ID() == id {
			return m, true
		}
	}
	return control.Member{}, false
}

// wholeStore is a store that only answers whether it is whole.
type wholeStore struct{ Store }

func (wholeStore) Whole() bool { return true }

func TestMessagesOfAWrite(t *testing.T) {
	w := &write{}
	for i := range 100 {
		a := claim("s", i)
		w.items = append(w.items, store.NewContent("p", a.ID(), &a.Content))
	}
	w.encode(1000)
	require.Greater(t, len(w.cuts), 10)
	var got []store.Item
	start := 0
	for _, end := range w.cuts {
		items, err := store.ParseRecords(w.wire[start:end])
		require.NoError(t, err)
		require.LessOrEqual(t, end-start, 1000)
		got = append(got, items...)
		start = end
	}
	require.Equal(t, len(w.items), len(got))
	for i := range got {
		require.Equal(t, w.items[i].Key, got[i].Key)
		require.Equal(t, w.items[i].Payload, got[i].Payload)
	}
}
