// Package peertls secures the connections between members of a cluster.
//
// All connections between members use mutual TLS 1.3 on one port. A certificate
// authority is derived from the cluster secret, so that only a process that
// knows the secret can issue itself a leaf; or the operator gives certificate
// files, which are read again when they change. The handshake (ALPN) selects
// the protocol of a connection: ProtoGRPC or ProtoRaft.
//
// Promised: the peer of every connection that a Listener hands out or Dial
// returns has proven that it is a member. Handshakes take bounded time and
// bounded memory. A connection from a non-member is closed and counted, nothing
// else.
package peertls

import (
	"errors"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/stemedb/stemedb/server/internal/clock"
	"github.com/stemedb/stemedb/server/internal/network"
)

// The protocols of a connection, by their ALPN names.
const (
	ProtoGRPC = "h2"
	ProtoRaft = "stemedb-raft"
)

// Config is this node's identity and the authorities that it trusts. Either
// Secrets or the three files are set.
type Config struct {
	Network network.Network
	// Name is the node's name; it is the subject of the derived leaf.
	Name string
	// Secrets holds one cluster secret, or two while one is being replaced. The
	// first one signs this node's leaf; both are accepted.
	Secrets []string
	// CertFile, KeyFile and CAFile (PEM) replace the derived authority. They
	// are read again when their contents change.
	CertFile, KeyFile, CAFile string
	// ReloadEvery is the interval between checks of the files, 10 s when 0.
	ReloadEvery time.Duration
	// HandshakeTimeout bounds a handshake on either side, 5 s when 0.
	HandshakeTimeout time.Duration
	// Clock decides whether certificates from files are valid; nil means
	// clock.Wall.
	Clock      clock.Clock
	Logger     *slog.Logger
	Registerer prometheus.Registerer // nil: no metrics
}

// ErrNotMember is wrapped in the errors of handshakes in which the other side
// did not prove that it belongs to the cluster.
var ErrNotMember = errors.New("the peer did not prove that it belongs to this cluster")
