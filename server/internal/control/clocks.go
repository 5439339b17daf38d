package control

import (
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/stemedb/stemedb/server/internal/clock"
	"github.com/stemedb/stemedb/server/internal/control/controlpb"
)

// The table's time. Clocks of machines differ, and any of them may be wrong, the
// leader's included. So the table's time does not depend on a single clock: it is
// the median of the members' wall clocks. While a majority of them is right to
// within some bound, so is the median.
//
// The leader computes it, and the others learn it when they confirm their copies.
// It is based on steady clocks: each process measures the time since its start
// with the monotonic clock, which runs evenly and cannot be set. Setting a
// machine's clock therefore changes only one member's report, and between two
// answers the table's time runs evenly.
//
//	member                                leader
//	  own wall − the leader's steady  →     one report for each member
//	                                  ←     its steady clock; median of the reports
//
// A member assumes that the leader's steady clock was read in the middle of the
// round trip, so the error is at most half a round trip in each direction.
type clocks struct {
	wall  clock.Clock
	bound time.Duration // Timings.ClockBound
	fresh time.Duration // how long a report and an answer are valid
	start time.Time     // of the steady clock

	mu sync.Mutex // guards the fields below
	// term is the term of the leader that answered last; leaderAhead is its steady
	// clock minus this node's.
	term        uint64
	leaderAhead time.Duration
	reported    bool // this node has reported its clock to that leader
	table       tableTime
	skews       map[string]time.Duration // member id: its wall clock minus the table's time

	// reports holds the members' reports to this node as the leader of reportTerm.
	reportTerm uint64
	reports    map[string]report

	apart  time.Time // since when clocks disagree; zero while they agree
	warned time.Time // time of the last log entry about it
}

// tableTime is the table's time as an offset from this node's steady clock.
type tableTime struct {
	known bool
	agree bool // a majority of the members' clocks are within the bound of it
	ahead int64
	at    moment // time of the question
}

// report is a member's wall clock minus the leader's steady clock.
type report struct {
	ahead int64
	at    moment
}

// moment is one reading of both clocks of this node.
type moment struct {
	steady time.Duration
	wall   int64 // unix nanoseconds
}

// ahead changes only when the wall clock is set or the machine is suspended,
// which stops its monotonic clock but not its wall clock.
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

// slept returns how long the machine was suspended since a moment, which the
// monotonic clock does not show. It is not sure after a long suspension or after
// the wall clock was set: the two cannot be distinguished.
func (c *clocks) slept(since, now moment) (d time.Duration, sure bool) {
	jump := time.Duration(now.ahead() - since.ahead())
	return max(jump, 0), jump.Abs() <= c.bound
}

// report adds this node's wall clock to a question to the leader.
func (c *clocks) report(asked moment, r *controlpb.ConfirmRequest) {
	c.mu.Lock()
	defer c.mu.Unlock()
	r.ClockTerm, r.ClockAhead = c.term, asked.ahead()-int64(c.leaderAhead)
	c.reported = true
}

// unreported reports whether the leader does not know this node's clock yet. The
// next question reports it and should come soon.
func (c *clocks) unreported() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.term != 0 && !c.reported
}

// learn processes the leader's answer to a question.
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

// take records a member's report. A report relative to another leader's steady
// clock is ignored.
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

// lead begins a term of this node's leadership: reports are relative to the
// leader's steady clock, which the members measure again in each term.
func (c *clocks) lead(term uint64) {
	if c.reportTerm != term {
		c.reportTerm, c.reports = term, map[string]report{}
	}
}

// answer fills in the leader's answer and applies it to this node too; self and
// members are ids.
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

// adopt sets the table's time. A time on which the clocks do not agree does not
// replace one that is still valid: a new leader with few reports continues with
// the time from its predecessor.
func (c *clocks) adopt(t tableTime, now moment) {
	if t.agree || !c.decides(c.table, now) {
		c.table = t
	}
}

// judge returns the median of the members' reported clocks.
func (c *clocks) judge(now moment, members []string) tableTime {
	var shown []int64
	for _, id := range members {
		if r, ok := c.reports[id]; ok {
			shown = append(shown, r.ahead)
		}
	}
	if len(shown) == 0 {
		shown = append(shown, now.ahead()) // this node leads and is not a member: it is being replaced
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

// now returns the table's time, or this machine's while the table's is not sure.
func (c *clocks) now() (at time.Time, sure bool) {
	now := c.look()
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.decides(c.table, now) {
		return time.Unix(0, now.wall), false
	}
	return time.Unix(0, int64(now.steady)+c.table.ahead), true
}

// skew is this machine's clock minus the table's time.
func (c *clocks) skew() (d time.Duration, known bool) {
	now := c.look()
	c.mu.Lock()
	defer c.mu.Unlock()
	return time.Duration(now.ahead() - c.table.ahead), c.table.known
}

// skewOf is the skew of a member's clock according to the leader's last answer.
func (c *clocks) skewOf(id string) (d time.Duration, known bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	d, known = c.skews[id]
	return d, known
}

const (
	// clockWarnAfter suppresses warnings during a start and a change of leader, when
	// few members have reported yet.
	clockWarnAfter = 10 * time.Second
	// clockWarnEvery limits the log entries about a clock that stays wrong.
	clockWarnEvery = time.Minute
)

// warn logs when clocks disagree, and when they agree again.
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
		log.Warn("no majority of the members' clocks agrees on the time; keys with an expiry and keys in their grace are refused until the clocks are corrected",
			"bound", c.bound, "skews", c.skews)
		return
	}
	log.Warn("this machine's clock differs from the cluster's time, which is used for decisions; correct this machine's clock", "skew", skew, "bound", c.bound)
}
