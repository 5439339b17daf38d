package config

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"
	"github.com/stretchr/testify/require"
)

const (
	secret  = "0123456789abcdef0123456789abcdef"
	rootRaw = "steme_live_000000000000000000000000000000000000000000000000"
)

// load reads a configuration out of flags, variables and files.
func load(t testing.TB, args, environ []string, files map[string]string) (*Config, error) {
	t.Helper()
	flags := pflag.NewFlagSet("serve", pflag.ContinueOnError)
	RegisterFlags(flags)
	require.NoError(t, flags.Parse(args))
	return Load(flags, Source{
		Environ: append([]string{}, environ...),
		ReadFile: func(name string) ([]byte, error) {
			text, ok := files[name]
			if !ok {
				return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
			}
			return []byte(text), nil
		},
		Hostname: func() (string, error) { return "Stemedb-0.cluster.local", nil },
	})
}

func minimal(more ...string) []string {
	return append([]string{"STEMEDB_WAL_DIR=/wal", "STEMEDB_DB_DIR=/db", "HOME=/root"}, more...)
}

func TestDefaults(t *testing.T) {
	c, err := load(t, nil, minimal(), nil)
	require.NoError(t, err)
	require.Equal(t, &Config{
		BindAddr: ":18180", GatewayAddr: ":18181", ReplicationAddr: ":18182", GossipAddr: ":18183",
		WALDir: "/wal", DBDir: "/db", NodeName: "stemedb-0", AdvertiseAddr: "localhost",
		LogLevel: slog.LevelInfo, LogFormat: "json", ShutdownGrace: 10 * time.Second,
	}, c)
	require.True(t, c.Single())
}

func TestEverySetting(t *testing.T) {
	c, err := load(t, []string{"--bind-addr=127.0.0.1:1", "--auth-enabled", "--cluster-secret-file=/s", "--log-level", "debug"}, minimal(
		"STEMEDB_BIND_ADDR=:9", "STEMEDB_GATEWAY_ADDR=:2", "STEMEDB_REPLICATION_ADDR=:3", "STEMEDB_GOSSIP_ADDR=[::1]:4",
		"STEMEDB_NODE_NAME=n-1", "STEMEDB_ADVERTISE_ADDR=n-1.svc", "STEMEDB_CLUSTER_JOIN_FILE=/join", "STEMEDB_ROOT_API_KEY_FILE=/root-key",
		"STEMEDB_ALLOWED_ORIGINS=https://a.example, http://localhost:3000", "STEMEDB_TLS_CERT_PATH=/c", "STEMEDB_TLS_KEY_PATH=/k",
		"STEMEDB_PEER_TLS_CERT_PATH=/pc", "STEMEDB_PEER_TLS_KEY_PATH=/pk", "STEMEDB_PEER_TLS_CA_PATH=/pa",
		"STEMEDB_LOG_FORMAT=text", "STEMEDB_SHUTDOWN_GRACE=1m", "STEMEDB_UNSAFE_SKIP_SIGNATURES=false", "STEMEDB_DEBUG_ADDR=127.0.0.1:6060",
	), map[string]string{
		"/s": secret + "," + strings.ToUpper(secret) + "\n", "/root-key": rootRaw + "\n",
		"/join": "# first members\nstemedb-0.stemedb\nstemedb-1.stemedb:7000, stemedb-2.stemedb\n",
	})
	require.NoError(t, err)
	require.Equal(t, &Config{
		BindAddr: "127.0.0.1:1", GatewayAddr: ":2", ReplicationAddr: ":3", GossipAddr: "[::1]:4", WALDir: "/wal", DBDir: "/db",
		NodeName: "n-1", AdvertiseAddr: "n-1.svc",
		ClusterJoin:    []string{"stemedb-0.stemedb", "stemedb-1.stemedb:7000", "stemedb-2.stemedb"},
		ClusterSecrets: []Secret{secret, Secret(strings.ToUpper(secret))},
		AuthEnabled:    true, RootAPIKey: rootRaw, AllowedOrigins: []string{"https://a.example", "http://localhost:3000"},
		TLSCertPath: "/c", TLSKeyPath: "/k", PeerTLSCertPath: "/pc", PeerTLSKeyPath: "/pk", PeerTLSCAPath: "/pa",
		DebugAddr: "127.0.0.1:6060", LogLevel: slog.LevelDebug, LogFormat: "text", ShutdownGrace: time.Minute,
	}, c)
	require.True(t, c.TLS())
}

