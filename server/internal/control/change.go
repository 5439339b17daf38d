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

// The leader's work: founding the table, keeping Raft's servers what the
// members are, and closing changes.
//
// Why a change that closes here loses nothing. Let Old have n members with
// majority m. Log ends are noted ("marks") at n−m+1 whole members of Old after
// they have applied the generation at which the change was opened. A write that
// was acknowledged under the old rule has m acks of Old, so one of them, W, is
// among those. W's ack was given at an older generation, then the record was
// durable in W's log before W's mark; or at this one, then its coordinator knew
// the change and asked majorities of both sets. A member that holds W's log up
// to the mark has the write. Which n−m+1 members those are may differ from
// member to member. A record that a quorum read has shown is held by m members
// of Old that count in reads, and the same holds for it.
//
// The premises, each with a test of its own:
//
//  1. A member acknowledges a record, or describes a set for a quorum read, only
//     if it has not passed the caller's generation at the moment of the answer
//     (CheckGeneration, CheckCaller). A coordinator looks at its own generation
//     in the same way (cluster: write.evaluate, retryReads).
//  2. A member's generation never goes back, across restarts too: until its copy
//     was confirmed after a start it answers nobody (MayDecide).
//  3. A log's end is read after the generation that it is reported with
//     (progress).
//  4. A majority of Old knows of the change before it closes (closable): a
//     reader by the old rule hears one of them and is refused.
//  5. Every read hears a majority, and every write is on one (quorum_test.go
//     goes through all sets).

// driver is what the leader remembers between steps; it can be lost.
type driver struct {
	unsettled  bool   // Raft's servers do not match the members yet
	waiting    bool   // that includes a member which has not shown yet that it has the table
	voters     string // why they are unsettled
	change     uint64
	generation uint64
	marks      map[string]uint64 // id of a whole member of Old: its log end, at this generation or later
	knows      map[string]bool   // ids of members of Old that have applied this generation
	subject    string            // of the change
	heard      time.Time         // when the subject answered last, or when this leader first saw the change
	moved      time.Time         // when it last came nearer to holding everything
	unfillable bool              // the change was unfillable when the subject answered last
	lacks      uint64            // the least distance of its cursors from the marks so far
	unread     uint64            // the same of how far it has read
	measured   int               // how many marks there were for both
	passed     string            // id of the member whose refill was given up last
	warned     time.Time
	report     atomic.Pointer[[]string] // what the open change waits for
}

// runLeader works whenever this node leads.
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
		// Everything of earlier terms is applied here before this node answers
		// as the leader.
		if err := c.raft.Load().Barrier(c.cfg.Timings.CallTimeout).Error(); err != nil {
			return fmt.Errorf("apply what was committed before: %w", err)
		}
		if c.raft.Load().CurrentTerm() != term || c.raft.Load().State() != raft.Leader {
			return nil
		}
		c.driver.change = 0 // what was seen of a change in an earlier term is long ago
		c.readyTerm.Store(term)
		c.changed.broadcast()
		c.log.Info("leads the control table", "term", term)
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

// decide commits a command of the leader's own and returns its refusal.
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

// poll asks the members how far they are, when there is work that needs it. The
// result holds those that answered, by id.
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

// progress is this node's own. The generation is read before the log's end: see
// the proof above.
func (c *Control) progress() *controlpb.ProgressResponse {
	generation := c.State().Generation
	return &controlpb.ProgressResponse{
		Incarnation: c.cfg.Incarnation, Generation: generation,
		LogEnd: c.cfg.Data.LogEnd(), Cursors: c.cfg.Data.Cursors(), Read: c.cfg.Data.Read(),
	}
}

// reconcile takes one step towards Raft's servers being what the members are, and
// reports whether none was needed. A member that joins votes only when the change
// is closed, so that a node which never comes back after its first start takes
// no majority with it. One that replaces its lost self takes over the vote as
// soon as it has shown that it has the table: without it the table would have
// fewer voters than the members that may fail, and no command could be accepted.
// Neither votes before the leader's table, which is all that it has, is known to
// be the majority's (trust.go).
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
			c.log.Info("removes a server from the control table", "server", id)
			return false, c.raft.Load().RemoveServer(raft.ServerID(id), 0, c.cfg.Timings.CallTimeout).Error()
		}
	}
	settled = true
	backed := c.jury.backed(c.readyTerm.Load(), votersOf(future.Configuration()))
	c.driver.waiting, c.driver.voters = false, "the voters of the control table are being changed"
	nth := 0 // of those that may vote
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
				continue // no vote goes before the one that replaces it is there
			}
		case waitForIt:
			// A member that does not answer holds up no change: its vote comes
			// when it is back. It has to be asked for that, also when no change
			// is open any more.
			settled = settled && p == nil
			c.driver.voters = m.ID() + " has not shown that it holds the control table"
			if !backed {
				c.driver.voters = "a majority of the voters has not shown that it holds the leader's table"
			}
			c.driver.waiting = true
			continue
		}
		c.log.Info("changes a server of the control table", "server", m.ID(), "address", m.PeerAddr, "to", step)
		return false, c.place(step, m)
	}
	return settled, nil
}

// What is to become of a server of Raft's; empty means that it is right.
const (
	toVoter    = "voter"
	toNonvoter = "nonvoter"
	demote     = "demoted"
	waitForIt  = "wait"
)

// placement decides the next step for one server.
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

// drive notes marks and closes the open change when it can be closed, which is only
// while Raft's voters are settled. It is given up whether they are or not.
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
			c.log.Warn("a change of members is cancelled, because the member that it is for "+why+"; it begins again when that member asks again",
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
		return nil // something else was decided in between: look again
	}
	if err == nil {
		d.report.Store(nil)
		c.log.Info("a change of members is closed", "change", change.ID, "kind", change.Kind, "subject", change.Subject)
	}
	return err
}

// takeUp forgets what was noted for another change, or for this one at an earlier
// generation. It reports whether there was anything to forget.
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

// note keeps the log ends of the whole members of Old that have heard of the change.
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

// closable tells which members of the new set hold everything that was
// acknowledged under the old rule, and what prevents closing the change: nothing
// when the subject and every member that counts in reads hold it, and when a
// majority of the old set knows of the change. The latter is for readers that do
// not: a read by the old rule hears a majority of Old, so it meets one of those
// that know and is refused.
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
			waits = append(waits, fmt.Sprintf("%s lost records: when no other copy can be brought back, accept that (stemedb cluster accept-loss %s --yes)", name, name))
		}
	case len(marks) < need:
		for _, id := range silent {
			waits = append(waits, id+" has not told its log's end")
		}
	}
	if len(knows) < Majority(len(change.Old)) {
		for _, m := range change.Old {
			if !knows[m.ID()] {
				waits = append(waits, m.ID()+" has not heard of the change")
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

// startRefill opens a change for a member that is not whole and answers.
func (c *Control) startRefill(state *State, progress map[string]*controlpb.ProgressResponse) error {
	if len(state.Members) == 1 {
		return nil // by whom?
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

// nextRefill is the id of the member to be refilled next, if there is one. The one
// whose refill was given up last comes after the others.
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

// driverReport is what the open change waits for, empty when none is open.
func (c *Control) driverReport() []string {
	if report := c.driver.report.Load(); report != nil {
		return *report
	}
	return nil
}
