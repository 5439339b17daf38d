package control

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"github.com/stemedb/stemedb/server/internal/control/controlpb"
)

// The leader's work: founding the table, keeping Raft's servers in sync with the
// members, and closing changes.
//
// Proof that closing a change loses nothing. Let Old have n members with majority
// m. Log ends are noted ("marks") at n−m+1 whole members of Old after they have
// applied the generation at which the change was opened. A write that was
// acknowledged under the old rule has m acks of Old, so one of them, W, is among
// those. If W gave its ack at an older generation, the record was durable in W's
// log before W's mark; if at this one, its coordinator knew the change and needed
// majorities of both sets. A member that holds W's log up to the mark has the
// write. The n−m+1 members may differ from member to member. A record that a
// quorum read has shown is held by m members of Old that count in reads, so the
// same argument applies.
//
// The premises, each with a separate test:
//
//  1. A member acknowledges a record, or describes a set for a quorum read, only
//     if it has not passed the caller's generation at the moment of the answer
//     (CheckGeneration, CheckCaller). A coordinator checks its own generation in
//     the same way (cluster: write.evaluate, retryReads).
//  2. A member's generation never decreases, even across restarts: it answers no
//     call until its copy is confirmed after a start (MayDecide).
//  3. A log's end is read after the generation with which it is reported
//     (progress).
//  4. A majority of Old knows of the change before it closes (closable): a reader
//     by the old rule asks one of them and is refused.
//  5. Every read hears a majority, and every write is on one (quorum_test.go
//     goes through all sets).

// driver is the leader's state between steps; losing it is harmless.
type driver struct {
	unsettled  bool   // Raft's servers do not match the members yet
	waiting    bool   // because a member has not shown yet that it has the table
	voters     string // the reason
	change     uint64
	generation uint64
	marks      map[string]uint64 // id of a whole member of Old: its log end, at this generation or later
	knows      map[string]bool   // ids of members of Old that have applied this generation
	subject    string            // of the change
	heard      time.Time         // last answer of the subject, or when this leader first saw the change
	moved      time.Time         // last progress of the subject
	unfillable bool              // the change was unfillable at the subject's last answer
	lacks      uint64            // the smallest distance of its cursors from the marks so far
	unread     uint64            // the same for the positions that it has read
	measured   int               // the number of marks for both
	passed     string            // id of the member whose refill was abandoned last
	warned     time.Time
	report     atomic.Pointer[[]string] // what the open change waits for
}

// runLeader does the leader's work while this node leads.
func (c *Control) runLeader() {
	tick := time.NewTicker(c.cfg.Timings.DriveEvery)
	defer tick.Stop()
	for {
		select {
		case <-c.ctx.Done():
			c.readyTerm.Store(0)
			return
		case <-c.leaderCh:
			c.changed.broadcast()
		case <-tick.C:
		}
		if c.role() != raft.Leader {
			c.readyTerm.Store(0)
			continue
		}
		if err := c.lead(c.ctx); err != nil && c.ctx.Err() == nil {
			c.log.Debug("leader's step", "error", err)
		}
	}
}

// lead takes one step of the leader's work.
func (c *Control) lead(ctx context.Context) error {
	term := c.raft.Load().CurrentTerm()
	if c.readyTerm.Load() != term {
		// All entries of earlier terms are applied here before this node answers as the
		// leader.
		if err := c.raft.Load().Barrier(c.cfg.Timings.CallTimeout).Error(); err != nil {
			return fmt.Errorf("apply the entries of earlier terms: %w", err)
		}
		if c.raft.Load().CurrentTerm() != term || c.raft.Load().State() != raft.Leader {
			return nil
		}
		c.driver.change = 0 // observations from an earlier term are stale
		c.readyTerm.Store(term)
		c.changed.broadcast()
		c.log.Info("this node leads the control table", "term", term)
	}
	state := c.State()
	if !state.Formed() {
		f, err := c.founding()
		if err != nil {
			return err
		}
		_, err = c.decide(f)
		return err
	}
	progress := c.poll(ctx, state)
	settled, err := c.reconcile(state, progress)
	c.driver.unsettled = !settled || c.driver.waiting
	if err != nil {
		return err
	}
	if state.Change != nil {
		return c.drive(state, progress, settled)
	}
	if !settled {
		return nil // one step at a time
	}
	c.driver.report.Store(nil)
	return c.startRefill(state, progress)
}