// Each invalid value is reported with the setting's name and the remedy.
func TestProblems(t *testing.T) {
	long := strings.Repeat("x", 64)
	for _, row := range []struct {
		env     string
		setting string
		says    string
	}{
		{"STEMEDB_BIND_ADR=:1", "STEMEDB_BIND_ADR", "nearest is STEMEDB_BIND_ADDR"},
		{"STEMEDB_AUTH_ENABLE=true", "STEMEDB_AUTH_ENABLE", "nearest is STEMEDB_AUTH_ENABLED"},
		{"STEMEDB_ROOT_KEY=x", "STEMEDB_ROOT_KEY", "nearest is STEMEDB_ROOT_API_KEY"},
		{"STEMEDB_WAL_DIR_FILE=/x", "STEMEDB_WAL_DIR_FILE", "no such setting"},
		{"STEMEDB_BIND_ADDR=18180", "STEMEDB_BIND_ADDR", "host:port"},
		{"STEMEDB_BIND_ADDR=:70000", "STEMEDB_BIND_ADDR", "0 to 65535"},
		{"STEMEDB_BIND_ADDR=:http", "STEMEDB_BIND_ADDR", "0 to 65535"},
		{"STEMEDB_GATEWAY_ADDR=:18180", "STEMEDB_GATEWAY_ADDR", "address of STEMEDB_BIND_ADDR too"},
		{"STEMEDB_ADVERTISE_ADDR=host:1", "STEMEDB_ADVERTISE_ADDR", "without a port"},
		{"STEMEDB_NODE_NAME=Big", "STEMEDB_NODE_NAME", "lower-case"},
		{"STEMEDB_NODE_NAME=" + long, "STEMEDB_NODE_NAME", "at most 63"},
		{"STEMEDB_NODE_NAME=-a", "STEMEDB_NODE_NAME", "inner dashes"},
		{"STEMEDB_CLUSTER_JOIN=a", "STEMEDB_CLUSTER_SECRET", "common secret"},
		{"STEMEDB_CLUSTER_JOIN=a,a", "STEMEDB_CLUSTER_JOIN", "listed twice"},
		{"STEMEDB_CLUSTER_JOIN=a b", "STEMEDB_CLUSTER_JOIN", "not a host"},
		{"STEMEDB_CLUSTER_JOIN=a:x", "STEMEDB_CLUSTER_JOIN", "0 to 65535"},
		{"STEMEDB_CLUSTER_SECRET=short", "STEMEDB_CLUSTER_SECRET", "at least 32"},
		{"STEMEDB_CLUSTER_SECRET=" + secret + "," + secret, "STEMEDB_CLUSTER_SECRET", "the same"},
		{"STEMEDB_CLUSTER_SECRET=" + secret + ",a,b", "STEMEDB_CLUSTER_SECRET", "at most two"},
		{"STEMEDB_CLUSTER_SECRET_FILE=/none", "STEMEDB_CLUSTER_SECRET_FILE", "mounted and readable"},
		{"STEMEDB_CLUSTER_SECRET_FILE=/empty", "STEMEDB_CLUSTER_SECRET_FILE", "is empty"},
		{"STEMEDB_CLUSTER_SECRET_FILE=/huge", "STEMEDB_CLUSTER_SECRET_FILE", "at most"},
		{"STEMEDB_ROOT_API_KEY=hunter2", "STEMEDB_ROOT_API_KEY", "stemedb keys generate"},
		{"STEMEDB_AUTH_ENABLED=yes please", "STEMEDB_AUTH_ENABLED", "neither true nor false"},
		{"STEMEDB_ALLOWED_ORIGINS=a.example", "STEMEDB_ALLOWED_ORIGINS", "scheme://host"},
		{"STEMEDB_ALLOWED_ORIGINS=https://a.example/x", "STEMEDB_ALLOWED_ORIGINS", "without a path"},
		{"STEMEDB_TLS_CERT_PATH=/c", "STEMEDB_TLS_CERT_PATH", "belong together"},
		{"STEMEDB_TLS_KEY_PATH=/c", "STEMEDB_TLS_CERT_PATH", "belong together"},
		{"STEMEDB_PEER_TLS_CA_PATH=/c", "STEMEDB_PEER_TLS_CERT_PATH", "all three"},
		{"STEMEDB_LOG_LEVEL=loud", "STEMEDB_LOG_LEVEL", "debug, info, warn and error"},
		{"STEMEDB_LOG_FORMAT=xml", "STEMEDB_LOG_FORMAT", "json and text"},
		{"STEMEDB_SHUTDOWN_GRACE=15", "STEMEDB_SHUTDOWN_GRACE", "duration"},
		{"STEMEDB_SHUTDOWN_GRACE=-1s", "STEMEDB_SHUTDOWN_GRACE", "duration"},
		{"STEMEDB_DB_DIR=/wal", "STEMEDB_DB_DIR", "each its own"},
		{"STEMEDB_DB_DIR=", "STEMEDB_DB_DIR", "--db-dir"},
		{"STEMEDB_DEBUG_ADDR=:6060", "STEMEDB_DEBUG_ADDR", "loopback"},
	} {
		t.Run(row.env, func(t *testing.T) {
			files := map[string]string{"/empty": " \n", "/huge": strings.Repeat("x", maxFile+1)}
			_, err := load(t, nil, minimal(row.env), files)
			var p *Problem
			require.ErrorAs(t, err, &p)
			require.Equal(t, row.setting, p.Setting, "%v", err)
			require.Contains(t, p.Error(), row.says)
			require.NotContains(t, err.Error(), "hunter2")
		})
	}
}

