// Package api is the HTTP API of a node: its routes with their rights, inputs
// and answers, and the gateway, which serves the same routes through any node
// that can serve.
//
// It promises: every route is in one table (routes.go) with its rights, limits
// and parameters; every error is RFC 9457 problem+json with a stable code from
// one table (problem.go); every answer carries X-Request-Id and Content-Length;
// no input crashes the process, hangs a connection or makes it hold more memory
// than the limits allow. No data of a request becomes durable on any node more
// than 30 s after the revocation of its key, however slowly its body arrives
// and however long it waits for its turn, and no read returns data after that
// time (trust.go).
//
// The package opens no file and no socket: records and keys come through the
// Backend and Keys interfaces, connections from the listeners passed to Serve.
package api

import (
	"context"
	"log/slog"
	"net"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/semaphore"

	"github.com/stemedb/stemedb/server/internal/keys"
)

// Keys is the table of API keys; *control.Control implements it. Its errors are
// those of package keys; any other error means that the table cannot be read or
// changed now and is answered with 503.
type Keys interface {
	// ConfirmedUntil is the end of the 30 s for which this node's copy is trusted
	// after it was last known to be current; zero: it is not trusted.
	ConfirmedUntil() time.Time
	// Now is the cluster's time; when it is not sure, only this machine's.
	Now() (at time.Time, sure bool)
	// GetKey and ListKeys read this node's copy.
	GetKey(h keys.Hash) (keys.Key, bool)
	ListKeys() []keys.Key
	// LookupAtLeader updates the copy from the leader and looks the key up again.
	LookupAtLeader(ctx context.Context, h keys.Hash) (k keys.Key, found bool, err error)

	CreateKey(ctx context.Context, k keys.Key) (after keys.Key, created bool, err error)
	PatchKey(ctx context.Context, h keys.Hash, p keys.Patch) (keys.Key, error)
	RevokeKey(ctx context.Context, h keys.Hash) (keys.Key, error)
	// RotateKey registers successor; the old key works for grace more seconds.
	RotateKey(ctx context.Context, old, successor keys.Hash, grace int64) (oldKey, fresh keys.Key, err error)
}

// Options of an API. Only Node is required.
type Options struct {
	Node    string // this node's name
	Version string

	Auth           bool     // require keys; off: project "default" and every role
	AllowedOrigins []string // see config.Config

	Logger     *slog.Logger
	Registerer prometheus.Registerer // nil: a new registry
	Gatherer   prometheus.Gatherer   // the source of /metrics

	// Dial connects to another member's HTTP API for the gateway, which speaks
	// TLS on the connection when this node's own API does. Without it the
	// gateway serves through this node only.
	Dial func(ctx context.Context, p Peer) (net.Conn, error)

	// RequestTimeout bounds the work for one request, 10 s when 0. A caller may
	// set a shorter time, or up to MaxRequestTimeout, with X-Request-Timeout.
	RequestTimeout time.Duration
	// ReadTimeout bounds how long a request with its body may take to arrive,
	// 30 s when 0.
	ReadTimeout time.Duration
	// BodyBudget bounds the bytes of large bodies (over 64 KiB) that are held
	// concurrently, 128 MiB when 0.
	BodyBudget int64
	// ReadLimit bounds the bytes of claims that one request may hold, 32 MiB when
	// 0. Beyond it the answer is subject_too_large.
	ReadLimit int64
	// HeavyReads is the number of requests that may hold more than 256 KiB of
	// claims concurrently, 4 when 0. Others wait for their turn.
	HeavyReads int64
}

const (
	defaultRequestTimeout = 10 * time.Second
	defaultReadTimeout    = 30 * time.Second
	defaultBodyBudget     = 128 << 20
	defaultReadLimit      = 32 << 20
	defaultHeavyReads     = 4
	// MaxRequestTimeout is the longest time that a caller may set for one request.
	MaxRequestTimeout = time.Minute
)

// keyTime is the time by which keys are judged: zero when it is not sure.
func (s *services) keyTime() time.Time {
	at, sure := s.keys.Now()
	if !sure {
		return time.Time{}
	}
	return at
}

// Progress is how far a start has come.
type Progress struct {
	Phase string `json:"phase"` // a description for people
	// Rebuild: the whole index is being rebuilt. A rebuild may take longer than
	// any start-up window, resumes after a restart, and should not be interrupted:
	// the node counts as started and not ready.
	Rebuild bool  `json:"rebuild,omitempty"`
	Done    int64 `json:"done"` // bytes of log
	Total   int64 `json:"total"`
}

// services are the parts of the node that the routes use once they exist.
type services struct {
	backend Backend
	keys    Keys
}

// API serves the routes. It answers from its creation on: until Attach, the
// startup path shows progress, and routes that need records or keys answer 503.
type API struct {
	opts     Options
	log      *slog.Logger
	handler  http.Handler
	gateway  http.Handler
	meters   *meters
	errors   *serverErrors
	ids      *ids
	unknown  *unknownKeys
	bodies   *semaphore.Weighted
	heavy    *semaphore.Weighted // turns of Options.HeavyReads
	began    time.Time
	services atomic.Pointer[services]
	progress atomic.Pointer[Progress]
	certs    atomic.Pointer[Certificates]
	draining atomic.Bool
}

// New makes an API.
func New(opts Options) (*API, error) {
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	if opts.Registerer == nil {
		r := prometheus.NewRegistry()
		opts.Registerer, opts.Gatherer = r, r
	}
	if opts.Gatherer == nil {
		opts.Gatherer = prometheus.DefaultGatherer
	}
	if opts.RequestTimeout == 0 {
		opts.RequestTimeout = defaultRequestTimeout
	}
	if opts.ReadTimeout == 0 {
		opts.ReadTimeout = defaultReadTimeout
	}
	if opts.BodyBudget == 0 {
		opts.BodyBudget = defaultBodyBudget
	}
	if opts.ReadLimit == 0 {
		opts.ReadLimit = defaultReadLimit
	}
	if opts.HeavyReads == 0 {
		opts.HeavyReads = defaultHeavyReads
	}
	a := &API{
		opts: opts, log: opts.Logger, errors: newServerErrors(opts.Logger), ids: newIDs(), unknown: newUnknownKeys(),
		bodies: semaphore.NewWeighted(opts.BodyBudget), heavy: semaphore.NewWeighted(opts.HeavyReads), began: time.Now(),
	}
	var err error
	if a.meters, err = newMeters(a, opts.Registerer); err != nil {
		return nil, err
	}
	a.handler = a.router(a.serve)
	a.gateway = newGateway(a)
	return a, nil
}

// Handler serves this node's API.
func (a *API) Handler() http.Handler { return a.handler }

// Gateway serves the same routes through this node or, when it cannot serve,
// through another one.
func (a *API) Gateway() http.Handler { return a.gateway }

// Attach gives the API the services that its routes use. It is called once.
func (a *API) Attach(b Backend, k Keys) { a.services.Store(&services{b, k}) }

// SetProgress sets the progress that the startup path shows until Attach.
func (a *API) SetProgress(p Progress) { a.progress.Store(&p) }

// Drain makes the node unready immediately. The node goes on serving, and from
// then on every answer asks the caller to open its next connection elsewhere.
func (a *API) Drain() { a.draining.Store(true) }

// Draining reports whether Drain was called.
func (a *API) Draining() bool { return a.draining.Load() }

func (a *API) startingProblem() *Problem {
	p := problem(codeStarting, "", "the node is still starting", "send the request again, or through another node; GET /v1/health/startup shows the progress").retry(retrySoon)
	p.Progress = a.progress.Load()
	return p
}
