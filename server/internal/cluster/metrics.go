package cluster

import (
	"errors"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/stemedb/stemedb/record"
)

// metrics are this package's metrics. The label peer is a member's name.
type metrics struct {
	writeSeconds  prometheus.Histogram
	writeFailures *prometheus.CounterVec
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
		return prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
	}
	counters := func(name, help, label string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, []string{label})
	}
	gauges := func(name, help string) *prometheus.GaugeVec {
		return prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: name, Help: help}, []string{"peer"})
	}
	m := &metrics{
		writeSeconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "stemedb_replication_write_seconds", Buckets: seconds,
			Help: "Time until a write was durable on a majority, excluding the check of its signatures.",
		}),
		writeFailures: counters("stemedb_write_failures_total", "Assertions and votes of callers that this node did not acknowledge, by the code of the problem. Invalid records are not counted.", "code"),
		ackSeconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "stemedb_replication_ack_seconds", Buckets: seconds,
			Help: "Time until a member acknowledged the records sent to it.",
		}, []string{"peer"}),
		queueBytes:   gauges("stemedb_replication_queue_bytes", "Bytes of records that wait for a member's acknowledgement."),
		dropped:      counters("stemedb_replication_dropped_total", "Writes not sent to a member because its queue was full; catch-up delivers them.", "peer"),
		lagBytes:     gauges("stemedb_replication_lag_bytes", "Approximate bytes of a member's log that this node has not pulled yet."),
		caughtUp:     counters("stemedb_catchup_records_total", "Records that catch-up fetched from a member.", "peer"),
		gaps:         counters("stemedb_catchup_gaps_total", "Records, or runs of them, that a member could not read from its log.", "peer"),
		malformed:    counter("stemedb_peer_malformed_total", "Malformed messages from members."),
		readDiffers:  counter("stemedb_read_differences_total", "Quorum reads that found different records on the members."),
		writtenBack:  counter("stemedb_read_written_back_total", "Records that quorum reads wrote to a majority before they answered."),
		readFailures: counters("stemedb_read_failures_total", "Quorum reads that could not be answered, by reason.", "reason"),
		verified:     counter("stemedb_log_verified_bytes_total", "Approximate bytes of the log that were verified."),
		verifyRounds: counter("stemedb_log_verify_rounds_total", "Completed verifications of the whole log."),
		rolledBack:   counter("stemedb_log_rolled_back_total", "Pulls in which a member proved that this node's log was restored to an older state."),
		repaired:     counter("stemedb_records_repaired_total", "Damaged records replaced by another member's copy."),
		scrubRounds:  counter("stemedb_scrub_rounds_total", "Completed comparisons of all records with one member."),
		scrubFound:   counters("stemedb_scrub_differences_total", "Records that this node lacked although it had caught up with the member.", "peer"),
		whole: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "stemedb_member_whole", Help: "1 when this node counts in quorum reads, else 0. It counts when the control table and its own log call it whole, or it is the only member, and the others have compared its log since its start.",
		}),
	}
	for _, code := range append(WriteCodes(), failureOther) {
		m.writeFailures.WithLabelValues(code) // from the start, so that the first failure is an increase
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

// failureOther is the code of a failure that is no *UnavailableError, such as a
// key that was revoked while the write waited for its turn.
const failureOther = "other"

// WriteCodes are the codes of an UnavailableError with which a write can fail.
func WriteCodes() []string {
	return []string{
		CodeNoQuorum, CodeOverloadedDisk, CodeOverloadedWrites, CodeOverloadedPeers, CodeOverloadedSignatures,
		CodeReadOnly, CodeStorageFailed, CodeUnconfirmed, CodeControlFailed, CodeNotMember, CodeClocksApart, CodeClosed,
	}
}

// writeFailed counts a record that was not acknowledged. A record that is invalid
// is its caller's fault and not counted.
func (m *metrics) writeFailed(err error) {
	var invalid *record.FieldError
	if err == nil || errors.As(err, &invalid) {
		return
	}
	code := failureOther
	var u *UnavailableError
	if errors.As(err, &u) {
		code = u.Code
	}
	m.writeFailures.WithLabelValues(code).Inc()
}