// All problems are reported together.
func TestAllProblemsAtOnce(t *testing.T) {
	_, err := load(t, nil, []string{"STEMEDB_LOG_LEVEL=loud", "STEMEDB_NO=1", "STEMEDB_BIND_ADDR=x"}, nil)
	for _, name := range []string{"STEMEDB_LOG_LEVEL", "STEMEDB_NO:", "STEMEDB_BIND_ADDR", "STEMEDB_WAL_DIR", "STEMEDB_DB_DIR"} {
		require.ErrorContains(t, err, name)
	}
}

// The guard of signatures: with auth on, a server that skips signature checks
// never starts.
func TestSignatureGuard(t *testing.T) {
	_, err := load(t, nil, minimal("STEMEDB_AUTH_ENABLED=true", "STEMEDB_UNSAFE_SKIP_SIGNATURES=true"), nil)
	require.ErrorContains(t, err, "STEMEDB_UNSAFE_SKIP_SIGNATURES")
	_, err = load(t, []string{"--auth-enabled"}, minimal("STEMEDB_UNSAFE_SKIP_SIGNATURES=1"), nil)
	require.Error(t, err)
	_, err = load(t, nil, minimal("STEMEDB_UNSAFE_SKIP_SIGNATURES=true"), nil)
	require.NoError(t, err)
}

func TestValueAndFileTogether(t *testing.T) {
	files := map[string]string{"/k": rootRaw}
	for _, s := range table() {
		if !s.file {
			continue
		}
		_, err := load(t, nil, minimal(s.env()+"=x", s.fileEnv()+"=/k"), files)
		require.ErrorContains(t, err, s.fileEnv()+" is set too")
		_, err = load(t, nil, minimal(s.env()+"=", s.fileEnv()+"="), files)
		require.NoError(t, err, "empty counts as unset")
	}
	_, err := load(t, []string{"--cluster-join=a", "--cluster-join-file=/k"}, minimal(), files)
	require.ErrorContains(t, err, "--cluster-join-file is set too")
}

