package config

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/stemedb/stemedb/server/internal/keys"
)

// Prefix begins the name of every environment variable of this program.
const Prefix = "STEMEDB_"

// Limits of values.
const (
	minClusterSecret = 32 // bytes
	maxShutdownGrace = time.Hour
)

// setting is one row of the table.
type setting struct {
	name    string // without Prefix; the flag is its lower-case form with dashes
	group   string
	value   string // the value's kind, as the help shows it
	preset  string
	help    string
	secret  bool // its only flag is <flag>-file: command lines are public
	file    bool // may come from a file
	boolean bool
	set     func(c *Config, text string) error
}

func (s *setting) env() string      { return Prefix + s.name }
func (s *setting) fileEnv() string  { return s.env() + "_FILE" }
func (s *setting) flag() string     { return strings.ToLower(strings.ReplaceAll(s.name, "_", "-")) }
func (s *setting) fileFlag() string { return s.flag() + "-file" }

// table lists every setting in the order in which the help shows them.
func table() []setting {
	return []setting{
		{
			name: "BIND_ADDR", group: "Addresses", value: "host:port", preset: ":18180",
			help: "HTTP API of this node",
			set:  address(func(c *Config) *string { return &c.BindAddr }),
		},
		{
			name: "GATEWAY_ADDR", group: "Addresses", value: "host:port", preset: ":18181",
			help: "gateway: the same API through any node that can serve",
			set:  address(func(c *Config) *string { return &c.GatewayAddr }),
		},
		{
			name: "REPLICATION_ADDR", group: "Addresses", value: "host:port", preset: ":18182",
			help: "replication and control between members",
			set:  address(func(c *Config) *string { return &c.ReplicationAddr }),
		},
		{
			name: "GOSSIP_ADDR", group: "Addresses", value: "host:port", preset: ":18183",
			help: "liveness between members, TCP and UDP",
			set:  address(func(c *Config) *string { return &c.GossipAddr }),
		},
		{
			name: "ADVERTISE_ADDR", group: "Addresses", value: "host",
			help: "host under which members reach this node (default: the node's name)",
			set:  host(func(c *Config) *string { return &c.AdvertiseAddr }),
		},

		{
			name: "WAL_DIR", group: "Storage", value: "dir",
			help: "folder of the log; on a separate volume in production (required)",
			set:  text(func(c *Config) *string { return &c.WALDir }),
		},
		{
			name: "DB_DIR", group: "Storage", value: "dir",
			help: "folder of packs and index; on a separate volume in production (required)",
			set:  text(func(c *Config) *string { return &c.DBDir }),
		},

		{
			name: "NODE_NAME", group: "Cluster", value: "name",
			help: "name of this node, unique in the cluster (default: the host's name)",
			set:  nodeName,
		},
		{
			name: "CLUSTER_JOIN", group: "Cluster", value: "host,…", file: true,
			help: "the first members, host or host:port, the founder first; none: this node is the only member",
			set:  clusterJoin,
		},
		{
			name: "CLUSTER_SECRET", group: "Cluster", value: "text", secret: true, file: true,
			help: "secret that members share, at least 32 bytes; two, comma-separated, while one is being replaced: the first is used, both are accepted. Restart all members with old,new, then with new,old, then with new",
			set:  clusterSecret,
		},
		{
			name: "PEER_TLS_CERT_PATH", group: "Cluster", value: "file",
			help: "certificate for members' connections (default: derived from the cluster secret)",
			set:  text(func(c *Config) *string { return &c.PeerTLSCertPath }),
		},
		{
			name: "PEER_TLS_KEY_PATH", group: "Cluster", value: "file", help: "its key",
			set: text(func(c *Config) *string { return &c.PeerTLSKeyPath }),
		},
		{
			name: "PEER_TLS_CA_PATH", group: "Cluster", value: "file",
			help: "certificates that sign members' certificates",
			set:  text(func(c *Config) *string { return &c.PeerTLSCAPath }),
		},

		{
			name: "AUTH_ENABLED", group: "Access", value: "true|false", preset: "false", boolean: true,
			help: "require an API key on every route except health, metrics and the API's description",
			set:  boolean(func(c *Config) *bool { return &c.AuthEnabled }),
		},
		{
			name: "ROOT_API_KEY", group: "Access", value: "key", secret: true, file: true,
			help: "admin key to register once the cluster has formed",
			set:  rootKey,
		},
		{
			name: "UNSAFE_SKIP_SIGNATURES", group: "Access", value: "true|false", preset: "false", boolean: true,
			help: "accept records without checking their signatures; refused when auth is on",
			set:  boolean(func(c *Config) *bool { return &c.UnsafeSkipSignatures }),
		},
		{
			name: "ALLOWED_ORIGINS", group: "Access", value: "origin,…",
			help: "origins that browsers may call from (default: none with auth, any without)",
			set:  origins,
		},
		{
			name: "TLS_CERT_PATH", group: "Access", value: "file",
			help: "certificate of API and gateway, read again when it changes (default: plain HTTP)",
			set:  text(func(c *Config) *string { return &c.TLSCertPath }),
		},
		{
			name: "TLS_KEY_PATH", group: "Access", value: "file", help: "its key",
			set: text(func(c *Config) *string { return &c.TLSKeyPath }),
		},

		{
			name: "DEBUG_ADDR", group: "Operation", value: "host:port",
			help: "serve profiles (/debug/pprof/) on this loopback address (default: not served)",
			set:  debugAddress,
		},
		{
			name: "LOG_LEVEL", group: "Operation", value: "level", preset: "info",
			help: "debug, info, warn or error",
			set:  logLevel,
		},
		{
			name: "LOG_FORMAT", group: "Operation", value: "format", preset: "json",
			help: "json or text",
			set:  logFormat,
		},
		{
			name: "SHUTDOWN_GRACE", group: "Operation", value: "duration", preset: "10s",
			help: "how long to go on serving, unready, after SIGTERM; a second signal ends it immediately",
			set:  grace,
		},
	}
}

