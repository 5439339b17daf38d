package peertls

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"

	"github.com/stemedb/stemedb/server/internal/clock"
)

// Transport dials and accepts connections of members. It is safe for use by
// several goroutines.
type Transport struct {
	cfg     Config
	log     *slog.Logger
	files   *files
	metrics metrics

	identity atomic.Pointer[identity]

	stop    context.CancelFunc
	workers sync.WaitGroup

	mu     sync.Mutex // guards the fields below; never held across a wait
	conns  map[string]*grpc.ClientConn
	closed bool
}

type metrics struct {
	refused prometheus.Counter
	expires prometheus.Gauge
	reloads *prometheus.CounterVec
}

// New reads or derives this node's certificate. The caller must call Close.
func New(cfg Config) (*Transport, error) {
	if cfg.HandshakeTimeout == 0 {
		cfg.HandshakeTimeout = 5 * time.Second
	}
	if cfg.ReloadEvery == 0 {
		cfg.ReloadEvery = 10 * time.Second
	}
	if cfg.Clock == nil {
		cfg.Clock = clock.Wall()
	}
	m, err := newMetrics(cfg.Registerer)
	if err != nil {
		return nil, fmt.Errorf("register the metrics of the peer transport: %w", err)
	}
	t := &Transport{cfg: cfg, log: cfg.Logger, conns: map[string]*grpc.ClientConn{}, metrics: m}
	if t.log == nil {
		t.log = slog.New(slog.DiscardHandler)
	}
	ctx, stop := context.WithCancel(context.Background())
	t.stop = stop
	if cfg.CertFile == "" {
		id, err := derive(cfg.Name, cfg.Secrets)
		if err != nil {
			stop()
			return nil, err
		}
		t.use(id)
		return t, nil
	}
	t.files = &files{cert: cfg.CertFile, key: cfg.KeyFile, ca: cfg.CAFile}
	pem, err := t.files.read()
	if err != nil {
		stop()
		return nil, err
	}
	id, err := t.files.load(pem)
	if err != nil {
		stop()
		return nil, err
	}
	t.use(id)
	t.workers.Go(func() { t.reload(ctx, pem) })
	return t, nil
}

func (t *Transport) use(id *identity) {
	t.identity.Store(id)
	t.metrics.expires.Set(float64(id.expires.Unix()))
}

// reload starts to use new files when all three match. Files that do not match
// are reported once per content, and the old certificate stays in use.
func (t *Transport) reload(ctx context.Context, seen [3][]byte) {
	tick := time.NewTicker(t.cfg.ReloadEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		pem, err := t.files.read()
		if err != nil {
			t.metrics.reloads.WithLabelValues("failed").Inc()
			t.log.Warn("peer certificate cannot be read; the one in use stays", "error", err)
			continue
		}
		if equalPEM(pem, seen) {
			continue
		}
		seen = pem
		id, err := t.files.load(pem)
		if err != nil {
			t.metrics.reloads.WithLabelValues("failed").Inc()
			t.log.Error("peer certificate has changed but cannot be used; the one in use stays", "error", err)
			continue
		}
		t.use(id)
		t.metrics.reloads.WithLabelValues("done").Inc()
		t.log.Info("peer certificate reloaded", "expires", id.expires)
	}
}

// Dial connects to the peer at addr (host:port) for proto and returns after the
// handshake, which proved that the peer belongs to the cluster.
func (t *Transport) Dial(ctx context.Context, addr, proto string) (net.Conn, error) {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, fmt.Errorf("address of a peer: %w", err)
	}
	raw, err := t.cfg.Network.Dial(ctx, addr)
	if err != nil {
		return nil, fmt.Errorf("dial peer %s: %w", addr, err)
	}
	id := t.identity.Load()
	conn := tls.Client(raw, &tls.Config{
		MinVersion:             tls.VersionTLS13,
		NextProtos:             []string{proto},
		Certificates:           []tls.Certificate{id.leaf},
		SessionTicketsDisabled: true,
		InsecureSkipVerify:     true, // VerifyConnection is the check
		VerifyConnection: func(cs tls.ConnectionState) error {
			return id.verify(cs, host, x509.ExtKeyUsageServerAuth, t.cfg.Clock.Now())
		},
	})
	ctx, cancel := context.WithTimeout(ctx, t.cfg.HandshakeTimeout)
	defer cancel()
	if err := conn.HandshakeContext(ctx); err != nil {
		raw.Close()
		return nil, fmt.Errorf("handshake with peer %s: %w", addr, err)
	}
	if got := conn.ConnectionState().NegotiatedProtocol; got != proto {
		raw.Close()
		return nil, fmt.Errorf("handshake with peer %s: it speaks %q, not %q", addr, got, proto)
	}
	return conn, nil
}

