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

// Forming and joining. Every node asks the same questions in a loop until it is
// a member; each step can be repeated, so a node may die at any of them:
//
//	has Raft state            → wait for Raft: it is, or will be, in a cluster
//	someone has a cluster     → ask it to be let in
//	someone has Raft state    → wait: a cluster is forming there
//	founder, all are empty    → write the first configuration; from here on the
//	                            node has Raft state
//	otherwise                 → wait
//
// The first leader finds an empty table and writes the cluster's identity with
// the members of Raft's configuration into it (see lead in change.go).

// maxVoters is how many members vote in Raft; more hold copies only.
const maxVoters = 5

// runForm gets the node into a cluster and keeps its addresses right after.
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

// formStep takes one step and tells whether nothing is left to do.
func (c *Control) formStep(ctx context.Context) bool {
	state := c.State()
	c.addresses.follow(state.Everyone())
	if state.Formed() {
		if c.cfg.ClusterID != "" && state.ClusterID != c.cfg.ClusterID {
			c.table.fail(fmt.Errorf("the volumes belong to cluster %s, but the control table is that of %s: "+
				"give the node the volumes of one cluster", c.cfg.ClusterID, state.ClusterID))
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
		c.setPhase("waits for a leader: this node has a part of a table, the others have not spoken to it yet")
		c.rejoin(ctx, state)
		return false
	}
	c.seek(ctx)
	return false
}

// beMember asks to be let in when the node is no member, and to have its
// addresses changed when they are not the ones in the table.
func (c *Control) beMember(ctx context.Context, state *State) bool {
	self := c.self()
	held, ok := state.MemberByID(c.id)
	if !ok {
		// It was one, or is becoming one; the leader may not know where it is.
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
		c.log.Debug("could not have its addresses changed", "error", err)
	}
	return false
}

// rejoin lets the others know where this node is and, when no leader has spoken
// to it for a while although another member has a newer table, asks to be let in
// again: its join may have been cancelled while it was away, and a leader does
// not speak to a node that is not a member.
func (c *Control) rejoin(ctx context.Context, state *State) {
	answers := c.greet(ctx)
	if time.Since(c.led()) < 3*c.cfg.Timings.Heartbeat {
		return // without a leader's word for so short a time nothing has happened
	}
	c.join(ctx, answers, state.Generation)
}

// join asks those that have a cluster, with a newer table than this node's, to let
// this one in, until one of them does: some may have no leader that a majority
// follows. It returns false when there was nobody to ask.
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

// asksAgain is when this node may ask to be let in. A node whose join was cancelled
// in this life rests for GiveUpAfter after its leader last spoke to it: otherwise
// it would undo the operator's decision at once, or the leader's, and writes would
// need its acknowledgement again. A node that was let in and to which no leader has
// spoken since does not know when its join is cancelled: that takes up to GiveUpAfter
// by itself, so it rests twice as long. A node that has just started asks at once. So
// does a member, which only has itself called back.
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

// listed is one name of the join list and what came of asking it.
type listed struct {
	addr  string
	mine  bool
	hello *controlpb.HelloResponse
	err   error
}

// mine tells whether an entry of the join list means this node: it is its peer
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

// Expected is how many members a cluster has as far as the join list of a node
// with this name and peer address tells.
func Expected(join []string, name, peerAddr string) int {
	own := func(addr string) bool { return isOwn(addr, name, peerAddr) }
	if slices.ContainsFunc(join, own) {
		return len(join)
	}
	return len(join) + 1
}

// seek looks for a cluster, and founds one when it is this node's part to do so
// and nobody has or may have one.
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
			waits = append(waits, fmt.Sprintf("%s has not answered (%v)", a.addr, a.err))
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
			"set STEMEDB_CLUSTER_JOIN to their addresses; when they are gone for good, put the WAL volume back from a snapshot, "+
			"or restore a backup into a node with new volumes and keep these")
	case c.cfg.Data.Empty():
	case alone:
		// There is nobody who could have the cluster. The records stay; the keys
		// were in the table, and have to be registered again.
		c.log.Warn("a new cluster is founded on volumes with records: the WAL volume was lost, and the table of keys with it")
	default:
		waits = append(waits, "this node has records on its volumes but no cluster")
	}
	founder := len(answers) == 0 || answers[0].mine
	switch {
	case c.State().Formed():
		c.setPhase("is not a member and finds none that would let it in")
	case len(waits) > 0:
		c.setPhase("waits to form: " + strings.Join(waits, "; "))
	case !founder:
		c.setPhase(fmt.Sprintf("waits for %s, the first of the join list, to form the cluster", answers[0].addr))
	default:
		c.found(answers)
	}
}

// askAll says hello to everyone on the join list at once.
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
	// Two names that one node answers to are one answer, not two.
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

// joinAt asks a node that has a cluster to let this one in, and reports whether
// that is settled, so that no other node need be asked.
func (c *Control) joinAt(ctx context.Context, at listed) (settled bool) {
	if mine := cmp.Or(c.State().ClusterID, c.cfg.ClusterID); mine != "" && at.hello.ClusterId != mine {
		c.setPhase(fmt.Sprintf("will not join: the volumes belong to cluster %s, %s is of cluster %s", mine, at.addr, at.hello.ClusterId))
		return false
	}
	if again, rests := c.asksAgain(); rests {
		c.setPhase(fmt.Sprintf("was let into cluster %s, and its change of members was cancelled or no leader has reached this node since; asks again at %s, or when it is started again",
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
		c.setPhase(fmt.Sprintf("waits to be let into cluster %s: %v", at.hello.ClusterId, err))
		return false
	}
	c.letIn = time.Now()
	c.setPhase("was let into cluster " + at.hello.ClusterId + ", waits for its table")
	return true
}

// found writes the first configuration: all who answered, so that losing one of
// them, this node included, does not end the cluster.
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
	c.setPhase(fmt.Sprintf("founds a cluster of %d", len(servers)))
	if err := c.raft.Load().BootstrapCluster(raft.Configuration{Servers: servers}).Error(); err != nil {
		c.setPhase("could not found the cluster: " + err.Error())
		return
	}
	c.hurryAlone()
}

// founding is the first command of a table, made by its first leader.
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
			m.APIAddr = c.cfg.APIAddr // the others tell theirs, see beMember
		}
		f.Members = append(f.Members, m)
	}
	return f, nil
}
