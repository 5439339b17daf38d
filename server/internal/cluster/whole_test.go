package cluster

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/stemedb/stemedb/record"
	"github.com/stemedb/stemedb/server/internal/control"
)

// withoutMending makes damage a loss at once.
func withoutMending(w *world) {
	w.tune = func(c *Config) { c.Timings.MendWait = -1 }
}

// TestRefillIsNotTakenForDoneBeforeItBegan: the loss is recorded, and this node's
// stale copy of the control table still lists it as whole.
func TestRefillIsNotTakenForDoneBeforeItBegan(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := threeNodes(t, withoutMending)
		a := w.nodes["a"]
		ids := a.write(claim("rotten subject", 1))
		for _, n := range w.nodes {
			w.await("the record on "+n.name, func() bool { return n.holds(ids...) })
		}
		a.control.lag(true)
		a.rot("rotten subject")
		_, err := a.cluster.Get(context.Background(), "p", ids[0], Local)
		require.NoError(t, err)
		reported := func() int {
			a.control.mu.Lock()
			defer a.control.mu.Unlock()
			return a.control.reported
		}
		w.await("the report of the loss", func() bool { return reported() == 1 })
		time.Sleep(10 * time.Second)
		require.False(t, a.store.Whole())
		require.True(t, a.cluster.refilling.Load())

		a.control.lag(false)
		time.Sleep(10 * time.Second)
		require.True(t, a.cluster.refilling.Load(), "its copy shows the loss now, and no refill has been closed")
		w.setMembers("a", "b", "c")
		w.await("the end of the refill", func() bool { return a.store.Whole() && !a.cluster.refilling.Load() })
		require.Equal(t, 1, reported())
	})
}

// TestRefillLooksAtEverythingAgain: one record was found damaged and repaired by
// the read that found it. Another damaged record is read only by the refill: the
// cursors must not claim that everything is held.
func TestRefillLooksAtEverythingAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := threeNodes(t, withoutMending)
		a := w.nodes["a"]
		ids := a.write(claim("first rotten", 1), claim("second rotten", 2))
		for _, n := range w.nodes {
			w.await("the records on "+n.name, func() bool { return n.holds(ids...) })
		}
		time.Sleep(time.Hour) // the cursors are behind both
		a.rot("first rotten")
		a.rot("second rotten")
		_, err := a.cluster.Get(context.Background(), "p", ids[0], Local)
		require.NoError(t, err)
		w.await("the report of the loss", func() bool {
			me, _ := a.control.State().MemberByID(a.control.id)
			return !me.Whole
		})
		w.await("the other record", func() bool { _, err := a.store.Assertion("p", ids[1]); return err == nil })
	})
}

// TestLossIsReportedAgain: the copy skipped from before the report to after the
// refill, so that it does not show whether there was a refill.
func TestLossIsReportedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := threeNodes(t, withoutMending)
		a := w.nodes["a"]
		ids := a.write(claim("rotten subject", 1))
		for _, n := range w.nodes {
			w.await("the record on "+n.name, func() bool { return n.holds(ids...) })
		}
		a.control.lag(true)
		a.rot("rotten subject")
		_, err := a.cluster.Get(context.Background(), "p", ids[0], Local)
		require.NoError(t, err)
		reported := func() int {
			a.control.mu.Lock()
			defer a.control.mu.Unlock()
			return a.control.reported
		}
		w.await("the report of the loss", func() bool { return reported() == 1 })
		w.setMembers("a", "b", "c")
		a.control.lag(false)
		w.await("another report", func() bool { return reported() == 2 })
		require.True(t, a.cluster.refilling.Load())
		w.setMembers("a", "b", "c")
		w.await("the end of the refill", func() bool { return a.store.Whole() && !a.cluster.refilling.Load() })
	})
}

// lossAtTheEnd finds a loss just before the store is marked as whole.
type lossAtTheEnd struct {
	Store
	find func()
}

func (s *lossAtTheEnd) SetWhole(losses int) error {
	if s.find != nil {
		s.find()
		s.find = nil
	}
	return s.Store.SetWhole(losses)
}

// TestLossAtTheEndOfARefill: a loss that is found just after the repair of an
// earlier one gets a separate refill.
func TestLossAtTheEndOfARefill(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		end := &lossAtTheEnd{}
		w := threeNodes(t, func(w *world) {
			w.tune = func(c *Config) {
				c.Timings.MendWait = -1
				if c.Store.Identity().Node == "a" {
					end.Store, c.Store = c.Store, end
				}
			}
		})
		a := w.nodes["a"]
		ids := a.write(claim("rotten subject", 1), claim("spoilt subject", 2))
		for _, n := range w.nodes {
			w.await("the records on "+n.name, func() bool { return n.holds(ids...) })
		}
		read := func(id record.Hash) {
			_, err := a.cluster.Get(context.Background(), "p", id, Local)
			require.NoError(t, err)
		}
		reported := func() int {
			a.control.mu.Lock()
			defer a.control.mu.Unlock()
			return a.control.reported
		}
		end.find = func() {
			a.rot("spoilt subject")
			read(ids[1])
		}
		a.rot("rotten subject")
		read(ids[0])
		w.await("the report of the first loss", func() bool { return reported() == 1 })
		time.Sleep(10 * time.Second)
		w.setMembers("a", "b", "c")
		w.await("the report of the second loss", func() bool { return reported() == 2 })
		require.False(t, a.store.Whole())
		time.Sleep(10 * time.Second)
		w.setMembers("a", "b", "c")
		w.await("the end of the refill", func() bool { return a.store.Whole() && !a.cluster.refilling.Load() })
	})
}

func (c *table) WithdrawLoss(context.Context) error {
	c.n.w.change(func(s *control.State) {
		for i := range s.Members {
			if s.Members[i].ID() == c.id {
				s.Members[i].Whole = true
			}
		}
	})
	return nil
}
