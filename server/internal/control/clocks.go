package control

import (
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/stemedb/stemedb/server/internal/clock"
	"github.com/stemedb/stemedb/server/internal/control/controlpb"
)

// The table's time. Machines disagree on the time of day, and any of them may be
// wrong, the leader's too. So the table has a time that no single clock decides:
// the median of the members' wall clocks. While a majority of them are right to
// within some bound, the median is.
//
// It is worked out by the leader and learnt by the others when they confirm
// their copies, on top of steady clocks: each process counts time since its
// start by the monotonic clock, which runs evenly and cannot be set. Setting
// a machine's clock therefore changes one member's report and nothing else, and
// between two answers the table's time runs on evenly.
//
//	member                                leader
//	  own wall − the leader's steady  →     one report for each member
//	                                  ←     its steady clock; median of the reports
//
// A member places the leader's steady clock in the middle of the call's round
// trip, so each way adds half a round trip at most to the error.
type clocks struct {
	wall  clock.Clock
	bound time.Duration // Timings.ClockBound
	fresh time.Duration // how long a report and an answer count
	start time.Time     // of the steady clock

	mu sync.Mutex // guards the fields below
	// term is that of the leader who answered last, and leaderAhead its steady
	// clock less this one's.
	term        uint64
	leaderAhead time.Duration
	reported    bool // this node's clock to that leader
	table       tableTime
	skews       map[string]time.Duration // member id: its wall clock less the table's time

	// reports are those of the members to this node as the leader of reportTerm.
	reportTerm uint64
	reports    map[string]report

	apart  time.Time // since when clocks are apart; zero: they are not
	warned time.Time // when the log said so last
}

// tableTime is the table's time as an offset from this node's steady clock.
type tableTime struct {
	known bool
	agree bool // a majority of the members' clocks are within the bound of it
	ahead int64
	at    moment // when it was asked for
}

// report is a member's wall clock less the leader's steady clock.
type report struct {
	ahead int64
	at    moment
}

// moment is one look at both clocks of this node.
type moment struct {
	steady time.Duration
	wall   int64 // unix nanoseconds
}

// ahead changes only when the wall clock is set, or when the machine was
// suspended: then its monotonic clock stood still, and its wall clock did not.
func (m moment) ahead() int64 { return m.wall - int64(m.steady) }

func newClocks(wall clock.Clock, t Timings) *clocks {
	if wall == nil {
		wall = clock.Wall()
	}
	return &clocks{wall: wall, bound: t.ClockBound, fresh: t.ConfirmedFor, start: time.Now(), reports: map[string]report{}}
}

func (c *clocks) look() moment {
	return moment{steady: time.Since(c.start), wall: c.wall.Now().UnixNano()}
}

// slept is for how long the machine was suspended since a moment, so that the
// monotonic clock missed it. It is not sure after a long sleep, which only the
// wall clock shows, and therefore not after the wall clock was set either: the two
// look alike from inside.
func (c *clocks) slept(since, now moment) (d time.Duration, sure bool) {
	jump := time.Duration(now.ahead() - since.ahead())
	return max(jump, 0), jump.Abs() <= c.bound
}

// report puts this node's wall clock into a question to the leader.
func (c *clocks) report(asked moment, r *controlpb.ConfirmRequest) {
	c.mu.Lock()
	defer c.mu.Unlock()
	r.ClockTerm, r.ClockAhead = c.term, asked.ahead()-int64(c.leaderAhead)
	c.reported = true
}

// unreported: the leader does not know this node's clock yet. The next question
// tells it, and is worth asking soon.
func (c *clocks) unreported() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.term != 0 && !c.reported
}

// learn takes in the leader's answer to a question.
func (c *clocks) learn(asked moment, r *controlpb.ConfirmResponse) {
	heard := c.look()
	middle := asked.steady + (heard.steady-asked.steady)/2
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.term != r.Term {
		c.reported = false
	}
	c.term, c.leaderAhead = r.Term, time.Duration(r.SteadyClock)-middle
	c.adopt(tableTime{known: true, agree: r.ClocksAgree, ahead: int64(c.leaderAhead) + r.TableAhead, at: asked}, heard)
	c.skews = map[string]time.Duration{}
	for id, skew := range r.ClockSkew {
		c.skews[id] = time.Duration(skew)
	}
}

// take notes a member's report. One about another leader's steady clock is void.
func (c *clocks) take(id string, term uint64, r *controlpb.ConfirmRequest) {
	if term == 0 || r.ClockTerm != term {
		return
	}
	now := c.look()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.lead(term)
	c.reports[id] = report{ahead: r.ClockAhead, at: now}
}

