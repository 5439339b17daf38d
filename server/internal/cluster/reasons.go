package cluster

import (
	"fmt"
	"slices"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/stemedb/stemedb/server/internal/control"
	"github.com/stemedb/stemedb/server/internal/remedy"
	"github.com/stemedb/stemedb/server/internal/store"
)

// reason is a condition of a node that needs an operator. The table below is
// complete: the health summary and the metric stemedb_health_reason are generated
// from it.
type reason struct {
	code string
	// find returns each instance of the condition, without its code.
	find func(c *Cluster, h *store.Health, state *control.State) []Trouble
}

var reasons = []reason{
	{CodeStorageFailed, findStorageFailed},
	{CodeControlFailed, findControlFailed},
	{CodeNotWhole, findNotWhole},
	{CodeReadOnly, findReadOnly},
	{CodeNearlyFull, findNearlyFull},
	{CodeDamaged, findDamaged},
}

// Reasons lists the code of every reason that the health summary may give.
func Reasons() []string {
	codes := make([]string, len(reasons))
	for i, r := range reasons {
		codes[i] = r.code
	}
	return codes
}

// troubles returns the conditions of this node that need an operator.
func (c *Cluster) troubles() (all []Trouble) {
	h, state := c.store.Health(), c.control.State()
	for _, r := range reasons {
		for _, t := range r.find(c, &h, state) {
			t.Code = r.code
			all = append(all, t)
		}
	}
	return all
}

func findStorageFailed(_ *Cluster, h *store.Health, _ *control.State) []Trouble {
	if h.State != store.StateFailed && h.State != store.StateIndexFailed {
		return nil
	}
	return []Trouble{{Detail: h.Err.Error(), Remedy: "check the volume, then restart the node; it accepts no writes until then"}}
}

func findControlFailed(c *Cluster, _ *store.Health, _ *control.State) []Trouble {
	err := c.control.Err()
	if err == nil {
		return nil
	}
	return []Trouble{{Detail: err.Error(), Remedy: "the node tries to repair it automatically; if it persists, follow the advice in the detail, or check the WAL volume and restart the node"}}
}

func findNotWhole(c *Cluster, _ *store.Health, state *control.State) []Trouble {
	m, member := c.self(state)
	_, joining := state.MemberByID(c.id)
	switch {
	case member && m.Whole && c.store.Whole(), !member && !joining:
		return nil
	case !member:
		return []Trouble{{Detail: messageJoining, Remedy: "wait; \"stemedb cluster status\" shows which members the change waits for"}}
	}
	return []Trouble{{Detail: c.lost(), Remedy: remedy.Lost(len(state.Members), c.name)}}
}

func findReadOnly(_ *Cluster, h *store.Health, _ *control.State) []Trouble {
	if h.State != store.StateReadOnly {
		return nil
	}
	return []Trouble{{Detail: h.Err.Error(), Remedy: remedySpace}}
}

const remedySpace = "free or add space on the volume; writes then resume automatically"

func findNearlyFull(_ *Cluster, h *store.Health, _ *control.State) (all []Trouble) {
	names := map[string]string{"wal": "WAL", "packs": "DB"} // as the settings call them
	for _, s := range h.Space {
		if s.NearlyFull {
			all = append(all, Trouble{
				Detail: fmt.Sprintf("the %s volume (%s) has %d of %d bytes free; writes are refused below %d", names[s.Volume], s.Dir, s.Free, s.Total, s.Reserve),
				Remedy: "free or add space on the volume", Volume: s.Volume,
			})
		}
	}
	return all
}

func findDamaged(c *Cluster, _ *store.Health, state *control.State) []Trouble {
	if c.Incomplete() != "" || !c.mending() {
		return nil
	}
	return []Trouble{{
		Detail: "damaged records are being replaced by other members' copies",
		Remedy: "start the members that are not alive; replace a disk that damages records repeatedly",
	}}
}

// reasonMetric has one series for each row of the table.
type reasonMetric struct{ c *Cluster }

var reasonDesc = prometheus.NewDesc("stemedb_health_reason",
	"1 while the health summary of this node has this reason, otherwise 0.", []string{"reason"}, nil)

func (m reasonMetric) Describe(out chan<- *prometheus.Desc) { out <- reasonDesc }

func (m reasonMetric) Collect(out chan<- prometheus.Metric) {
	now := m.c.troubles()
	for _, r := range reasons {
		value := 0.0
		if slices.ContainsFunc(now, func(t Trouble) bool { return t.Code == r.code }) {
			value = 1
		}
		out <- prometheus.MustNewConstMetric(reasonDesc, prometheus.GaugeValue, value, r.code)
	}
}
