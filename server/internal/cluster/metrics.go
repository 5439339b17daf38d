package cluster

import "github.com/prometheus/client_golang/prometheus"

// metrics are this package's metrics. The label peer is a member's name.
type metrics struct {
	writeSeconds  prometheus.Histogram
	writeFailures prometheus.Counter
	ackSeconds    *prometheus.HistogramVec
	queueBytes    *prometheus.GaugeVec
	dropped       *prometheus.CounterVec
	lagBytes      *prometheus.GaugeVec
	caughtUp      *prometheus.CounterVec
	gaps          *prometheus.CounterVec
	malformed     prometheus.Counter
	readDiffers   prometheus.Counter
	writtenBack   prometheus.Counter
	readFailures  *prometheus.CounterVec
	repaired      prometheus.Counter
	rolledBack    prometheus.Counter
	verified      prometheus.Counter
	verifyRounds  prometheus.Counter
	scrubRounds   prometheus.Counter
	scrubFound    *prometheus.CounterVec
	whole         prometheus.Gauge
}

func newMetrics(r prometheus.Registerer) (*metrics, error) {
	seconds := []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5}
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: "stemedb_" + name, Help: help})
	}
	counters := func(name, help, label string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: "stemedb_" + name, Help: help}, []string{label})
	}
	gauges := func(name, help string) *prometheus.GaugeVec {
		return prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "stemedb_" + name, Help: help}, []string{"peer"})
	}
	m := &metrics{
		writeSeconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "stemedb_replication_write_seconds", Buckets: seconds,
			Help: "Time until a write was durable on a majority, excluding the check of its signatures.",
		}),
		writeFailures: counter("replication_write_failures_total", "Writes that did not become durable on a majority in time."),
		ackSeconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "stemedb_replication_ack_seconds", Buckets: seconds,
			Help: "Time until a member acknowledged the records sent to it.",
		}, []string{"peer"}),
		queueBytes:   gauges("replication_queue_bytes", "Bytes of records that wait for a member's acknowledgement."),
		dropped:      counters("replication_dropped_total", "Writes not sent to a member because its queue was full; catch-up delivers them.", "peer"),
		lagBytes:     gauges("replication_lag_bytes", "Approximate bytes of a member's log that this node has not pulled yet."),
		caughtUp:     counters("catchup_records_total", "Records that catch-up fetched from a member.", "peer"),
		gaps:         counters("catchup_gaps_total", "Records, or runs of them, that a member could not read from its log.", "peer"),
		malformed:    counter("peer_malformed_total", "Malformed messages from members."),
		readDiffers:  counter("read_differences_total", "Quorum reads that found different records on the members."),
		writtenBack:  counter("read_written_back_total", "Records that quorum reads wrote to a majority before they answered."),
		readFailures: counters("read_failures_total", "Quorum reads that could not be answered, by reason.", "reason"),
		verified:     counter("log_verified_bytes_total", "Approximate bytes of the log that were verified."),
		verifyRounds: counter("log_verify_rounds_total", "Completed verifications of the whole log."),
		rolledBack:   counter("log_rolled_back_total", "Pulls in which a member proved that this node's log was restored to an older state."),
		repaired:     counter("records_repaired_total", "Damaged records replaced by another member's copy."),
		scrubRounds:  counter("scrub_rounds_total", "Completed comparisons of all records with one member."),
		scrubFound:   counters("scrub_differences_total", "Records that this node lacked although it had caught up with the member.", "peer"),
		whole: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "stemedb_member_whole", Help: "1 when this node is a member, whole, and counts in reads.",
		}),
	}
	if r == nil {
		return m, nil
	}
	for _, c := range []prometheus.Collector{
		m.writeSeconds, m.writeFailures, m.ackSeconds, m.queueBytes, m.dropped, m.lagBytes, m.caughtUp, m.gaps,
		m.malformed, m.readDiffers, m.writtenBack, m.readFailures, m.repaired, m.rolledBack, m.verified, m.verifyRounds, m.scrubRounds, m.scrubFound, m.whole,
	} {
		if err := r.Register(c); err != nil {
			return nil, err
		}
	}
	return m, nil
}