// decide commits one of the leader's commands and returns its refusal as an
// error.
func (c *Control) decide(cmd command) (*result, error) {
	b, err := encodeCommand(cmd)
	if err != nil {
		return nil, err
	}
	answer, _, err := c.commit(b)
	if err != nil {
		return nil, err
	}
	return answer, answer.err()
}

// poll asks the members for their progress if any work needs it. The result holds
// the answers by id.
func (c *Control) poll(ctx context.Context, state *State) map[string]*controlpb.ProgressResponse {
	progress := map[string]*controlpb.ProgressResponse{}
	busy := state.Change != nil || c.driver.unsettled || slices.ContainsFunc(state.Members, func(m Member) bool { return !m.Whole })
	if !busy {
		return progress
	}
	ctx, cancel := context.WithTimeout(ctx, c.cfg.Timings.CallTimeout)
	defer cancel()
	type answer struct {
		id string
		p  *controlpb.ProgressResponse
	}
	everyone := state.Everyone()
	answers := make(chan answer, len(everyone))
	for _, m := range everyone {
		go func() { answers <- answer{m.ID(), c.progressOf(ctx, m)} }()
	}
	for range everyone {
		if a := <-answers; a.p != nil { // each ends with ctx at the latest
			progress[a.id] = a.p
		}
	}
	return progress
}

func (c *Control) progressOf(ctx context.Context, m Member) *controlpb.ProgressResponse {
	if m.ID() == c.id {
		return c.progress()
	}
	conn, err := c.Conn(m)
	if err != nil {
		return nil
	}
	p, err := controlpb.NewControlClient(conn).Progress(ctx, &controlpb.ProgressRequest{})
	if err != nil || p.Incarnation != m.Incarnation {
		return nil
	}
	return p
}

// progress returns this node's progress. The generation is read before the log's
// end: see the proof above.
func (c *Control) progress() *controlpb.ProgressResponse {
	generation := c.State().Generation
	return &controlpb.ProgressResponse{
		Incarnation: c.cfg.Incarnation, Generation: generation,
		LogEnd: c.cfg.Data.LogEnd(), Cursors: c.cfg.Data.Cursors(), Read: c.cfg.Data.Read(),
	}
}

// reconcile takes one step towards matching Raft's servers with the members, and
// reports whether none was needed. A joining member votes only after its change
// is closed, so that a node that never returns after its first start costs no
// majority. A member that replaces its lost incarnation takes over the vote as
// soon as it has shown that it has the table: otherwise the table would tolerate
// fewer failures, and might accept no command. Neither votes before the leader's
// table, the only one that it has, is known to be the majority's (trust.go).
func (c *Control) reconcile(state *State, progress map[string]*controlpb.ProgressResponse) (settled bool, err error) {
	future := c.raft.Load().GetConfiguration()
	if err := future.Error(); err != nil {
		return false, err
	}
	servers := map[string]raft.Server{}
	for _, s := range future.Configuration().Servers {
		servers[string(s.ID)] = s
	}
	wanted := map[string]bool{}
	for _, m := range state.Current() {
		wanted[m.ID()] = true
	}
	for id := range servers {
		if !wanted[id] && id != c.id {
			c.log.Info("removing a server from the control table", "server", id)
			return false, c.raft.Load().RemoveServer(raft.ServerID(id), 0, c.cfg.Timings.CallTimeout).Error()
		}
	}
	settled = true
	backed := c.jury.backed(c.readyTerm.Load(), votersOf(future.Configuration()))
	c.driver.waiting, c.driver.voters = false, "the voters of the control table are being changed"
	nth := 0 // among the members that may vote
	for _, m := range state.Current() {
		server, there := servers[m.ID()]
		p := progress[m.ID()]
		joining := state.joining(m.ID())
		votes := nth < maxVoters && !joining
		if !joining {
			nth++
		}
		step := placement(there, server, votes, raftAddress(m.ID(), m.PeerAddr), backed && p != nil && p.Generation >= state.Generation)
		switch step {
		case "":
			continue
		case demote:
			if c.driver.waiting {
				continue // a vote is removed only after its replacement votes
			}
		case waitForIt:
			// A member that does not answer delays no change: it gets its vote when it is
			// back. It is polled for that, even after the change is closed.
			settled = settled && p == nil
			c.driver.voters = m.ID() + " has not shown that it holds the control table"
			if !backed {
				c.driver.voters = "a majority of the voters has not shown that it holds the leader's table"
			}
			c.driver.waiting = true
			continue
		}
		c.log.Info("changing a server of the control table", "server", m.ID(), "address", m.PeerAddr, "to", step)
		return false, c.place(step, m)
	}
	return settled, nil
}

