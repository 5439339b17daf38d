package gossip

import (
	"fmt"
	"slices"
	"testing"

	"github.com/fxamacker/cbor/v2"
	"github.com/hashicorp/memberlist"
	"github.com/stretchr/testify/require"
)

// news is one report of memberlist about a start of the node b.
type news struct {
	start, incarnation string
	ready              bool
	state              State
}

func (n news) apply(g *Gossip) {
	meta, err := cbor.Marshal(meta{Name: "b", Incarnation: n.incarnation, Ready: n.ready, Leaving: n.state == Left})
	if err != nil {
		panic(err)
	}
	state := n.state
	if state == Left {
		state = Dead // memberlist does not distinguish the two
	}
	events{g}.take(&memberlist.Node{Name: n.start, Meta: meta}, state)
}

// interleavings lists the orders in which two sequences can arrive.
func interleavings(a, b []news) [][]news {
	if len(a) == 0 || len(b) == 0 {
		return [][]news{slices.Concat(a, b)}
	}
	var all [][]news
	for _, rest := range interleavings(a[1:], b) {
		all = append(all, append([]news{a[0]}, rest...))
	}
	for _, rest := range interleavings(a, b[1:]) {
		all = append(all, append([]news{b[0]}, rest...))
	}
	return all
}

// Whatever the clocks of a node showed at its starts, and in whatever order
// others hear of them, the running start counts once the other one's end is
// known.
func TestTheStartThatRunsCountsInEveryOrderOfNews(t *testing.T) {
	for _, end := range []State{Dead, Left} {
		for _, incarnation := range []string{"1", "2"} {
			earlier := []news{{"b#x", "1", false, Alive}, {"b#x", "1", true, Alive}, {"b#x", "1", false, end}}
			later := []news{{"b#a", incarnation, false, Alive}, {"b#a", incarnation, true, Alive}}
			for _, order := range interleavings(earlier, later) {
				g := &Gossip{starts: starts{}}
				for _, n := range order {
					n.apply(g)
				}
				n := g.starts.of("b")
				require.Equal(t, Alive, n.State, "%v", order)
				require.True(t, n.Ready, "%v", order)
				require.Equal(t, incarnation, n.Incarnation, "%v", order)
				require.Len(t, g.Members(), 1)
			}
		}
	}
}

// Once no start is running, the node has the state of its last start.
func TestANodeEndsAsItsLastStartDid(t *testing.T) {
	first := []news{{"b#1", "i", true, Alive}, {"b#1", "i", false, Dead}}
	second := []news{{"b#2", "i", true, Alive}, {"b#2", "i", false, Left}}
	for _, rest := range interleavings(first[1:], second) {
		g := &Gossip{starts: starts{}}
		for _, n := range append(first[:1:1], rest...) {
			n.apply(g)
		}
		n := g.starts.of("b")
		require.Equal(t, Left, n.State, "%v", rest)
		require.False(t, n.Ready)
	}
}

// An earlier start that late news revives shadows the running one at most until
// its next probe fails.
func TestLateNewsOfAnEarlierStartPasses(t *testing.T) {
	g := &Gossip{starts: starts{}}
	for _, n := range []news{{"b#2", "i", true, Alive}, {"b#1", "i", false, Alive}} {
		n.apply(g)
	}
	require.True(t, g.Alive("b"))
	news{"b#1", "i", false, Dead}.apply(g)
	n := g.starts.of("b")
	require.Equal(t, Alive, n.State)
	require.True(t, n.Ready)
}

// News of a node's earlier starts does not change the node's view of itself.
func TestANodeKnowsItselfBest(t *testing.T) {
	g := &Gossip{cfg: Config{Name: "b"}, start: "b#now", starts: starts{}}
	g.note("b#now", meta{Name: "b", Incarnation: "2", Ready: true}, "", Alive)
	news{"b#before", "1", false, Alive}.apply(g)
	n := g.starts.of("b")
	require.Equal(t, "2", n.Incarnation)
	require.True(t, n.Ready)
}

func TestManyStartsTakeNoRoom(t *testing.T) {
	g := &Gossip{starts: starts{}}
	for i := range 1000 {
		start := fmt.Sprint("b#", i)
		news{start, "i", true, Alive}.apply(g)
		news{start, "i", false, Dead}.apply(g)
	}
	require.Len(t, g.starts, 1)
}
