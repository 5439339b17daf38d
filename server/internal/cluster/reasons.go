package cluster

import (
	"fmt"
	"slices"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/stemedb/stemedb/server/internal/control"
	"github.com/stemedb/stemedb/server/internal/remedy"
	"github.com/stemedb/stemedb/server/internal/store"
)

// reason is a condition of a node that an operator should end. The table is all
// there is: the health summary and the metric stemedb_health_reason come from it.
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

// troubles are the conditions of this node that an operator should end.
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
	return []Trouble{{Detail: h.Err.Error(), Remedy: "check the volume, then restart the node; it takes no writes before that"}}
}

func findControlFailed(c *Cluster, _ *store.Health, _ *control.State) []Trouble {
	err := c.control.Err()
	if err == nil {
		return nil
	}
	return []Trouble{{Detail: err.Error(), Remedy: "the node tries to mend it by itself; when it lasts, do as the text says, or check the WAL volume and restart the node"}}
}

func findNotWhole(c *Cluster, _ *store.Health, state *control.State) []Trouble {
	m, member := c.self(state)
	_, joining := state.MemberByID(c.id)
	switch {
	case member && m.Whole && c.store.Whole(), !member && !joining:
		return nil
	case !member:
		return []Trouble{{Detail: messageJoining, Remedy: "wait; \"stemedb cluster status\" shows for whom the change of members waits"}}
	}
	return []Trouble{{Detail: c.lost(), Remedy: remedy.Lost(len(state.Members), c.name)}}
}

func findReadOnly(_ *Cluster, h *store.Health, _ *control.State) []Trouble {
	if h.State != store.StateReadOnly {
		return nil
	}
	return []Trouble{{Detail: h.Err.Error(), Remedy: remedySpace}}
}

const remedySpace = "free or add space on the volume; writes go on by themselves"

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
		Remedy: "start the members that are not alive; replace a disk that does this often",
	}}
}

// reasonMetric has a series for every row of the table.
type reasonMetric struct{ c *Cluster }

var reasonDesc = prometheus.NewDesc("stemedb_health_reason",
	"1 while the health summary of this node gives this reason, else 0.", []string{"reason"}, nil)

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