// The next steps for one of Raft's servers; empty means none.
const (
	toVoter    = "voter"
	toNonvoter = "nonvoter"
	demote     = "demoted"
	waitForIt  = "wait"
)

// placement returns the next step for one server.
func placement(there bool, server raft.Server, voter bool, address raft.ServerAddress, hasTable bool) string {
	votes := there && server.Suffrage == raft.Voter
	switch {
	case !there, !votes && server.Address != address:
		return toNonvoter
	case votes && !voter:
		return demote
	case votes && server.Address != address:
		return toVoter
	case !votes && voter && !hasTable:
		return waitForIt
	case !votes && voter:
		return toVoter
	}
	return ""
}

func (c *Control) place(step string, m Member) error {
	id, address, within := raft.ServerID(m.ID()), raftAddress(m.ID(), m.PeerAddr), c.cfg.Timings.CallTimeout
	switch step {
	case toVoter:
		return c.raft.Load().AddVoter(id, address, 0, within).Error()
	case toNonvoter:
		return c.raft.Load().AddNonvoter(id, address, 0, within).Error()
	default:
		return c.raft.Load().DemoteVoter(id, 0, within).Error()
	}
}

// drive records marks and closes the open change when possible, which requires
// that Raft's voters are settled. Abandoning a change does not require that.
func (c *Control) drive(state *State, progress map[string]*controlpb.ProgressResponse, settled bool) error {
	d, change := &c.driver, state.Change
	if d.takeUp(change) {
		c.log.Info("a change of members is open", "change", change.ID, "kind", change.Kind, "subject", change.Subject)
	}
	d.note(change, progress)
	whole, waits := closable(change, d.marks, d.knows, progress)
	if !settled {
		waits = append(waits, d.voters)
	}
	d.report.Store(&waits)
	d.watch(change, slices.Contains(whole, change.Subject), progress[change.Subject])
	if len(waits) > 0 {
		if why := d.hopeless(change, c.cfg.Timings.GiveUpAfter); why != "" {
			c.log.Warn("a change of members is cancelled, because its subject "+why+"; it is opened again when that member asks again",
				"change", change.ID, "kind", change.Kind, "subject", change.Subject, "silent", time.Since(d.heard), "without_progress", time.Since(d.moved), "waits_for", waits)
			d.passed = change.Subject
			return c.cancel(state)
		}
		if since := time.Since(d.warned); since >= c.cfg.Timings.StuckAfter {
			d.warned = time.Now()
			c.log.Warn("a change of members cannot be closed", "change", change.ID, "kind", change.Kind,
				"subject", change.Subject, "waits_for", waits)
		}
		return nil
	}
	_, err := c.decide(&closeChange{Change: change.ID, Generation: state.Generation, Whole: whole})
	if errors.Is(err, errOutdated) {
		return nil // *something else was decided in between: check again
	}
	if err == nil {
		d.report.Store(nil)
		c.log.Info("a change of members is closed", "change", change.ID, "kind", change.Kind, "subject", change.Subject)
	}
	return err
}

