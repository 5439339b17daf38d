package wal

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	reg        prometheus.Registerer
	registered []prometheus.Collector

	syncSeconds, flushSeconds, batchSize, recoverySeconds prometheus.Histogram
	writes, bytes, rotations, recoveries, tornTails       prometheus.Counter
	writeErrors                                           *prometheus.CounterVec
	free, size                                            *prometheus.GaugeVec
}

func newMetrics(l *Log, reg prometheus.Registerer) (*metrics, error) {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
	}
	histogram := func(name, help string, buckets []float64) prometheus.Histogram {
		return prometheus.NewHistogram(prometheus.HistogramOpts{Name: name, Help: help, Buckets: buckets})
	}
	seconds := prometheus.ExponentialBuckets(50e-6, 2, 18) // 50 µs to 6.5 s
	m := &metrics{
		reg:             reg,
		syncSeconds:     histogram("stemedb_wal_fsync_latency_seconds", "Time of one sync of the log.", seconds),
		flushSeconds:    histogram("stemedb_wal_flush_latency_seconds", "Time from the first commit of a batch to its durability.", seconds),
		batchSize:       histogram("stemedb_wal_batch_size", "Entries made durable by one sync.", prometheus.ExponentialBuckets(1, 2, 15)),
		recoverySeconds: histogram("stemedb_wal_recovery_duration_seconds", "Time of the recovery at start.", prometheus.ExponentialBuckets(1e-3, 4, 9)),
		writes:          counter("stemedb_wal_writes_total", "Commits made durable."),
		bytes:           counter("stemedb_wal_bytes_written_total", "Bytes written to the log, framing included."),
		rotations:       counter("stemedb_wal_rotations_total", "Changes to the next segment."),
		recoveries:      counter("stemedb_wal_recovery_attempts_total", "Recoveries started."),
		tornTails:       counter("stemedb_wal_torn_tails_total", "Unacknowledged tails that were set aside and cut."),
		writeErrors: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "stemedb_wal_write_errors_total", Help: "Failures by operation: write, sync, seal.",
		}, []string{"error"}),
		free: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "stemedb_volume_free_bytes", Help: "Free space on a volume, as the server sees it.",
		}, []string{"volume"}),
		size: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "stemedb_volume_size_bytes", Help: "Size of a volume, as the server sees it.",
		}, []string{"volume"}),
	}
	for _, e := range []string{"write", "sync", "seal"} {
		m.writeErrors.WithLabelValues(e) // shown from the start
	}
	return m, m.register(l)
}

func (m *metrics) register(l *Log) error {
	if m.reg == nil {
		return nil
	}
	gauge := func(name, help string, f func() float64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, f)
	}
	// A gauge may be read before recovery is over.
	fromManifest := func(f func(m *manifest) float64) func() float64 {
		return func() float64 {
			if m := l.manifest.Load(); m != nil {
				return f(m)
			}
			return 0
		}
	}
	for _, c := range []prometheus.Collector{
		m.syncSeconds, m.flushSeconds, m.batchSize, m.recoverySeconds,
		m.writes, m.bytes, m.rotations, m.recoveries, m.tornTails, m.writeErrors, m.free, m.size,
		gauge("stemedb_wal_segments_count", "Segment files on the WAL volume.",
			fromManifest(func(m *manifest) float64 { return float64(len(m.Segments)) })),
		gauge("stemedb_wal_disk_usage_bytes", "Bytes of segment files on the WAL volume.",
			fromManifest(func(m *manifest) float64 {
				var sum int64
				for _, s := range m.Segments {
					sum += s.Size
				}
				return float64(sum)
			})),
		gauge("stemedb_wal_packs_count", "Packs on the pack volume.",
			fromManifest(func(m *manifest) float64 { return float64(len(m.Packs)) })),
		gauge("stemedb_wal_packs_bytes", "Bytes of packs on the pack volume.",
			fromManifest(func(m *manifest) float64 {
				var sum int64
				for _, p := range m.Packs {
					sum += p.Bytes
				}
				return float64(sum)
			})),
		gauge("stemedb_wal_damaged_ranges", "Ranges that were durable and whose checksum no longer matches.",
			fromManifest(func(m *manifest) float64 { return float64(len(m.Damaged)) })),
		gauge("stemedb_wal_missing_ranges", "Ranges lost with a pack, a segment or a volume.",
			fromManifest(func(m *manifest) float64 { return float64(len(m.Lost)) })),
		gauge("stemedb_wal_state", "0 accepts writes, 1 read-only for lack of space, 2 failed.",
			func() float64 { s, _ := l.State(); return float64(s) }),
	} {
		if err := m.reg.Register(c); err != nil {
			m.unregister()
			return err
		}
		m.registered = append(m.registered, c)
	}
	return nil
}

// unregister lets the same registry be used after the log is reopened.
func (m *metrics) unregister() {
	if m == nil {
		return
	}
	for _, c := range m.registered {
		m.reg.Unregister(c)
	}
	m.registered = nil
}

func (m *metrics) writeError(what string) { m.writeErrors.WithLabelValues(what).Inc() }

func (m *metrics) space(volume string, free, total uint64) {
	m.free.WithLabelValues(volume).Set(float64(free))
	m.size.WithLabelValues(volume).Set(float64(total))
}

func (m *metrics) batch(b *batch) {
	m.writes.Add(float64(len(b.commits)))
	m.bytes.Add(float64(len(b.buf)))
	m.batchSize.Observe(float64(b.entries))
	m.flushSeconds.Observe(time.Since(b.begun).Seconds())
}
