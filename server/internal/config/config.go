// Package config is the server's configuration: one table of settings, each a
// flag and an environment variable, secrets and the list of first members also
// a file named by <variable>_FILE.
//
// It promises that a returned configuration is valid, that all problems are
// reported together, each with the setting's name and the remedy, and that an
// unknown variable that begins with STEMEDB_ is an error rather than a setting
// that silently has no effect.
package config

import (
	"log/slog"
	"time"
)

// Secret is text that is never printed: not by fmt, not by slog, not as JSON.
type Secret string

const redacted = "[secret]"

func (s Secret) String() string {
	if s == "" {
		return ""
	}
	return redacted
}

// GoString keeps %#v from showing it.
func (s Secret) GoString() string { return s.String() }

// LogValue keeps slog from showing it.
func (s Secret) LogValue() slog.Value { return slog.StringValue(s.String()) }

// MarshalText keeps JSON from showing it.
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// Reveal returns the text.
func (s Secret) Reveal() string { return string(s) }

// Config is one server's checked configuration.
type Config struct {
	// Listen addresses, host:port; an empty host means every interface.
	BindAddr        string // HTTP API of this node
	GatewayAddr     string // gateway
	ReplicationAddr string // gRPC and Raft between members
	GossipAddr      string // SWIM, TCP and UDP

	WALDir string // the log, its manifest and the control table's Raft log
	DBDir  string // packs and the index

	NodeName string // unique in the cluster; the pod's name
	// AdvertiseAddr is the host, without a port, under which other members
	// reach this one; the ports are those of the listen addresses.
	AdvertiseAddr string
	// ClusterJoin holds the first members, host or host:port, in the order that
	// founds a cluster. Empty: a cluster with this node as its only member.
	ClusterJoin []string
	// ClusterSecrets holds one secret, or two while one is being replaced: the
	// first is used, both are accepted.
	ClusterSecrets []Secret

	AuthEnabled          bool
	RootAPIKey           Secret
	UnsafeSkipSignatures bool
	// AllowedOrigins are the origins that browsers may call from. Empty: none when
	// auth is on, any when it is off. "*" is any.
	AllowedOrigins []string

	TLSCertPath, TLSKeyPath                        string
	PeerTLSCertPath, PeerTLSKeyPath, PeerTLSCAPath string

	// DebugAddr serves Go's profiles; empty: they are not served. Profiles show
	// how the process works, not the data that it stores, and need no key:
	// loopback only.
	DebugAddr string

	LogLevel  slog.Level
	LogFormat string // "json" or "text"

	// ShutdownGrace is how long the server goes on serving, unready, after a
	// request to stop.
	ShutdownGrace time.Duration
}

// TLS reports whether the API and the gateway speak HTTPS.
func (c *Config) TLS() bool { return c.TLSCertPath != "" }

// Single reports whether the server is the only member of its cluster.
func (c *Config) Single() bool { return len(c.ClusterJoin) == 0 }
