package cluster

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/stemedb/stemedb/server/internal/control"
	"github.com/stemedb/stemedb/server/internal/remedy"
	"github.com/stemedb/stemedb/server/internal/store"
	"github.com/stemedb/stemedb/server/internal/wal"
)

// watchLosses makes a node with damaged or lost records whole again, whether that
// was found at the start or later. Damage is repaired from the other members
// (mend.go). If that fails, or a part of the log is missing:
//
//  1. the node's cursors are reset, so that the others' logs are read again
//     completely,
//  2. the loss is reported, so that this node counts in no read, and a change of
//     members is opened, which closes when the cursors have come far enough,
//  3. when the control table lists this node as whole after that, the store is
//     marked whole too. Until then damage is still repaired, and the report is
//     withdrawn on success.
func (c *Cluster) watchLosses(ctx context.Context) {
	ticker := time.NewTicker(c.timings.LossEvery)
	defer ticker.Stop()
	handled := loss{whole: true}
	var mended, verified time.Time // the last attempt of each
	for {
		if now := lossOf(c.store); now != handled {
			handled = now
			if !now.whole {
				mended = time.Now()
				if !c.makeGood(ctx, &handled) {
					return
				}
			}
		}
		if c.refilling.Load() {
			c.endRefill(ctx, &handled)
		}
		if c.refilling.Load() && c.timings.MendWait > 0 && time.Since(mended) > mendAgain {
			mended = time.Now()
			c.withdraw(ctx)
		}
		if c.accused() && time.Since(verified) > mendAgain {
			verified = time.Now()
			c.acquit(ctx)
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

// accused reports whether the control table has a report of a loss that this node
// does not find. That happens when the cause ended with the process that reported
// it: an outage of storage is no loss.
func (c *Cluster) accused() bool {
	m, ok := c.self(c.control.State())
	return ok && !m.Whole && m.Loss != "" && c.store.Whole() && !c.refilling.Load() && c.control.MayDecide() == nil
}

// acquit reads the whole log and withdraws the report if all of it is readable.
// It ends early when accused no longer holds: the handling of newly found damage
// waits for it.
func (c *Cluster) acquit(ctx context.Context) {
	if err := c.readLog(ctx, c.accused); err != nil {
		if ctx.Err() == nil {
			c.log.Warn("the control table lists this node as not whole, and its log cannot be read completely to withdraw that", "error", err)
		}
		return
	}
	if c.accused() {
		c.withdraw(ctx)
	}
}

// mendAgain is the interval between repair attempts while a loss is reported.
const mendAgain = 15 * time.Second

// makeGood repairs damage or reports a loss; false means that ctx ended.
func (c *Cluster) makeGood(ctx context.Context, handled *loss) bool {
	if c.mend(ctx) {
		err := c.store.SetWhole(handled.losses)
		if errors.Is(err, wal.ErrMoreLost) {
			return true // handled by the next round
		}
		if err == nil {
			c.log.Info("damaged records were replaced by other members' copies; nothing was lost")
			*handled = lossOf(c.store)
			return true
		}
		c.log.Error("damaged records were replaced, but that could not be recorded", "error", err)
	}
	if ctx.Err() != nil {
		return false
	}
	c.forgetHeld(ctx)
	return c.reportLoss(ctx)
}

// endRefill marks the store as whole when the control table lists this node as
// whole.
func (c *Cluster) endRefill(ctx context.Context, handled *loss) {
	if m, ok := c.self(c.control.State()); !ok || !m.Whole {
		return
	}
	again, err := c.giveUp(ctx)
	if errors.Is(err, store.ErrIndexLacks) {
		c.progress.restart(err)
		<-ctx.Done()
		return
	}
	if err == nil {
		err = c.store.SetWhole(handled.losses)
	}
	if errors.Is(err, wal.ErrMoreLost) || ctx.Err() != nil {
		return // handled by the next round
	}
	if err != nil {
		c.log.Error("this node is whole again, but that could not be recorded", "error", err)
		return
	}
	c.log.Info("this node is whole again")
	c.refilling.Store(false)
	*handled = lossOf(c.store)
	if again {
		c.progress.restart(errors.New("this node has given up damaged records; a restart of the process rebuilds the index without them"))
		<-ctx.Done()
	}
}

// giveUp removes unreadable records from the index before the store counts as
// whole. Until then such a record is searched for on every member; afterwards it
// is not held, so that reads do not fail on it, another member's copy is
// accepted, and a repeated write stores it. again means that this requires a
// restart of the process.
func (c *Cluster) giveUp(ctx context.Context) (again bool, err error) {
	keys, err := c.store.Unreadable(ctx)
	if err != nil || len(keys) == 0 {
		return false, err
	}
	for _, k := range keys[:min(len(keys), namedLost)] {
		c.log.Warn("giving up a damaged record: no intact copy was found", "key", k.String())
	}
	return true, c.store.RebuildAtNextStart()
}

// namedLost is the maximum number of lost records that are logged individually.
const namedLost = 1000

// withdraw withdraws the report of a loss when every record is readable again.
func (c *Cluster) withdraw(ctx context.Context) {
	missing, _, err := c.mendOnce(ctx)
	if err != nil || len(missing) > 0 {
		return
	}
	if err := c.control.WithdrawLoss(ctx); err != nil && ctx.Err() == nil {
		c.log.Warn("the report of a loss could not be withdrawn yet", "error", err)
	}
}

// loss distinguishes one finding of losses from the next.
type loss struct {
	whole  bool
	losses int
}

func lossOf(s Store) loss {
	h := s.Health()
	return loss{whole: h.Whole, losses: h.Losses}
}

// forgetHeld resets every cursor, in memory and durably.
func (c *Cluster) forgetHeld(ctx context.Context) {
	c.log.Error("this node lost records and pulls the other members' logs again from the beginning", "remedy", remedy.Lost(len(c.control.State().Everyone()), c.name))
	c.refilling.Store(true)
	c.recent.forget()
	var items []store.Item
	for _, incarnation := range c.progress.reset(ctx) {
		items = append(items, c.progress.cursor(incarnation, 0))
	}
	if len(items) == 0 {
		return
	}
	if err := c.putAndWait(ctx, items); err != nil {
		// The next start finds the loss too and resets them then.
		c.log.Warn("the reset of the cursors could not be made durable", "error", err)
	}
}

// reportLoss returns true when the loss is recorded and this node's copy of the
// control table shows it, or false when ctx ended.
func (c *Cluster) reportLoss(ctx context.Context) bool {
	for ctx.Err() == nil && c.report(ctx) {
		if c.showsLoss(ctx) {
			return true
		}
	}
	return false
}

// showsLoss waits until this node's copy no longer lists it as whole: before
// that, the flag does not show the end of the refill. A copy that skips from
// before the report to after the refill never shows it; false then requests
// another report, which costs one more refill and misses no loss.
func (c *Cluster) showsLoss(ctx context.Context) bool {
	timer := time.NewTimer(reportAgain)
	defer timer.Stop()
	for {
		changed := c.control.Watch()
		if m, ok := c.self(c.control.State()); !ok || !m.Whole {
			return true
		}
		select {
		case <-changed:
		case <-timer.C:
			return false
		case <-ctx.Done():
			return false
		}
	}
}

const reportAgain = 30 * time.Second

// report returns true when the loss is recorded, or false when ctx ended.
func (c *Cluster) report(ctx context.Context) bool {
	wait := pauses{first: c.timings.Backoff, most: c.timings.MaxBackoff}
	for {
		err := c.control.ReportNotWhole(ctx)
		if err == nil {
			return true
		}
		if ctx.Err() != nil {
			return false
		}
		c.log.Warn("the loss of records could not be reported yet", "error", err)
		wait.wait(ctx)
	}
}

// self returns this node's entry among the members that count in reads now.
func (c *Cluster) self(state *control.State) (control.Member, bool) {
	for _, m := range state.Members {
		if m.ID() == c.id {
			return m, true
		}
	}
	return control.Member{}, false
}

// mayDecide returns an error if this node's copy of the control table is not
// reliable.
func (c *Cluster) mayDecide() error {
	err := c.control.MayDecide()
	if err == nil {
		return nil
	}
	if failed := c.control.Err(); failed != nil {
		return unavailable(CodeControlFailed, "this node's copy of the control table cannot be used", failed)
	}
	if !c.control.State().Formed() {
		return c.notMember(c.control.State())
	}
	return unavailable(CodeUnconfirmed, "this node does not know yet which nodes are members of the cluster", err)
}

// Incomplete returns, on the only member of a cluster, the reason why its answers
// may lack records. It is empty on a member that holds everything, and on one of
// several members, which the others refill.
func (c *Cluster) Incomplete() string {
	state := c.control.State()
	if len(state.Members) != 1 {
		return ""
	}
	m, ok := c.self(state)
	if !ok || m.Whole && c.store.Whole() {
		return ""
	}
	return c.lost() + ", everything else is answered; " + remedy.Lost(len(state.Members), c.name)
}

// lost describes the records that this node lost, as far as known.
func (c *Cluster) lost() string {
	outstanding := c.store.Outstanding()
	if len(outstanding) == 0 {
		return "this node lost records"
	}
	text := fmt.Sprintf("this node lost %d parts of its log, the first of which is %v", len(outstanding), outstanding[0])
	if keys := c.lostKeys.Load(); keys != nil && len(*keys) > 0 {
		text += fmt.Sprintf(", with %d records of which no member has a readable copy, the first of which belongs to assertion %v", len(*keys), (*keys)[0].ID)
	}
	return text
}

const messageJoining = "this node is joining the cluster and does not hold everything yet"

// wholeNow returns an error if this node does not count in reads.
func (c *Cluster) wholeNow(state *control.State) error {
	m, ok := c.self(state)
	switch {
	case !ok:
		if _, joining := state.MemberByID(c.id); joining {
			return unavailable(CodeNotWhole, messageJoining, nil)
		}
		return c.notMember(state)
	case len(state.Members) == 1: // also while a second one joins
		// Its records are the only copies; see Incomplete.
	case !m.Whole || !c.store.Whole():
		return unavailable(CodeNotWhole, "this node lost records; "+remedy.Lost(len(state.Members), c.name), nil)
	}
	if waits := c.unvouched(state); waits != "" {
		return unavailable(CodeCatchingUp, "this node has just started and waits for "+waits+" to compare their witnesses with its log", nil)
	}
	return nil
}

// Ready returns an *UnavailableError if this node cannot serve. It is nil when
// its log is replayed and it is a member, caught up and whole. The loss of the
// majority does not make a node unready. A failed log does: the node falls behind
// from then on, and a disruption budget must not count it. It still serves reads
// with consistency=local at its own address.
func (c *Cluster) Ready() error {
	select {
	case <-c.closing:
		return unavailable(CodeClosed, "the node is shutting down", nil)
	default:
	}
	if h := c.store.Health(); h.State == store.StateFailed || h.State == store.StateIndexFailed {
		return unavailable(CodeStorageFailed, "this node's storage failed; it must be restarted", h.Err)
	}
	if err := c.mayDecide(); err != nil {
		return err
	}
	state := c.control.State()
	if err := c.wholeNow(state); err != nil {
		return err
	}
	return c.catchingUp(state)
}

// catchingUp returns an error while this node lacks records that the other whole
// members held when it started. It waits for unreachable members only for a
// limited time. Once caught up, the node stays so until the next start.
func (c *Cluster) catchingUp(state *control.State) error {
	if c.caughtUp.Load() {
		return nil
	}
	linked := c.linked.Load()
	if linked == nil {
		return unavailable(CodeCatchingUp, "this node has just started", nil)
	}
	for _, m := range state.Members {
		if m.ID() == c.id || !m.Whole {
			continue
		}
		l, ok := c.linkTo(m.ID())
		if !ok {
			return unavailable(CodeCatchingUp, "this node has just started", nil)
		}
		if behind, done := l.puller.standing(*linked, c.timings.StartWait); !done {
			return unavailable(CodeCatchingUp, fmt.Sprintf("this node is still fetching the records that %s held when it started (about %d bytes of log are left)", m.Name, behind), nil)
		}
	}
	c.caughtUp.Store(true)
	return nil
}

// standing reports whether the node need not wait for this member any longer:
// either the records that the member held at the start are here, or it has not
// answered for too long since the node was linked to it.
func (p *puller) standing(linked time.Time, wait time.Duration) (behind int64, done bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.caughtUp {
		return 0, true
	}
	lost := !p.connected && time.Since(linked) > wait && time.Since(p.heard) > wait
	return p.behind, lost
}
