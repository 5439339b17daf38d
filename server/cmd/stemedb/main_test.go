package main

import (
	"bytes"
	"context"
	"encoding/json"
	"net"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/stemedb/stemedb/server/internal/config"
	"github.com/stemedb/stemedb/server/internal/keys"
	"github.com/stemedb/stemedb/server/internal/node"
)

// command runs the program in this process.
func command(in string, args ...string) (code int, out, errOut string) {
	var o, e bytes.Buffer
	code = run(args, strings.NewReader(in), &o, &e)
	return code, o.String(), e.String()
}

func TestKeys(t *testing.T) {
	code, out, _ := command("", "keys", "generate", "--output", "json", "--environment", "test")
	require.Equal(t, exitOK, code)
	var made struct{ Key, Hash string }
	require.NoError(t, json.Unmarshal([]byte(out), &made))
	require.NoError(t, keys.ValidateRaw(made.Key))
	require.True(t, strings.HasPrefix(made.Key, "steme_test_"))

	code, out, _ = command(made.Key+"\n", "keys", "hash")
	require.Equal(t, exitOK, code)
	require.Equal(t, made.Hash+"\n", out)
	code, out, _ = command("", "keys", "generate", "-o", "key")
	require.Equal(t, exitOK, code)
	require.NoError(t, keys.ValidateRaw(strings.TrimSpace(out)))

	for _, row := range []struct {
		in   string
		args []string
		says string
	}{
		{"", []string{"keys", "hash"}, "pipe one in"},
		{"hunter2", []string{"keys", "hash"}, "standard input"},
		{"", []string{"keys", "generate", "--environment", "prod"}, "--environment"},
		{"", []string{"keys", "generate", "-o", "xml"}, "--output"},
		{"", []string{"keys", "hash", "a-key-as-argument"}, "unknown command"},
		{"", []string{"nothing"}, "unknown command"},
		{"", []string{"serve", "--bogus"}, "unknown flag"},
		{"", []string{"smoke", "--url", "nonsense"}, "--url"},
		{"", []string{"healthcheck", "--check", "mood"}, "--check"},
	} {
		code, _, errOut := command(row.in, row.args...)
		require.Equal(t, exitUsage, code, "%v: %s", row.args, errOut)
		require.Contains(t, errOut, row.says)
		require.NotContains(t, errOut, "hunter2")
	}
}

func TestHelpNamesEveryCommandAndExitCode(t *testing.T) {
	code, out, _ := command("", "--help")
	require.Equal(t, exitOK, code)
	for _, word := range []string{"serve", "keys", "claim", "smoke", "cluster", "healthcheck", "version", "Exit codes", "130"} {
		require.Contains(t, out, word)
	}
	code, out, _ = command("", "serve", "--help")
	require.Equal(t, exitOK, code)
	for _, word := range []string{"STEMEDB_CLUSTER_JOIN[_FILE]", "--wal-dir", "default :18180", "second signal"} {
		require.Contains(t, out, word)
	}
}

func TestFlagAndCommandPrintTheVersion(t *testing.T) {
	for _, arg := range []string{"version", "--version"} {
		code, out, errOut := command("", arg)
		require.Equal(t, exitOK, code, "%s: %s", arg, errOut)
		require.Equal(t, versionLine()+"\n", out, arg)
	}
	require.Regexp(t, `^stemedb \S+ \(go\S+, \w+/\w+\)$`, versionLine())
}

// running starts a node on real files and sockets, and returns the URL of its
// gateway.
func running(t *testing.T, change func(*config.Config)) string {
	t.Helper()
	dir := t.TempDir()
	cfg := &config.Config{
		BindAddr: "127.0.0.1:0", GatewayAddr: "127.0.0.1:0", ReplicationAddr: "127.0.0.1:0", GossipAddr: "127.0.0.1:0",
		WALDir: filepath.Join(dir, "wal"), DBDir: filepath.Join(dir, "db"), NodeName: "n0", AdvertiseAddr: "127.0.0.1",
	}
	if change != nil {
		change(cfg)
	}
	n, err := node.Start(t.Context(), cfg, node.Environment{})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, n.Shutdown(context.Background())) })
	server := httptest.NewServer(n.API().Gateway())
	t.Cleanup(server.Close)
	require.Eventually(t, func() bool { return n.Ready() == nil }, time.Minute, 10*time.Millisecond)
	return server.URL
}