// clientNames are variables of this program's client commands. A server ignores
// them in its environment.
func clientNames() []string {
	return []string{"STEMEDB_URL", "STEMEDB_API_KEY", "STEMEDB_API_KEY_FILE", "STEMEDB_ADMIN_KEY", "STEMEDB_ADMIN_KEY_FILE"}
}

func text(field func(*Config) *string) func(*Config, string) error {
	return func(c *Config, v string) error {
		*field(c) = v
		return nil
	}
}

func boolean(field func(*Config) *bool) func(*Config, string) error {
	return func(c *Config, v string) error {
		b, err := strconv.ParseBool(v)
		if err != nil {
			return fmt.Errorf("%q is neither true nor false", v)
		}
		*field(c) = b
		return nil
	}
}

func address(field func(*Config) *string) func(*Config, string) error {
	return func(c *Config, v string) error {
		_, port, err := net.SplitHostPort(v)
		if err != nil {
			return fmt.Errorf("%q is not host:port; write for example \":18180\" or \"127.0.0.1:18180\"", v)
		}
		if _, err := strconv.ParseUint(port, 10, 16); err != nil {
			return fmt.Errorf("the port of %q is not a number from 0 to 65535", v)
		}
		*field(c) = v
		return nil
	}
}

// debugAddress accepts loopback addresses only, because profiles need no key.
func debugAddress(c *Config, v string) error {
	host, _, err := net.SplitHostPort(v)
	if err != nil {
		return fmt.Errorf("%q is not host:port; give one such as 127.0.0.1:6060", v)
	}
	if ip := net.ParseIP(host); ip == nil || !ip.IsLoopback() {
		return fmt.Errorf("%q is not a loopback address; give one such as 127.0.0.1:6060 (profiles need no key)", v)
	}
	c.DebugAddr = v
	return nil
}

func host(field func(*Config) *string) func(*Config, string) error {
	return func(c *Config, v string) error {
		if err := checkHost(v); err != nil {
			return err
		}
		*field(c) = v
		return nil
	}
}