// serverConfig is called for each handshake, so that a reloaded certificate
// takes effect immediately.
func (t *Transport) serverConfig() *tls.Config {
	id := t.identity.Load()
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		NextProtos:             []string{ProtoGRPC, ProtoRaft},
		Certificates:           []tls.Certificate{id.leaf},
		SessionTicketsDisabled: true,
		ClientAuth:             tls.RequireAnyClientCert,
		VerifyConnection: func(cs tls.ConnectionState) error {
			// A client's certificate names no host to check.
			clients := *id
			clients.hostnames = false
			return clients.verify(cs, "", x509.ExtKeyUsageClientAuth, t.cfg.Clock.Now())
		},
	}
}

// Conn returns the gRPC connection to addr, shared by all callers for that
// address. It connects on first use, looks up the name again for each attempt,
// and is closed only by Close.
func (t *Transport) Conn(addr string) (*grpc.ClientConn, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return nil, errors.New("the peer transport is closed")
	}
	if cc := t.conns[addr]; cc != nil {
		return cc, nil
	}
	cc, err := grpc.NewClient("passthrough:///"+addr,
		grpc.WithTransportCredentials(insecure.NewCredentials()), // Dial provides TLS
		grpc.WithContextDialer(func(ctx context.Context, addr string) (net.Conn, error) {
			return t.Dial(ctx, addr, ProtoGRPC)
		}),
		grpc.WithDisableServiceConfig(),
		grpc.WithIdleTimeout(0),
		grpc.WithConnectParams(grpc.ConnectParams{
			// A pod that comes back should be found immediately.
			Backoff:           backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 2 * time.Second},
			MinConnectTimeout: t.cfg.HandshakeTimeout,
		}),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 10 * time.Second, Timeout: 5 * time.Second}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(MaxMessage), grpc.MaxCallSendMsgSize(MaxMessage)),
	)
	if err != nil {
		return nil, fmt.Errorf("prepare the connection to peer %s: %w", addr, err)
	}
	t.conns[addr] = cc
	return cc, nil
}

// MaxMessage is the largest gRPC message in bytes that members exchange.
const MaxMessage = 32 << 20

// ServerOptions are the options of the gRPC server behind Listener.GRPC.
func (t *Transport) ServerOptions() []grpc.ServerOption {
	return []grpc.ServerOption{
		grpc.MaxRecvMsgSize(MaxMessage),
		grpc.MaxSendMsgSize(MaxMessage),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second, PermitWithoutStream: true}),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: 10 * time.Second, Timeout: 5 * time.Second}),
	}
}

// Close closes all pooled connections and waits for the transport's goroutines.
func (t *Transport) Close() error {
	t.stop()
	t.mu.Lock()
	t.closed = true
	conns := t.conns
	t.conns = nil
	t.mu.Unlock()
	var errs []error
	for _, cc := range conns {
		errs = append(errs, cc.Close())
	}
	t.workers.Wait()
	return errors.Join(errs...)
}

func newMetrics(reg prometheus.Registerer) (metrics, error) {
	m := metrics{
		refused: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "stemedb_peer_handshakes_refused_total",
			Help: "Connections to the peer port that did not prove that they belong to the cluster.",
		}),
		expires: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "stemedb_peer_certificate_expiry_timestamp_seconds",
			Help: "When the certificate that this node presents to its peers expires.",
		}),
		reloads: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "stemedb_peer_certificate_reloads_total",
			Help: "Changes of the peer certificate's files by outcome.",
		}, []string{"outcome"}),
	}
	if reg == nil {
		return m, nil
	}
	return m, errors.Join(reg.Register(m.refused), reg.Register(m.expires), reg.Register(m.reloads))
}
