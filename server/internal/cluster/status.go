package cluster

import (
	"time"

	"github.com/stemedb/stemedb/server/internal/control"
)

// Status returns the cluster as this node sees it.
func (c *Cluster) Status() Status {
	state := c.control.State()
	leader, _ := c.control.Leader()
	s := Status{
		ClusterID: state.ClusterID, Generation: state.Generation, Node: c.name, Leader: leader,
		WaitsFor: c.control.ChangeWaitsFor(),
	}
	if err := c.Ready(); err != nil {
		s.Reason = err.Error()
	}
	s.Ready = s.Reason == ""
	s.Troubles = c.troubles()
	if state.Change != nil {
		s.Change, s.ChangeID = string(state.Change.Kind), state.Change.ID
	}
	alive := map[string]bool{}
	for _, m := range state.Everyone() {
		status := c.memberStatus(m)
		alive[m.ID()] = status.Alive
		s.Members = append(s.Members, status)
	}
	s.WriteQuorum = state.WriteQuorum(func(id string) bool { return alive[id] })
	candidates, need := state.ReadSet()
	for _, m := range candidates {
		if alive[m.ID()] {
			need--
		}
	}
	s.ReadQuorum = state.Formed() && need <= 0
	_, s.TimeSure = c.control.Now()
	return s
}

func (c *Cluster) memberStatus(m control.Member) MemberStatus {
	status := MemberStatus{
		Name: m.Name, Incarnation: m.Incarnation, PeerAddr: m.PeerAddr, APIAddr: m.APIAddr,
		Alive: c.alive(m.Name), Whole: m.Whole, LagBytes: -1,
	}
	if skew, known := c.control.ClockSkew(m.ID()); known {
		seconds := skew.Seconds()
		status.ClockSkew = &seconds
	}
	if m.ID() == c.id {
		status.Self, status.Alive, status.Connected, status.LagBytes = true, true, true, 0
		status.Whole = m.Whole && c.store.Whole()
		status.LastHeard = time.Now()
		return status
	}
	if l, ok := c.linkTo(m.ID()); ok {
		status.Connected = l.peer.isConnected()
		l.puller.mu.Lock()
		defer l.puller.mu.Unlock()
		status.LastHeard = l.puller.heard
		if !l.puller.heard.IsZero() {
			status.LagBytes = l.puller.behind
		}
	}
	return status
}
