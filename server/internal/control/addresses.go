package control

import (
	"context"
	"net"
	"sync"

	"github.com/stemedb/stemedb/server/internal/control/controlpb"
)

// addresses holds the addresses that members announced, by member id: of the peer
// port, and of gossip, which is not in the table. The table has them too, but
// only a leader can change it, and when all members restart under other host
// names (another namespace, headless Service or cluster domain), none can be
// elected with the addresses in it. So a node sends a hello to the names on its
// join list, both sides learn each other's address, and the table is updated as
// soon as there is a leader.
//
// A member's id ends with its random incarnation, so an entry can only refer to
// that member. Only the member itself announces it, over a connection
// authenticated with the cluster's secret.
type addresses struct {
	mu   sync.Mutex
	byID map[string]string
	// gossip holds the members' gossip addresses.
	gossip map[string]string
	// recorded holds the address of each member in the table at the last check.
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

// follow drops an announced address when the table gets a newer one for the
// member.
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

// of returns the address that the member announced, or else the one recorded in
// the table or in Raft.
func (a *addresses) of(id, recorded string) string {
	a.mu.Lock()
	defer a.mu.Unlock()
	if own, ok := a.byID[id]; ok {
		return own
	}
	return recorded
}

// GossipAddr is host:port of a member's gossip, if the member announced it in a
// hello.
func (c *Control) GossipAddr(memberID string) (addr string, ok bool) {
	c.addresses.mu.Lock()
	defer c.addresses.mu.Unlock()
	addr, ok = c.addresses.gossip[memberID]
	return addr, ok
}

// learnFrom records the addresses of the caller of a hello.
func (c *Control) learnFrom(r *controlpb.HelloRequest) {
	if r.Name != "" && r.Incarnation != "" {
		c.addresses.learn(MemberID(r.Name, r.Incarnation), r.PeerAddr, r.GossipAddr)
	}
}

// greet sends a hello to every address on the join list, so that members that
// have moved find each other. An answer from a member of another cluster is
// harmless: its entry is never used.
func (c *Control) greet(ctx context.Context) []listed {
	answers := c.askAll(ctx)
	for _, a := range answers {
		if a.hello != nil {
			c.addresses.learn(MemberID(a.hello.Name, a.hello.Incarnation), reachable(a.hello.PeerAddr, a.addr), a.hello.GossipAddr)
		}
	}
	return answers
}

// reachable returns the address at which a node was reached if its port is the
// announced one: a name that worked is preferred to one that may not.
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
