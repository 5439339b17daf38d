package control

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/raft"

	"github.com/stemedb/stemedb/internal/sleep"
	"github.com/stemedb/stemedb/server/internal/control/controlpb"
)

// Forming and joining. Every node repeats the same checks until it is a member;
// each step is idempotent, so a node may crash at any of them:
//
//	has Raft state            → wait for Raft: it is, or will be, in a cluster
//	another has a cluster     → request to join it
//	another has Raft state    → wait: a cluster is forming there
//	founder, all are empty    → write the first configuration; from then on the
//	                            node has Raft state
//	otherwise                 → wait
//
// The first leader finds an empty table and writes the cluster's identity with
// the members of Raft's configuration into it (see lead in change.go).

// maxVoters is the number of members that vote in Raft; further members only hold
// copies.
const maxVoters = 5

// runForm makes the node a member of a cluster and then keeps its addresses up to
// date.
func (c *Control) runForm() {
	for {
		changed := c.changed.wait()
		if done := c.formStep(c.ctx); done {
			select {
			case <-changed:
			case <-c.ctx.Done():
				return
			}
		}
		if !sleep.For(c.ctx, c.cfg.Timings.FormEvery) {
			return
		}
	}
}

// formStep takes one step and reports whether nothing is left to do.
func (c *Control) formStep(ctx context.Context) bool {
	state := c.State()
	c.addresses.follow(state.Everyone())
	if state.Formed() {
		if c.cfg.ClusterID != "" && state.ClusterID != c.cfg.ClusterID {
			c.table.fail(fmt.Errorf("the volumes belong to cluster %s, but the control table belongs to cluster %s: "+
				"use volumes of one cluster", c.cfg.ClusterID, state.ClusterID))
			return true
		}
		return c.beMember(ctx, state)
	}
	has, err := c.hasState()
	if err != nil {
		c.setPhase(err.Error())
		return false
	}
	if has {
		c.setPhase("waiting for a leader: this node has a part of a table, and no leader has contacted it yet")
		c.rejoin(ctx, state)
		return false
	}
	c.seek(ctx)
	return false
}

// beMember requests to join if the node is not a member, and updates its
// addresses in the table if they differ.
func (c *Control) beMember(ctx context.Context, state *State) bool {
	self := c.self()
	held, ok := state.MemberByID(c.id)
	if !ok {
		// It was a member, or is becoming one; the leader may not know its address.
		c.seek(ctx)
		return false
	}
	c.setPhase("")
	if _, led := c.Leader(); !led {
		c.rejoin(ctx, state)
		return false
	}
	if held.PeerAddr == self.PeerAddr && held.APIAddr == self.APIAddr {
		return true
	}
	ctx, cancel := context.WithTimeout(ctx, c.cfg.Timings.CallTimeout)
	defer cancel()
	if _, err := c.propose(ctx, &admit{Member: self}); err != nil {
		c.log.Debug("could not update this node's addresses in the control table", "error", err)
	}
	return false
}

// rejoin announces this node's addresses. If no leader has contacted it for a
// while although another member has a newer table, it requests to join again: its
// join may have been cancelled while it was down, and a leader does not contact a
// node that is not a member.
func (c *Control) rejoin(ctx context.Context, state *State) {
	answers := c.greet(ctx)
	if time.Since(c.led()) < 3*c.cfg.Timings.Heartbeat {
		return // so short a silence of the leader means nothing
	}
	c.join(ctx, answers, state.Generation)
}

// join requests admission from the nodes that have a cluster and a newer table,
// until one of them accepts: some may have no leader with a majority. It returns
// false when there was no node to ask.
func (c *Control) join(ctx context.Context, answers []listed, generation uint64) (asked bool) {
	for _, a := range answers {
		if a.hello.GetClusterId() == "" || a.hello.Generation <= generation {
			continue
		}
		if asked = true; c.joinAt(ctx, a) {
			break
		}
	}
	return asked
}

func (c *Control) self() Member {
	return Member{Name: c.cfg.Name, Incarnation: c.cfg.Incarnation, PeerAddr: c.cfg.PeerAddr, APIAddr: c.cfg.APIAddr}
}

