package control

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/stemedb/stemedb/server/internal/keys"
)

// registerMetrics registers gauges that read the table when they are scraped.
func (c *Control) registerMetrics() error {
	if c.cfg.Registerer == nil {
		return nil
	}
	gauge := func(name, help string, value func() float64) {
		c.metrics = append(c.metrics, prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, value))
	}
	gauge("stemedb_control_leader", "1 on the leader of the control table, otherwise 0.", func() float64 { return flag(c.leading()) })
	gauge("stemedb_control_has_leader", "1 when this node knows a leader of the control table, otherwise 0.", func() float64 {
		_, ok := c.Leader()
		return flag(ok)
	})
	gauge("stemedb_control_term", "Raft's term.", func() float64 {
		if !c.started.Load() {
			return 0
		}
		return float64(c.raft.Load().CurrentTerm())
	})
	gauge("stemedb_control_generation", "Generation of the members.", func() float64 { return float64(c.State().Generation) })
	gauge("stemedb_control_members", "Members of the cluster, whole or not.", func() float64 { return float64(len(c.State().Members)) })
	gauge("stemedb_control_members_whole", "Members that the control table calls whole.", func() float64 {
		candidates, _ := c.State().ReadSet()
		return float64(len(candidates))
	})
	gauge("stemedb_control_whole", "1 when the control table calls this node whole, else 0. See stemedb_member_whole for the other conditions of a quorum read.", func() float64 {
		m, _ := c.State().MemberByID(c.id)
		return flag(m.Whole)
	})
	gauge("stemedb_control_change_open_seconds", "Age of the open change of members, 0 when none is open.", c.changeAge)
	gauge("stemedb_control_confirmed_age_seconds", "Age of the leader's last confirmation of this node's copy; +Inf before the first.", func() float64 {
		_, at := c.Confirmed()
		if at.IsZero() {
			return math.Inf(1)
		}
		return time.Since(at).Seconds()
	})
	c.metrics = append(c.metrics, prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "stemedb_clock_skew_seconds",
		Help: "This machine's clock minus the cluster's time, which is the median of the members' clocks; NaN until it is known.",
	}, func() float64 {
		skew, known := c.clocks.skew()
		if !known {
			return math.NaN()
		}
		return skew.Seconds()
	}))
	gauge("stemedb_control_time_sure", "1 when the cluster's time is known and a majority of the members' clocks agrees on it, otherwise 0.", func() float64 {
		_, sure := c.Now()
		return flag(sure)
	})
	gauge("stemedb_control_failed", "1 when this node's copy no longer follows the table, otherwise 0.", func() float64 { return flag(c.Err() != nil) })
	gauge("stemedb_control_keys", "API keys in the table, revoked ones included.", func() float64 { return float64(len(c.State().Keys)) })
	c.metrics = append(c.metrics, c.failures, c.restarts)
	var errs []error
	for _, m := range c.metrics {
		errs = append(errs, c.cfg.Registerer.Register(m))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("register the metrics of the control table: %w", err)
	}
	return nil
}

// newFailureMetrics returns counters that count even if they are not registered.
func newFailureMetrics() (*prometheus.CounterVec, prometheus.Counter) {
	failures := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "stemedb_control_failures_total",
		Help: "Failures of this node's copy of the control table, by kind: storage, snapshot (not written, retried), damage (stored bytes), memory, divergence (from the other copies), other.",
	}, []string{"kind"})
	for _, kind := range []string{storageFailed, snapshotFailed, damaged, inMemory, diverged, "other"} {
		failures.WithLabelValues(kind)
	}
	return failures, prometheus.NewCounter(prometheus.CounterOpts{
		Name: "stemedb_control_restarts_total",
		Help: "Restarts of this node's part of the control table after a failure.",
	})
}

func (c *Control) unregisterMetrics() {
	if c.cfg.Registerer == nil {
		return
	}
	for _, m := range c.metrics {
		c.cfg.Registerer.Unregister(m)
	}
}

// changeAge uses the table's time, like OpenedAt.
func (c *Control) changeAge() float64 {
	s := c.State()
	if s.Change == nil {
		return 0
	}
	now, _ := c.Now()
	return max(0, now.Sub(time.Unix(s.Change.OpenedAt, 0)).Seconds())
}

func flag(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

func (s *State) sortedKeys() []keys.Key {
	return slices.SortedFunc(maps.Values(s.Keys), func(a, b keys.Key) int {
		return cmp.Or(cmp.Compare(a.Project, b.Project), cmp.Compare(a.CreatedAt, b.CreatedAt), slices.Compare(a.Hash[:], b.Hash[:]))
	})
}
