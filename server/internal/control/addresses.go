package control

import (
	"context"
	"net"
	"sync"

	"github.com/stemedb/stemedb/server/internal/control/controlpb"
)

// addresses are those that members gave themselves, by member id: of the peer
// port, and of gossip, which is not in the table.
// The table has them too, but only a leader can change it, and when all members
// come back under other host names (another namespace, headless Service or
// cluster domain) none can be elected by the addresses in it. So a node says
// hello to the names on its join list, both sides learn where the other is, and
// the table follows as soon as there is a leader.
//
// A member's id ends with its random incarnation, so an entry can only be about
// that member, and only itself gives it, over a connection that proves the
// cluster's secret.
type addresses struct {
	mu   sync.Mutex
	byID map[string]string
	// gossip is where the members' gossip is to be reached.
	gossip map[string]string
	// recorded is the address of each member in the table when it was last
	// looked at.
	recorded map[string]string
}

func (a *addresses) learn(id, peer, gossip string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.byID == nil {
		a.byID, a.gossip = map[string]string{}, map[string]string{}
	}
	if peer != "" {
		a.byID[id] = peer
	}
	if gossip != "" {
		a.gossip[id] = gossip
	}
}

// follow drops what a member said before the table got another address for it:
// the newer one counts.
func (a *addresses) follow(members []Member) {
	a.mu.Lock()
	defer a.mu.Unlock()
	now := make(map[string]string, len(members))
	for _, m := range members {
		id := m.ID()
		now[id] = m.PeerAddr
		if was, known := a.recorded[id]; known && was != m.PeerAddr {
			delete(a.byID, id)
		}
	}
	a.recorded = now
}

// of returns the address that the member gave itself, or the one that the table
// or Raft has for it.
func (a *addresses) of(id, recorded string) string {
	a.mu.Lock()
	defer a.mu.Unlock()
	if own, ok := a.byID[id]; ok {
		return own
	}
	return recorded
}

// GossipAddr is host:port of a member's gossip, if the member gave it in a hello.
func (c *Control) GossipAddr(memberID string) (addr string, ok bool) {
	c.addresses.mu.Lock()
	defer c.addresses.mu.Unlock()
	addr, ok = c.addresses.gossip[memberID]
	return addr, ok
}

// learnFrom notes where the caller of a hello is.
func (c *Control) learnFrom(r *controlpb.HelloRequest) {
	if r.Name != "" && r.Incarnation != "" {
		c.addresses.learn(MemberID(r.Name, r.Incarnation), r.PeerAddr, r.GossipAddr)
	}
}

// greet says hello to everyone on the join list, so that members which have
// moved find each other. A member that answers under another cluster's id is
// none of this cluster's, and its entry is never asked for.
func (c *Control) greet(ctx context.Context) []listed {
	answers := c.askAll(ctx)
	for _, a := range answers {
		if a.hello != nil {
			c.addresses.learn(MemberID(a.hello.Name, a.hello.Incarnation), reachable(a.hello.PeerAddr, a.addr), a.hello.GossipAddr)
		}
	}
	return answers
}

// reachable is the address at which a node was reached, if that has the port
// that it gave itself: a name that worked is better than one that may not.
func reachable(own, reached string) string {
	_, ownPort, err := net.SplitHostPort(own)
	if err != nil {
		return reached
	}
	if _, port, err := net.SplitHostPort(reached); err == nil && port == ownPort {
		return reached
	}
	return own
}