func TestSecretsHaveNoFlagOfTheirOwn(t *testing.T) {
	flags := pflag.NewFlagSet("serve", pflag.ContinueOnError)
	RegisterFlags(flags)
	for _, s := range table() {
		require.Equal(t, s.secret, flags.Lookup(s.flag()) == nil, s.name)
		require.Equal(t, s.file, flags.Lookup(s.fileFlag()) != nil, s.name)
		require.Contains(t, Usage(), s.env())
	}
}

// Variables that Kubernetes sets for Services called stemedb… are ignored.
func TestKubernetesVariablesArePassedOver(t *testing.T) {
	_, err := load(t, nil, minimal(
		"STEMEDB_PORT=tcp://10.0.0.1:18181", "STEMEDB_PORT_18181_TCP=tcp://10.0.0.1:18181", "STEMEDB_PORT_18181_TCP_PROTO=tcp",
		"STEMEDB_PORT_18181_TCP_PORT=18181", "STEMEDB_PORT_18181_TCP_ADDR=10.0.0.1", "STEMEDB_SERVICE_HOST=10.0.0.1",
		"STEMEDB_SERVICE_PORT=18181", "STEMEDB_SERVICE_PORT_HTTP=18181", "STEMEDB_HEADLESS_SERVICE_HOST=None",
		"STEMEDB_GATEWAY_SERVICE_PORT_HTTP=1", "STEMEDB_GATEWAY_PORT=tcp://10.0.0.2:18181", "STEMEDB_GATEWAY_PORT_1_TCP_ADDR=10.0.0.2",
		"STEMEDB_URL=http://x", "STEMEDB_API_KEY=k", "STEMEDB_ADMIN_KEY_FILE=/k",
	), nil)
	require.NoError(t, err)
	_, err = load(t, nil, minimal("STEMEDB_GATEWAY_PORT=18181"), nil)
	require.ErrorContains(t, err, "STEMEDB_GATEWAY_PORT", "a person set this one")
}

func TestSecretsAreNotPrinted(t *testing.T) {
	c := Config{RootAPIKey: rootRaw, ClusterSecrets: []Secret{secret}}
	text, err := json.Marshal(c)
	require.NoError(t, err)
	var log strings.Builder
	slog.New(slog.NewTextHandler(&log, nil)).Info("x", "key", c.RootAPIKey)
	for _, s := range []string{string(text), fmt.Sprint(c), fmt.Sprintf("%+v %#v %s %v", c, c, c.RootAPIKey, c.ClusterSecrets), log.String()} {
		require.NotContains(t, s, rootRaw)
		require.NotContains(t, s, secret)
	}
	require.Equal(t, rootRaw, c.RootAPIKey.Reveal())
}

func TestHostnameThatDoesNotServe(t *testing.T) {
	_, err := Load(nil, Source{Environ: minimal(), Hostname: func() (string, error) { return "", errors.New("none") }})
	require.ErrorContains(t, err, "STEMEDB_NODE_NAME")
	_, err = Load(nil, Source{Environ: minimal(), Hostname: func() (string, error) { return "under_score", nil }})
	require.ErrorContains(t, err, "STEMEDB_NODE_NAME")
}

// No environment crashes Load, and an accepted configuration keeps the rules.
func FuzzLoad(f *testing.F) {
	for _, s := range table() {
		f.Add(s.env(), s.preset, "")
		f.Add(s.fileEnv(), "/f", "text")
	}
	f.Add("STEMEDB_CLUSTER_JOIN", "a,b:1\n# c\n[::1]:5", "")
	f.Add("STEMEDB_PORT_1_TCP", "tcp://x", "")
	f.Fuzz(func(t *testing.T, name, value, file string) {
		c, err := load(t, nil, minimal(name+"="+value, "STEMEDB_AUTH_ENABLED=true"), map[string]string{"/f": file})
		if err != nil {
			var p *Problem
			require.ErrorAs(t, err, &p)
			require.NotEmpty(t, p.Setting)
			return
		}
		require.False(t, c.AuthEnabled && c.UnsafeSkipSignatures)
		require.True(t, c.Single() || len(c.ClusterSecrets) > 0)
		require.NotEmpty(t, c.NodeName)
	})
}