func TestSmoke(t *testing.T) {
	raw, err := keys.Generate(keys.Test, nil)
	require.NoError(t, err)
	url := running(t, func(c *config.Config) { c.AuthEnabled, c.RootAPIKey = true, config.Secret(raw) })
	file := filepath.Join(t.TempDir(), "key")
	require.NoError(t, os.WriteFile(file, []byte(raw+"\n"), 0o600))

	code, _, errOut := command("", "smoke", "--url", url, "--timeout", "20s")
	require.Equal(t, exitNo, code, "without a key")
	require.Contains(t, errOut, "key_missing")
	require.Eventually(t, func() bool { // until the root key is registered
		code, _, _ = command("", "cluster", "status", "--url", url, "--api-key-file", file)
		return code == exitOK
	}, time.Minute, 10*time.Millisecond)
	code, out, errOut := command("", "smoke", "--url", url, "--api-key-file", file, "--members", "1", "--timeout", "30s")
	require.Equal(t, exitOK, code, "%s %s", out, errOut)
	require.Equal(t, 7, strings.Count(out, "ok  "))
	code, _, errOut = command("", "smoke", "--url", url, "--api-key-file", file, "--members", "3", "--timeout", "1s")
	require.Equal(t, exitNo, code)
	require.Contains(t, errOut, "1 members, not 3")

	code, out, _ = command("", "cluster", "status", "--url", url, "--api-key-file", file)
	require.Equal(t, exitOK, code)
	require.Contains(t, out, "n0")
	code, out, _ = command("", "cluster", "status", "--url", url)
	require.Equal(t, exitOK, code)
	require.NotContains(t, out, "n0")
	code, out, _ = command("", "cluster", "status", "--url", url, "-o", "json")
	require.Equal(t, exitOK, code)
	require.True(t, json.Valid([]byte(out)))

	t.Setenv("STEMEDB_URL", url)
	for _, check := range []string{"live", "ready", "startup"} {
		code, _, errOut = command("", "healthcheck", "--check", check)
		require.Equal(t, exitOK, code, errOut)
	}
	t.Setenv("STEMEDB_API_KEY", raw)
	t.Setenv("STEMEDB_API_KEY_FILE", file)
	code, _, errOut = command("", "cluster", "status")
	require.Equal(t, exitUsage, code)
	require.Contains(t, errOut, "both set")
}

func TestNobodyAnswers(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	addr := l.Addr().String()
	require.NoError(t, l.Close())
	for _, args := range [][]string{{"healthcheck"}, {"cluster", "status"}} {
		code, _, _ := command("", append(args, "--url", "http://"+addr)...)
		require.Equal(t, exitFailed, code, "%v", args)
	}
	code, _, _ := command("", "smoke", "--url", "http://"+addr, "--timeout", "10ms")
	require.Equal(t, exitNo, code)
}

// The real binary: a configuration that the guard refuses opens no port,
// SIGTERM stops the server gracefully, a second signal immediately.
func TestProcess(t *testing.T) {
	program, err := binary()
	require.NoError(t, err)
	free := func() string {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		defer l.Close()
		return l.Addr().String()
	}
	api := free()
	start := func(more ...string) (*exec.Cmd, *bytes.Buffer) {
		dir := t.TempDir()
		args := append([]string{
			"serve", "--wal-dir", dir + "/wal", "--db-dir", dir + "/db", "--bind-addr", api,
			"--gateway-addr", "127.0.0.1:0", "--replication-addr", "127.0.0.1:0", "--gossip-addr", free(),
		}, more...)
		cmd := exec.Command(program, args...)
		cmd.Env = []string{}
		var log bytes.Buffer
		cmd.Stderr = &log
		t.Cleanup(func() {
			if cmd.Process != nil {
				_ = cmd.Process.Kill() // when a check failed before its end
			}
		})
		return cmd, &log
	}
	ready := func() bool {
		code, _, _ := command("", "healthcheck", "--url", "http://"+api)
		return code == exitOK
	}

	cmd, log := start("--auth-enabled", "--unsafe-skip-signatures")
	require.Error(t, cmd.Run())
	require.Equal(t, exitUsage, cmd.ProcessState.ExitCode(), "%s", log)
	require.Contains(t, log.String(), "STEMEDB_UNSAFE_SKIP_SIGNATURES")

	cmd, log = start("--shutdown-grace", "300ms")
	require.NoError(t, cmd.Start())
	require.Eventually(t, ready, time.Minute, 20*time.Millisecond)
	require.NoError(t, cmd.Process.Signal(syscall.SIGTERM))
	require.NoError(t, cmd.Wait(), "%s", log)

	cmd, log = start("--shutdown-grace", "1h")
	require.NoError(t, cmd.Start())
	require.Eventually(t, ready, time.Minute, 20*time.Millisecond)
	require.NoError(t, cmd.Process.Signal(syscall.SIGTERM))
	require.Eventually(t, func() bool { return !ready() }, time.Minute, 20*time.Millisecond)
	require.NoError(t, cmd.Process.Signal(syscall.SIGINT))
	require.Error(t, cmd.Wait())
	require.Equal(t, exitStopped, cmd.ProcessState.ExitCode(), "%s", log)
}