// takeUp discards the observations of another change, or of this one at an
// earlier generation. It reports whether the change is new to the driver.
func (d *driver) takeUp(change *Change) bool {
	if d.change == change.ID && d.generation == change.Generation {
		return false
	}
	if d.change != change.ID || d.subject != change.Subject {
		d.heard, d.moved = time.Now(), time.Now()
	}
	d.change, d.subject, d.generation = change.ID, change.Subject, change.Generation
	d.marks, d.knows, d.measured = map[string]uint64{}, map[string]bool{}, -1
	d.warned = time.Now()
	return true
}

// note records the log ends of the whole members of Old that know of the change.
func (d *driver) note(change *Change, progress map[string]*controlpb.ProgressResponse) {
	for _, m := range change.Old {
		p := progress[m.ID()]
		if p == nil || p.Generation < change.Generation {
			continue
		}
		d.knows[m.ID()] = true
		if _, noted := d.marks[m.ID()]; !noted && m.Whole {
			d.marks[m.ID()] = p.LogEnd
		}
	}
}

// closable returns the members of the new set that hold everything acknowledged
// under the old rule, and the obstacles to closing the change. There are none
// when the subject and every member that counts in reads hold it, and a majority
// of the old set knows of the change. The latter protects readers that do not
// know: a read by the old rule asks a majority of Old, so one of those that know
// refuses it.
func closable(change *Change, marks map[string]uint64, knows map[string]bool, progress map[string]*controlpb.ProgressResponse) (whole, waits []string) {
	need := meeting(len(change.Old))
	wholeOld := 0
	var silent []string
	for _, m := range change.Old {
		if !m.Whole {
			continue
		}
		wholeOld++
		if _, ok := marks[m.ID()]; !ok {
			silent = append(silent, m.ID())
		}
	}
	switch {
	case wholeOld < need:
		waits = append(waits, fmt.Sprintf("%d whole members of the old set are needed, only %d are left", need, wholeOld))
		for _, name := range lost(change.Old) {
			waits = append(waits, fmt.Sprintf("%s lost records: if no other copy can be restored, accept the loss (stemedb cluster accept-loss %s --yes)", name, name))
		}
	case len(marks) < need:
		for _, id := range silent {
			waits = append(waits, id+" has not reported the end of its log")
		}
	}
	if len(knows) < Majority(len(change.Old)) {
		for _, m := range change.Old {
			if !knows[m.ID()] {
				waits = append(waits, m.ID()+" does not know of the change yet")
			}
		}
	}
	for _, m := range change.New {
		held := 0
		p := progress[m.ID()]
		for id, mark := range marks {
			old, _ := find(change.Old, func(o Member) bool { return o.ID() == id })
			switch {
			case id == m.ID():
				held++ // its own log
			case p != nil && p.Generation >= change.Generation && p.Cursors[old.Incarnation] >= mark:
				held++
			}
		}
		if held >= need {
			whole = append(whole, m.ID())
			continue
		}
		switch {
		case !m.Whole && m.ID() != change.Subject:
		case p == nil:
			waits = append(waits, m.ID()+" does not answer")
		default:
			waits = append(waits, fmt.Sprintf("%s holds the logs of %d members, needs %d", m.ID(), held, need))
		}
	}
	return whole, waits
}

// startRefill opens a change for a member that is not whole and that answers.
func (c *Control) startRefill(state *State, progress map[string]*controlpb.ProgressResponse) error {
	if len(state.Members) == 1 {
		return nil // nobody can refill it
	}
	next := c.nextRefill(state, progress)
	if next == "" {
		return nil
	}
	_, err := c.decide(&refill{Member: next})
	if errors.Is(err, errOutdated) || errors.Is(err, errBusy) {
		return nil
	}
	return err
}

// nextRefill returns the id of the member to refill next, or "". The member whose
// refill was abandoned last comes after the others.
func (c *Control) nextRefill(state *State, progress map[string]*controlpb.ProgressResponse) (next string) {
	for _, m := range state.Members {
		if m.Whole || progress[m.ID()] == nil {
			continue
		}
		if m.ID() != c.driver.passed {
			return m.ID()
		}
		next = m.ID()
	}
	return next
}

// driverReport lists the conditions that keep the change open; empty when none is open.
func (c *Control) driverReport() []string {
	if report := c.driver.report.Load(); report != nil {
		return *report
	}
	return nil
}
