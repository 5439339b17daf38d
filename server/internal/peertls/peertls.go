// Package peertls secures what members of a cluster say to each other.
//
// Everything between members runs over mutual TLS 1.3 on one port. A certificate
// authority is derived from the cluster secret, so that whoever knows the secret
// can issue itself a leaf and nobody else can; or the operator gives certificate
// files, which are read again when they change. The protocol that a connection
// is for is agreed on in the handshake (ALPN): ProtoGRPC or ProtoRaft.
//
// Promised: a connection that a Listener hands out, and one that Dial returns,
// has proven to belong to a member. Handshakes take bounded time and bounded
// memory; a stranger's connection is closed and counted, nothing else.
package peertls

import (
	"errors"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/stemedb/stemedb/server/internal/clock"
	"github.com/stemedb/stemedb/server/internal/network"
)

// What a connection is for, as its ALPN name.
const (
	ProtoGRPC = "h2"
	ProtoRaft = "stemedb-raft"
)

// Config says who this node is and whom it trusts: either Secrets or the three
// files are given.
type Config struct {
	Network network.Network
	// Name is the node's name; it is the subject of the derived leaf.
	Name string
	// Secrets holds one cluster secret, or two while one is being replaced.
	// The first one signs this node's leaf, each of them is accepted.
	Secrets []string
	// CertFile, KeyFile and CAFile (PEM) replace the derived authority. They
	// are read again when their contents change.
	CertFile, KeyFile, CAFile string
	// ReloadEvery is how often the files are looked at, 10 s when 0.
	ReloadEvery time.Duration
	// HandshakeTimeout bounds a handshake on either side, 5 s when 0.
	HandshakeTimeout time.Duration
	// Clock decides whether certificates out of files are valid; nil means
	// clock.Wall.
	Clock      clock.Clock
	Logger     *slog.Logger
	Registerer prometheus.Registerer // nil: no metrics
}

// ErrNotMember is wrapped in errors of handshakes that failed because the other
// side did not prove that it belongs to the cluster.
var ErrNotMember = errors.New("the peer did not prove that it belongs to this cluster")
