package api

import (
	"fmt"
	"net/http"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// meters are the metrics of the HTTP API. Labels are bounded: routes are
// patterns, methods and statuses are those of the table.
type meters struct {
	requests *prometheus.CounterVec
	duration *prometheus.HistogramVec
	inFlight prometheus.Gauge
	problems *prometheus.CounterVec

	queries      *prometheus.CounterVec
	queryLatency *prometheus.HistogramVec
	ingested     prometheus.Counter

	gatewayRequests *prometheus.CounterVec
	gatewayRetries  prometheus.Counter
}

// Buckets in seconds, from a look-up in memory to the longest timeout.
func latencyBuckets() []float64 {
	return []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10}
}

func newMeters(a *API, registerer prometheus.Registerer) (*meters, error) {
	m := &meters{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "stemedb_http_requests_total",
			Help: "HTTP requests answered by this node, through the API or the gateway.",
		}, []string{"route", "method", "status"}),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "stemedb_http_request_duration_seconds",
			Help: "Time from a request's header to its answer.", Buckets: latencyBuckets(),
		}, []string{"route"}),
		inFlight: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "stemedb_http_requests_in_flight", Help: "HTTP requests in progress.",
		}),
		problems: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "stemedb_http_problems_total",
			Help: "Problems that this node answered with, by code, even if the gateway then sent the request to another node. The body of a problem names the node that counts it.",
		}, []string{"code"}),
		queries: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "stemedb_queries_total", Help: "Queries answered, by endpoint.",
		}, []string{"endpoint"}),
		queryLatency: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "stemedb_query_latency_seconds", Help: "Time that a query took, by endpoint.", Buckets: latencyBuckets(),
		}, []string{"endpoint"}),
		ingested: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "stemedb_assertions_ingested_total",
			Help: "Assertions acknowledged to callers of this node as durable, including those that existed before.",
		}),
		gatewayRequests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "stemedb_gateway_requests_total",
			Help: "Requests to the gateway by the answering node: local, peer, or none.",
		}, []string{"by"}),
		gatewayRetries: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "stemedb_gateway_retries_total",
			Help: "Retries of the gateway at another node after a failed attempt.",
		}),
	}
	ready := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "stemedb_ready", Help: "1 while this node can serve.",
	}, func() float64 {
		if a.notReady() != nil {
			return 0
		}
		return 1
	})
	expiry := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "stemedb_tls_certificate_expiry_timestamp_seconds",
		Help: "When the certificate of API and gateway expires, unix seconds; 0 without one.",
	}, func() float64 {
		if certs := a.certs.Load(); certs != nil {
			return float64(certs.Expiry().Unix())
		}
		return 0
	})
	for _, c := range []prometheus.Collector{
		m.requests, m.duration, m.inFlight, m.problems, m.queries, m.queryLatency, m.ingested,
		m.gatewayRequests, m.gatewayRetries, ready, expiry, a.errors.count,
	} {
		if err := registerer.Register(c); err != nil {
			return nil, fmt.Errorf("register the metrics of the HTTP API: %w", err)
		}
	}
	for code := range codeTable {
		m.problems.WithLabelValues(code) // from the start, so that the first one is an increase
	}
	for _, endpoint := range endpoints() {
		m.queries.WithLabelValues(endpoint)
		m.queryLatency.WithLabelValues(endpoint)
	}
	return m, nil
}

// endpoints are the values of the label endpoint.
func endpoints() []string { return []string{"query", "skeptic", "layered", "subjects", "assertion"} }

// observe counts an answered call.
func (m *meters) observe(c *call, took time.Duration) {
	m.requests.WithLabelValues(c.route.pattern, methodLabel(c.r.Method), strconv.Itoa(c.status)).Inc()
	m.duration.WithLabelValues(c.route.pattern).Observe(took.Seconds())
}

// problem counts an answer that is a problem. A caller that has disconnected gets
// none.
func (m *meters) problem(p *Problem) {
	if p.Status == statusClientWentAway {
		return
	}
	code := p.Code
	if _, known := codeTable[code]; !known {
		code = codeInternal
	}
	m.problems.WithLabelValues(code).Inc()
}

// queried counts a query that was answered.
func (m *meters) queried(endpoint string, since time.Time) {
	m.queries.WithLabelValues(endpoint).Inc()
	m.queryLatency.WithLabelValues(endpoint).Observe(time.Since(since).Seconds())
}

func methodLabel(method string) string {
	switch method {
	case http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPatch, http.MethodDelete, http.MethodOptions, http.MethodPut:
		return method
	}
	return "other"
}
