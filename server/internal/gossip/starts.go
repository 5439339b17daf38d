package gossip

import (
	"cmp"
	"crypto/rand"
	"slices"
	"strings"
	"time"
)

// State is a node's state as gossip sees it.
type State string

// The states. A node that stopped answering is Dead after a few seconds; one
// that said goodbye has Left.
const (
	Alive State = "alive"
	Dead  State = "dead"
	Left  State = "left"
)

// Node is one node as gossip knows it.
type Node struct {
	Name        string
	Incarnation string
	// APIAddr is where the node serves its HTTP API, host:port.
	APIAddr string
	// Ready is the node's latest announcement of whether it can serve.
	Ready bool
	State State
	// Since is when State or Ready changed, by the local clock.
	Since time.Time
}

// seen is one start of a node.
type seen struct {
	Node
	addr string // gossip address, ip:port
	// heard is a counter: of two starts, the one with the higher value was seen
	// alive here later.
	heard uint64
}

// starts holds the starts of nodes by memberlist's names for them.
//
// To memberlist each start of a process is a separate member with a random
// name, and memberlist orders the news of one start. Starts of the same node
// need no order among each other, which would have to come from a clock or a
// volume: a node is alive as long as any of its starts is. An earlier start
// that still counts as alive, because it was killed a moment ago or because old
// news arrives late, fails its next probe. Its end does not affect the running
// start.
type starts map[string]*seen

// nameStart draws memberlist's name for a start. memberlist would treat a name
// that was used at another address as a conflict.
func nameStart(node string) string { return node + "#" + strings.ToLower(rand.Text()) }

// of returns the start that represents the node: one that is alive and, among
// equals, the one seen alive last.
func (s starts) of(node string) *seen {
	var best *seen
	for _, one := range s {
		if one.Name == node && (best == nil || one.outranks(best)) {
			best = one
		}
	}
	return best
}

func (s *seen) outranks(other *seen) bool {
	if alive := s.State == Alive; alive != (other.State == Alive) {
		return alive
	}
	return s.heard > other.heard
}

// prune forgets the starts of a node that have ended, except the one seen alive
// last.
func (s starts) prune(node string) {
	var last uint64
	for _, one := range s {
		if one.Name == node {
			last = max(last, one.heard)
		}
	}
	for name, one := range s {
		if one.Name == node && one.State != Alive && one.heard < last {
			delete(s, name)
		}
	}
}

// note records news of a start of a node.
func (g *Gossip) note(start string, m meta, addr string, state State) {
	if m.Name == g.cfg.Name && start != g.start {
		return // an earlier start of this node
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	next := &seen{addr: addr, Node: Node{
		Name: m.Name, Incarnation: m.Incarnation, APIAddr: m.APIAddr, Ready: m.Ready && state == Alive, State: state, Since: time.Now(),
	}}
	held := g.starts[start]
	if held != nil {
		next.heard = held.heard
		if held.State == state && held.Ready == next.Ready {
			next.Since = held.Since
		}
	}
	if state == Alive && (held == nil || held.State != Alive) {
		g.heard++
		next.heard = g.heard
	}
	g.starts[start] = next
	g.starts.prune(m.Name)
}

// Members lists every node that is or was seen, this one included, by name.
func (g *Gossip) Members() []Node {
	g.mu.Lock()
	defer g.mu.Unlock()
	names := map[string]bool{}
	var nodes []Node
	for _, s := range g.starts {
		if !names[s.Name] {
			names[s.Name] = true
			nodes = append(nodes, g.starts.of(s.Name).Node)
		}
	}
	slices.SortFunc(nodes, func(a, b Node) int { return cmp.Compare(a.Name, b.Name) })
	return nodes
}

// Alive reports whether the node of that name is believed to be alive.
func (g *Gossip) Alive(name string) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	s := g.starts.of(name)
	return s != nil && s.State == Alive
}

// knows reports whether a start at the address is believed to be alive.
func (g *Gossip) knows(addr string) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, s := range g.starts {
		if s.addr == addr && s.State == Alive {
			return true
		}
	}
	return false
}