// asksAgain returns when this node may request to join. A node whose join was
// cancelled since its start waits for GiveUpAfter after the last contact from its
// leader: otherwise it would immediately undo the decision of the operator or the
// leader, and writes would need its acknowledgement again. A node that was
// admitted and has had no contact from a leader since does not know when its join
// is cancelled: that takes up to GiveUpAfter, so it waits twice as long. A node
// that has just started asks at once. So does a member, which only announces
// itself.
func (c *Control) asksAgain() (at time.Time, rests bool) {
	state := c.State()
	_, member := state.MemberByID(c.id)
	newcomer := !member || state.Change != nil && state.Change.Subject == c.id && state.Change.Kind != Refill
	r := c.raft.Load()
	if !newcomer || r == nil {
		return time.Time{}, false
	}
	rest := c.cfg.Timings.GiveUpAfter
	switch contact := r.LastContact(); {
	case contact.After(c.began) && contact.After(c.letIn):
		at = contact.Add(rest)
	case !c.letIn.IsZero():
		at = c.letIn.Add(2 * rest)
	}
	return at, time.Now().Before(at)
}

// listed is one name on the join list and the result of asking it.
type listed struct {
	addr  string
	mine  bool
	hello *controlpb.HelloResponse
	err   error
}

// mine reports whether an entry of the join list is this node: it equals the peer
// address, or its first label is the node's name.
func (c *Control) mine(addr string) bool { return isOwn(addr, c.cfg.Name, c.cfg.PeerAddr) }

func isOwn(addr, name, peerAddr string) bool {
	if addr == peerAddr {
		return true
	}
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		host = addr
	}
	label, _, _ := strings.Cut(host, ".")
	return label == name
}

// Expected is the number of members of a cluster according to the join list of a
// node with this name and peer address.
func Expected(join []string, name, peerAddr string) int {
	own := func(addr string) bool { return isOwn(addr, name, peerAddr) }
	if slices.ContainsFunc(join, own) {
		return len(join)
	}
	return len(join) + 1
}

// seek searches for a cluster, and founds one if this node is the founder and no
// other node has or may have one.
func (c *Control) seek(ctx context.Context) {
	answers := c.greet(ctx)
	if c.join(ctx, answers, 0) {
		return
	}
	var waits []string
	for _, a := range answers {
		switch {
		case a.mine:
		case a.err != nil:
			waits = append(waits, fmt.Sprintf("%s does not answer (%v)", a.addr, a.err))
		case a.hello.HasState:
			waits = append(waits, a.addr+" is forming a cluster")
		case !a.hello.VolumesEmpty:
			waits = append(waits, a.addr+" has records on its volumes but no cluster")
		}
	}
	alone := !slices.ContainsFunc(answers, func(a listed) bool { return !a.mine })
	switch {
	case alone && c.cfg.Shared:
		waits = append(waits, "the volumes belonged to a cluster with other members, but the join list names none of them: "+
			"set STEMEDB_CLUSTER_JOIN to their addresses; if they are permanently gone, restore the WAL volume from a snapshot, "+
			"or restore a backup into a node with new volumes and keep these")
	case c.cfg.Data.Empty():
	case alone:
		// No other node could have the cluster. The records are kept; the keys were in
		// the table and have to be registered again.
		c.log.Warn("founding a new cluster on volumes with records: the WAL volume was lost, and the table of keys with it")
	default:
		waits = append(waits, "this node has records on its volumes but no cluster")
	}
	founder := len(answers) == 0 || answers[0].mine
	switch {
	case c.State().Formed():
		c.setPhase("this node is not a member and finds no member that admits it")
	case len(waits) > 0:
		c.setPhase("waiting to form a cluster: " + strings.Join(waits, "; "))
	case !founder:
		c.setPhase(fmt.Sprintf("waiting for %s, the first address on the join list, to form the cluster", answers[0].addr))
	default:
		c.found(answers)
	}
}

// askAll sends a hello to every address on the join list in parallel.
func (c *Control) askAll(ctx context.Context) []listed {
	ctx, cancel := context.WithTimeout(ctx, c.cfg.Timings.CallTimeout)
	defer cancel()
	answers := make([]listed, len(c.cfg.Join))
	done := make(chan struct{})
	asked := 0
	for i, addr := range c.cfg.Join {
		answers[i] = listed{addr: addr, mine: c.mine(addr)}
		if answers[i].mine {
			continue
		}
		asked++
		go func() {
			answers[i].hello, answers[i].err = c.hello(ctx, addr)
			done <- struct{}{}
		}()
	}
	for range asked {
		<-done // each ends with ctx at the latest
	}
	// Two names of the same node count as one answer.
	seen := map[string]string{c.id: "this node"}
	for i := range answers {
		a := &answers[i]
		if a.hello == nil {
			continue
		}
		id := MemberID(a.hello.Name, a.hello.Incarnation)
		if other := seen[id]; other != "" {
			a.hello, a.err = nil, fmt.Errorf("%s answers there, which is also %s", id, other)
			continue
		}
		seen[id] = a.addr
	}
	return answers
}