// checkHost accepts an IP address or a possible DNS name.
func checkHost(v string) error {
	if net.ParseIP(v) != nil {
		return nil
	}
	if v == "" || len(v) > 253 {
		return fmt.Errorf("%q is not a host; give a name or an address without a port", v)
	}
	for _, c := range []byte(v) {
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '-', c == '.', c == '_':
		default:
			return fmt.Errorf("%q is not a host; give a name or an address without a port", v)
		}
	}
	return nil
}

func nodeName(c *Config, v string) error {
	if len(v) > 63 {
		return fmt.Errorf("%q has %d characters; a node's name has at most 63", v, len(v))
	}
	for i, r := range []byte(v) {
		inner := i > 0 && i < len(v)-1
		if (r < 'a' || r > 'z') && (r < '0' || r > '9') && (!inner || r != '-') {
			return fmt.Errorf("%q is not a valid node name; use only lower-case letters, digits and inner dashes", v)
		}
	}
	c.NodeName = v
	return nil
}

func clusterJoin(c *Config, v string) error {
	seen := map[string]bool{}
	for _, name := range fields(v) {
		h := name
		if sh, port, err := net.SplitHostPort(name); err == nil {
			if _, err := strconv.ParseUint(port, 10, 16); err != nil {
				return fmt.Errorf("the port of %q is not a number from 0 to 65535", name)
			}
			h = sh
		}
		if err := checkHost(h); err != nil {
			return err
		}
		if seen[name] {
			return fmt.Errorf("%q is listed twice; list every member once", name)
		}
		seen[name] = true
		c.ClusterJoin = append(c.ClusterJoin, name)
	}
	return nil
}

// fields splits a list at commas and line ends. A line that begins with # is a
// comment.
func fields(v string) []string {
	var out []string
	for line := range strings.Lines(v) {
		if strings.HasPrefix(strings.TrimSpace(line), "#") {
			continue
		}
		for f := range strings.SplitSeq(line, ",") {
			if f = strings.TrimSpace(f); f != "" {
				out = append(out, f)
			}
		}
	}
	return out
}

func clusterSecret(c *Config, v string) error {
	secrets := fields(v)
	if len(secrets) > 2 {
		return fmt.Errorf("%d secrets are given; at most two are accepted, while one is being replaced", len(secrets))
	}
	for _, s := range secrets {
		if len(s) < minClusterSecret {
			return fmt.Errorf("a secret has %d bytes; at least %d are needed, for example from \"openssl rand -hex 32\"", len(s), minClusterSecret)
		}
		c.ClusterSecrets = append(c.ClusterSecrets, Secret(s))
	}
	if len(secrets) == 2 && secrets[0] == secrets[1] {
		return errors.New("the two secrets are the same; to replace one, restart all members with old,new, then with new,old, then with new alone")
	}
	return nil
}

func rootKey(c *Config, v string) error {
	if err := keys.ValidateRaw(v); err != nil {
		return fmt.Errorf("malformed: %w; \"stemedb keys generate\" makes one", err)
	}
	c.RootAPIKey = Secret(v)
	return nil
}

func origins(c *Config, v string) error {
	for _, o := range fields(v) {
		if o != "*" {
			u, err := url.Parse(o)
			if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" || u.Scheme+"://"+u.Host != o {
				return fmt.Errorf("%q is not an origin; write scheme://host or scheme://host:port without a path", o)
			}
		}
		c.AllowedOrigins = append(c.AllowedOrigins, o)
	}
	return nil
}

func logLevel(c *Config, v string) error {
	switch strings.ToLower(v) {
	case "debug", "info", "warn", "error":
		return c.LogLevel.UnmarshalText([]byte(v))
	}
	return fmt.Errorf("%q is not one of debug, info, warn and error", v)
}

func logFormat(c *Config, v string) error {
	if v != "json" && v != "text" {
		return fmt.Errorf("%q is not one of json and text", v)
	}
	c.LogFormat = v
	return nil
}

func grace(c *Config, v string) error {
	d, err := time.ParseDuration(v)
	if err != nil || d < 0 || d > maxShutdownGrace {
		return fmt.Errorf("%q is not a duration from 0s to 1h; write for example \"15s\"", v)
	}
	c.ShutdownGrace = d
	return nil
}
