package api

import (
	"context"
	"net/http"
	"time"

	"github.com/stemedb/stemedb/server/internal/cluster"
	"github.com/stemedb/stemedb/server/internal/keys"
)

// A check of a key shows that the key was valid at some moment of the last 30
// s. The time from the check to the request's effect is added to that: a body
// takes up to Options.ReadTimeout, a turn up to MaxRequestTimeout. So the key
// is checked again after each such wait, and the time after the last check is
// bounded together with the age of the copy:
//
//	header   checked, so that no caller without a key sends a body
//	body     checked, once the body of a request that changes something has arrived
//	turn     a write is checked by its cluster.Permit, right before it is handed
//	         to the logs, and only if the copy is trusted until the write is
//	         durable or given up (5 s, cluster.Timings.WriteWait)
//	change   a change of keys is proposed only while the copy is trusted for
//	         changeTime longer
//	answer   a read is checked when its answer is complete; each page is a
//	         request with its own checks
//
// A node that receives a request from a gateway makes all these checks with its
// own copy.
//
// Two cases are not covered: a record that was handed over in time and then
// delayed by a disk or by the network for longer than WriteWait, before it was
// durable on any member; and a proposal that the leader logged just before it
// lost its majority, which takes effect with the next majority or never.

// changeTime bounds the work after the last proposal of a change of keys: one call
// to the leader (3 s), and the lease of a leader that has lost its majority (1 s).
const changeTime = 5 * time.Second

// reads reports whether the route changes nothing.
func (r *route) reads() bool { return r.method == http.MethodGet }

// authorizeChange checks the key again once the body has arrived, and bounds the
// time for a change of keys.
func (c *call) authorizeChange() error {
	if !c.api.opts.Auth || c.route.class == keys.Public || c.route.reads() {
		return nil
	}
	if err := c.authorize(time.Now().Add(changeTime)); err != nil {
		return err
	}
	if c.route.class == keys.Administer {
		end := c.cancel
		ctx, cancel := context.WithDeadline(c.ctx, c.svc.keys.ConfirmedUntil().Add(-changeTime))
		c.ctx, c.cancel = ctx, func() { cancel(); end() }
	}
	return nil
}

// authorizeAnswer checks the key again before the answer of a read is sent.
func (c *call) authorizeAnswer() error {
	if !c.api.opts.Auth || c.route.class == keys.Public || !c.route.reads() {
		return nil
	}
	return c.authorize(time.Now())
}

// permitted is the context for a write: the cluster uses it to check the key
// again once the write has its turn. A refusal is stored in refused.
func (c *call) permitted() context.Context {
	if !c.api.opts.Auth {
		return c.ctx
	}
	return cluster.WithPermit(c.ctx, func(by time.Time) error {
		c.refused = c.authorize(by)
		return c.refused
	})
}