func (c *Control) hello(ctx context.Context, addr string) (*controlpb.HelloResponse, error) {
	cc, err := c.cfg.Peers.Conn(addr)
	if err != nil {
		return nil, err
	}
	return controlpb.NewControlClient(cc).Hello(ctx, &controlpb.HelloRequest{
		Name: c.cfg.Name, Incarnation: c.cfg.Incarnation, PeerAddr: c.cfg.PeerAddr, GossipAddr: c.cfg.GossipAddr,
	})
}

// joinAt requests admission from a node that has a cluster, and reports whether
// that is settled, so that no other node need be asked.
func (c *Control) joinAt(ctx context.Context, at listed) (settled bool) {
	if mine := cmp.Or(c.State().ClusterID, c.cfg.ClusterID); mine != "" && at.hello.ClusterId != mine {
		c.setPhase(fmt.Sprintf("this node does not join: its volumes belong to cluster %s, but %s belongs to cluster %s", mine, at.addr, at.hello.ClusterId))
		return false
	}
	if again, rests := c.asksAgain(); rests {
		c.setPhase(fmt.Sprintf("this node was admitted to cluster %s, and its change of members was cancelled or no leader has contacted it since; it requests to join again at %s, or after a restart",
			at.hello.ClusterId, again.UTC().Format(time.RFC3339)))
		return true
	}
	ctx, cancel := context.WithTimeout(ctx, 2*c.cfg.Timings.CallTimeout)
	defer cancel()
	cc, err := c.cfg.Peers.Conn(at.addr)
	if err == nil {
		self := c.self()
		var answer *controlpb.JoinResponse
		answer, err = controlpb.NewControlClient(cc).Join(ctx, &controlpb.JoinRequest{
			Name: self.Name, Incarnation: self.Incarnation, PeerAddr: self.PeerAddr, ApiAddr: self.APIAddr,
		})
		if err == nil && !answer.Accepted {
			err = errors.New(answer.Reason)
		}
	}
	if err != nil {
		c.setPhase(fmt.Sprintf("waiting to be admitted to cluster %s: %v", at.hello.ClusterId, err))
		return false
	}
	c.letIn = time.Now()
	c.setPhase("this node was admitted to cluster " + at.hello.ClusterId + " and waits for its table")
	return true
}

// found writes the first configuration with all nodes that answered, so that the
// loss of one of them, this node included, does not end the cluster.
func (c *Control) found(answers []listed) {
	servers := []raft.Server{{ID: raft.ServerID(c.id), Address: raftAddress(c.id, c.cfg.PeerAddr)}}
	for _, a := range answers {
		if a.mine {
			continue
		}
		id := MemberID(a.hello.Name, a.hello.Incarnation)
		server := raft.Server{ID: raft.ServerID(id), Address: raftAddress(id, a.hello.PeerAddr)}
		if len(servers) >= maxVoters {
			server.Suffrage = raft.Nonvoter
		}
		servers = append(servers, server)
	}
	c.setPhase(fmt.Sprintf("founding a cluster of %d", len(servers)))
	if err := c.raft.Load().BootstrapCluster(raft.Configuration{Servers: servers}).Error(); err != nil {
		c.setPhase("could not found the cluster: " + err.Error())
		return
	}
	c.hurryAlone()
}

// founding returns the first command of a table, created by its first leader.
func (c *Control) founding() (*found, error) {
	conf := c.raft.Load().GetConfiguration()
	if err := conf.Error(); err != nil {
		return nil, err
	}
	f := &found{}
	var id [16]byte
	if _, err := rand.Read(id[:]); err != nil {
		return nil, err
	}
	if _, err := rand.Read(f.DigestKey[:]); err != nil {
		return nil, err
	}
	f.ClusterID = hex.EncodeToString(id[:])
	for _, server := range conf.Configuration().Servers {
		name, incarnation, _ := strings.Cut(string(server.ID), "/")
		_, addr := splitRaftAddress(server.Address)
		m := Member{Name: name, Incarnation: incarnation, PeerAddr: addr}
		if string(server.ID) == c.id {
			m.APIAddr = c.cfg.APIAddr // the others report theirs, see beMember
		}
		f.Members = append(f.Members, m)
	}
	return f, nil
}