// lead begins a term of this node's leadership: reports are about a steady clock,
// and the members measure it anew for each term.
func (c *clocks) lead(term uint64) {
	if c.reportTerm != term {
		c.reportTerm, c.reports = term, map[string]report{}
	}
}

// answer fills the leader's answer; self and members are ids. It counts for this
// node too.
func (c *clocks) answer(term uint64, self string, members []string, r *controlpb.ConfirmResponse) {
	now := c.look()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.lead(term)
	c.reports[self] = report{ahead: now.ahead(), at: now}
	for id, reported := range c.reports {
		if now.steady-reported.at.steady >= c.fresh {
			delete(c.reports, id)
		}
	}
	c.adopt(c.judge(now, members), now)
	c.term, c.leaderAhead, c.reported = term, 0, true
	r.SteadyClock, r.TableAhead, r.ClocksAgree = int64(now.steady), c.table.ahead, c.table.agree
	r.ClockSkew = map[string]int64{}
	c.skews = map[string]time.Duration{}
	for id, reported := range c.reports {
		c.skews[id] = time.Duration(reported.ahead - c.table.ahead)
		r.ClockSkew[id] = int64(c.skews[id])
	}
}

// adopt takes a time over. One on which the clocks do not agree does not replace
// one that still decides: a new leader, to which few have reported, goes on with
// the time that it has from the one before.
func (c *clocks) adopt(t tableTime, now moment) {
	if t.agree || !c.decides(c.table, now) {
		c.table = t
	}
}

// judge takes the median of the members' clocks, as far as they have reported.
func (c *clocks) judge(now moment, members []string) tableTime {
	var shown []int64
	for _, id := range members {
		if r, ok := c.reports[id]; ok {
			shown = append(shown, r.ahead)
		}
	}
	if len(shown) == 0 {
		shown = append(shown, now.ahead()) // this node leads and is no member: it is being replaced
	}
	slices.Sort(shown)
	t := tableTime{known: true, ahead: shown[(len(shown)-1)/2], at: now}
	near := 0
	for _, ahead := range shown {
		if time.Duration(ahead-t.ahead).Abs() <= c.bound {
			near++
		}
	}
	t.agree = near >= Majority(len(members))
	return t
}

func (c *clocks) decides(t tableTime, now moment) bool {
	slept, sure := c.slept(t.at, now)
	return t.known && t.agree && sure && now.steady-t.at.steady+slept < c.fresh
}

// now is the table's time, or this machine's when the table's is not sure.
func (c *clocks) now() (at time.Time, sure bool) {
	now := c.look()
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.decides(c.table, now) {
		return time.Unix(0, now.wall), false
	}
	return time.Unix(0, int64(now.steady)+c.table.ahead), true
}

// skew is this machine's clock less the table's time.
func (c *clocks) skew() (d time.Duration, known bool) {
	now := c.look()
	c.mu.Lock()
	defer c.mu.Unlock()
	return time.Duration(now.ahead() - c.table.ahead), c.table.known
}

// skewOf is the skew of a member's clock by the leader's last answer.
func (c *clocks) skewOf(id string) (d time.Duration, known bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	d, known = c.skews[id]
	return d, known
}

const (
	// clockWarnAfter lets a start and a change of leader pass, in which few
	// members have reported yet.
	clockWarnAfter = 10 * time.Second
	// clockWarnEvery keeps a clock that stays wrong from filling the log.
	clockWarnEvery = time.Minute
)

// warn says in the log that clocks are apart, and when they no longer are.
func (c *clocks) warn(log *slog.Logger) {
	skew, known := c.skew()
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case !known:
		return
	case skew.Abs() <= c.bound && c.table.agree:
		if !c.warned.IsZero() {
			log.Info("the clocks agree again", "skew", skew)
		}
		c.apart, c.warned = time.Time{}, time.Time{}
		return
	case c.apart.IsZero():
		c.apart = time.Now()
	}
	if time.Since(c.apart) < clockWarnAfter || (!c.warned.IsZero() && time.Since(c.warned) < clockWarnEvery) {
		return
	}
	c.warned = time.Now()
	if !c.table.agree {
		log.Warn("no majority of the members' clocks agree on the time; keys with an expiry and keys in their grace are refused until the clocks are set",
			"bound", c.bound, "skews", c.skews)
		return
	}
	log.Warn("this machine's clock is apart from the cluster's time; decisions go by the cluster's, and the machine's clock has to be set", "skew", skew, "bound", c.bound)
}
