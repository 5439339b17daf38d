package store

import (
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
)

// register exports the index's metrics; the log registers its own.
func (s *Store) register(r prometheus.Registerer) error {
	if r == nil {
		return nil
	}
	gauge := func(name, help string, value func(Stats) float64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help},
			func() float64 { return value(s.Stats()) })
	}
	counter := func(name, help string, value func(Stats) float64) prometheus.Collector {
		return prometheus.NewCounterFunc(prometheus.CounterOpts{Name: name, Help: help},
			func() float64 { return value(s.Stats()) })
	}
	for _, c := range []prometheus.Collector{
		// The name is older than this server, and dashboards use it.
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "stemedb_assertions_total", Help: "Assertions that this node holds."},
			func() float64 { return float64(s.Stats().Assertions) }),
		gauge("stemedb_index_pending_bytes", "Bytes that are durable or being written, and not in the index yet.",
			func(st Stats) float64 { return float64(st.PendingBytes) }),
		gauge("stemedb_index_replay_bytes", "Bytes of log that a start after a crash would replay.",
			func(st Stats) float64 { return float64(s.distance(st.Marker, st.End)) }),
		gauge("stemedb_index_size_bytes", "Size of the index's tables.",
			func(st Stats) float64 { return float64(st.IndexBytes) }),
		gauge("stemedb_index_failed", "1 when the index failed and the process must restart.",
			func(Stats) float64 {
				if s.Health().State == StateIndexFailed {
					return 1
				}
				return 0
			}),
		counter("stemedb_index_write_stalls_total", "Writes that goleveldb held up because compaction was behind.",
			func(st Stats) float64 { return float64(st.WriteDelays) }),
		counter("stemedb_index_write_stall_seconds_total", "Time for which goleveldb held up writes because compaction was behind.",
			func(st Stats) float64 { return st.WriteDelay.Seconds() }),
	} {
		if err := r.Register(c); err != nil {
			return fmt.Errorf("register the index's metrics: %w", err)
		}
	}
	return nil
}
